"""One reader and one writer of everything that mechwork keeps: safetensors for numbers, JSON for the rest.

    write_artefact("she.safetensors", "mechwork direction", {"name": "she"}, {"vector": vector})
    read_artefact("she.safetensors", "mechwork direction").facts["name"]

A file has one metadata entry, ``mechwork``: JSON of `what` it holds, the `format` version, `facts`, and the sha256
of facts and tensors together. One entry, because several have no fixed order: the same content gives the same
bytes. Files are written whole or not at all (see `files`). Every damaged, hostile, foreign, newer or missing file
is an `ArtefactError` that says what was expected, what was found, and what to do. Files of release 0.1 had four
kinds of header; `_parse` alone knows them.

Bottom layer: imports only `errors`, `files` and `provenance`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import ArtefactError, MissingArtefactError
from .files import AGAIN, existing, make_folder, parse_json, read_object, reading, sha256, write_atomically, write_json
from .provenance import hash_json, hash_tensors

OWN = "mechwork"
"""The metadata entry of our own safetensors files."""


@dataclass(frozen=True, eq=False)
class Artefact:
    """What a file of mechwork holds. `version` 0: a file that does not say."""

    what: str
    version: int
    facts: dict[str, Any]
    tensors: dict[str, Tensor]


# ---- artefacts of mechwork -------------------------------------------------------------------------------------------


def write_artefact(
    path: str | Path,
    what: str,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    version: int = 1,
) -> Path:  # fmt: skip
    """Write one safetensors file, atomically; `facts` are JSON values. Returns the path."""
    stored = plain_tensors(tensors or {})
    plain = json.loads(json.dumps(facts, default=str))
    content = {"what": what, "format": version, "facts": plain, "sha256": _digest(plain, stored)}
    return write_tensors(path, stored, {OWN: json.dumps(content)})


def read_artefact(path: str | Path, what: str, *, version: int = 1) -> Artefact:
    """Read a file of kind `what`, written by this format version or an older one.

    Raises `ArtefactError` for a file that is missing, damaged, altered, of another kind, or newer.
    """
    metadata, tensors = read_tensors(path)
    with reading(path, what):
        found, digest = _parse(metadata, tensors)
    _check(found, path, what, version)
    if digest is not None and digest != _digest(found.facts, tensors):
        raise ArtefactError(f"{path} was altered: its content does not have the sha256 that its header says. {AGAIN}")
    return found


def _check(found: Artefact, path: str | Path, what: str, version: int) -> None:
    if found.what != what:
        raise ArtefactError(
            f"{path} must be a file of kind {what!r}; "
            f"it {f'is {found.what!r}' if found.what else 'says no kind'}. Give another file"
        )
    if not 0 <= found.version <= version:
        raise ArtefactError(
            f"{path} is {what!r} of format {found.version}; "
            f"this mechwork reads formats up to {version}. Upgrade mechwork"
        )


def read_kind(path: str | Path) -> str:
    """What a file of mechwork holds, as its header says; nothing for files of others."""
    from safetensors import SafetensorError, safe_open

    file = existing(path)
    try:
        with reading(path, OWN), safe_open(str(file), framework="pt") as stream:
            return _parse(stream.metadata() or {}, {})[0].what
    except (SafetensorError, OSError, MemoryError) as error:
        raise ArtefactError(f"{path} is damaged, or no safetensors file: {error}. {AGAIN}") from error


def _digest(facts: Any, tensors: Mapping[str, Tensor]) -> str:
    return hash_json([facts, hash_tensors(tensors)])


def _parse(metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> tuple[Artefact, str | None]:
    """The header, in the form of this release or in one of the four of release 0.1 (which have no sha256)."""
    if OWN in metadata:
        facts = parse_json(metadata[OWN])
        if "sha256" in facts and "facts" in facts:
            return Artefact(_text(facts["what"]), _whole(facts["format"]), _object(facts["facts"]), tensors), _text(
                facts["sha256"]
            )
        facts = dict(_object(facts))  # 0.1: everything side by side
        what = "patch chunk" if facts.keys() >= {"key", "sweep"} else ""
        return Artefact(str(facts.pop("what", what)), _whole(facts.pop("format", 0)), facts, tensors), None
    rest = dict(metadata)  # 0.1: one entry per fact, some of them JSON
    what, number = rest.pop("what", ""), int(rest.pop("format", "0"))
    facts = dict(_object(parse_json(rest.pop("facts")))) if "facts" in rest else {}
    facts |= {name: parse_json(text) if text[:1] in ("{", "[") else text for name, text in rest.items()}
    return Artefact(what, number, facts, tensors), None


# ---- folders that ship: numbers and facts side by side, so that people can read the facts ---------------------------


@dataclass(frozen=True)
class FolderKind:
    """A folder of two files, ``STEM.safetensors`` and ``STEM.json``; the JSON has the sha256 of the other."""

    what: str
    stem: str

    @property
    def facts(self) -> str:
        """Name of the JSON file."""
        return f"{self.stem}.json"

    @property
    def tensors(self) -> str:
        """Name of the file of numbers."""
        return f"{self.stem}.safetensors"


def write_folder(
    folder: Path, kind: FolderKind, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 1
) -> Path:
    """Write the two files of a folder, the facts last. Returns the folder."""
    make_folder(folder)
    file = write_tensors(folder / kind.tensors, tensors)
    write_json(folder / kind.facts, {"format": version, "what": kind.what, **facts, "sha256": sha256(file)})
    return folder


def read_folder(folder: Path, kind: FolderKind, *, version: int = 1) -> Artefact:
    """Read what `write_folder` wrote; raises `ArtefactError` like `read_artefact`."""
    if not (folder / kind.facts).is_file():
        raise MissingArtefactError(
            f"{folder} holds no {kind.what}: that is a folder with {kind.facts} "
            f"and {kind.tensors}. Name the folder itself"
        )
    facts = read_object(folder / kind.facts)
    with reading(folder / kind.facts, kind.what):
        found = Artefact(_text(facts.pop("what", "")), _whole(facts.pop("format", 0)), facts, {})
    _check(found, folder / kind.facts, kind.what, version)
    file = existing(folder / kind.tensors)
    if sha256(file) != facts.get("sha256"):
        raise ArtefactError(f"{file} was altered: it is not the one {kind.facts} was written with. {AGAIN}")
    return dataclasses.replace(found, tensors=read_tensors(file)[1])


# ---- any safetensors file --------------------------------------------------------------------------------------------


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file, atomically."""
    stored = plain_tensors(tensors)
    write_atomically(Path(path), lambda part: save_tensors(stored, part, metadata))
    return Path(path)


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write dense tensors to a file as it is, not atomically; what the system refuses is an `OSError`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), str(file), metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of any safetensors file.

    Its header and its numbers are opened one after the other; a file that was replaced in between is read again.
    """
    from safetensors import SafetensorError, safe_open

    file = existing(path)
    try:
        while True:
            before = file.stat()
            with safe_open(str(file), framework="pt") as stream:
                names = list(stream.keys())
                found = dict(stream.metadata() or {}), {name: stream.get_tensor(name) for name in names}
            after = file.stat()
            if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
                return found
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, MemoryError, AttributeError) as error:
        raise ArtefactError(f"{path} is damaged, or no safetensors file: {error}. {AGAIN}") from error


def wide(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In float32; raises `TypeError` for numbers that are not real."""
    if wrong := [f"{name} {tensor.dtype}" for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise TypeError(f"its tensors must be floating-point; it has {', '.join(wrong)}")
    return {name: tensor.float() for name, tensor in tensors.items()}


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the host, dense, none sharing memory with another."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.numel() * own.element_size() or storage.data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        found[name] = own
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, got {value!r:.80}")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"a whole number was expected, got {value!r:.80}")
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"an object was expected, got {value!r:.80}")
    return value
