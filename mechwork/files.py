"""Files written whole, read within bounds: JSON, hashes, atomic replacement; the half of `artefact` that needs no
torch.

A file is written beside its name, synced, renamed, and its folder synced, so that what is there under the name is
whole, whenever the process was killed, and whoever writes at the same time. What cannot be written (no space, no
right, no folder) is a `StorageError`. What is missing, damaged, too large or too deep is an `ArtefactError` with
its name.

Bottom layer: imports only `errors`.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ArtefactError, MechworkError, MissingArtefactError, StorageError

JSON_BYTES = 1 << 28
"""No JSON file or header is read beyond this size."""
AGAIN = "Restore it from a copy, or make it again"


def write_json(path: str | Path, value: object, *, indent: int | None = 1, escape: bool = True) -> Path:
    """Write a JSON file, atomically."""
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=escape) + "\n")


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, atomically."""
    write_atomically(Path(path), lambda part: part.write_text(text, encoding="utf-8"))
    return Path(path)


def read_json(path: str | Path) -> Any:
    """The content of any JSON file."""
    file = existing(path)
    try:
        if file.stat().st_size > JSON_BYTES:
            raise ArtefactError(
                f"{path} has {file.stat().st_size} bytes; JSON is read up to {JSON_BYTES}. Is it the right file?"
            )
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged, not valid JSON: {error}. {AGAIN}") from error


def read_object(path: str | Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """The object in a JSON file, which must have all of `keys`."""
    data = read_json(path)
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    if missing or not isinstance(data, dict):
        raise ArtefactError(
            f"{path} lacks {', '.join(missing) or 'an object'}; "
            f"a file of this kind has {', '.join(keys) or 'one'}. Give another file"
        )
    return data


def parse_json(text: str) -> Any:
    """JSON text of bounded size; too deep and too long texts are a `ValueError` like malformed ones."""
    if len(text) > JSON_BYTES:
        raise ValueError(f"{len(text)} letters; JSON is read up to {JSON_BYTES}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


# ---- errors, paths, bytes --------------------------------------------------------------------------------------------


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Inside, something is built from a file's content: any error that causes is an `ArtefactError`."""
    try:
        yield
    except ArtefactError as error:
        if str(path) in str(error):
            raise
        raise ArtefactError(f"{path}: {error}") from error
    except (
        MechworkError, KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RecursionError,
        RuntimeError,
    ) as error:  # fmt: skip
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ArtefactError(f"{path} is no valid file of kind {what!r}: {said:.600}. {AGAIN}") from error


def existing(path: str | Path) -> Path:
    """`path`, if it is a file; raises `ArtefactError` (also a `NotFoundError` where nothing is there)."""
    file = Path(path)
    try:
        if file.is_file():
            return file
        there = file.exists()
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{str(path)[:200]!r} is no file name that can be opened: {error}") from error
    if there:
        raise ArtefactError(
            f"{path} must be a file; it is {'a folder' if file.is_dir() else 'no regular file'}. Name the file itself"
        )
    raise MissingArtefactError(f"there is no file {path}; check the name, or save it first")


def sha256(file: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_parts = itertools.count()
_REMEDIES = {
    errno.ENOSPC: "Free some space, or choose another place",
    errno.EDQUOT: "Free some space, or choose another place",
    errno.ENOENT: "Make its folder first, or choose another place",
    errno.ENOTDIR: "Choose a place inside a folder",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Inside, something is written to `path`: what the system refuses is a `StorageError` with the remedy."""
    try:
        yield
    except MechworkError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        number = error.errno if isinstance(error, OSError) else None
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        remedy = _REMEDIES.get(number or 0, "Choose a place that may be written to")
        raised = StorageError(
            f"{str(path)[:200]} cannot be written: {said}. What was there before is as it was. {remedy}"
        )
        raised.errno = number
        raise raised from error


def make_folder(folder: Path) -> Path:
    """The folder, made if need be with those above it; raises `StorageError` where that cannot be."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a hidden neighbour of `file`, sync it, move it into place, sync the folder.

    Raises `StorageError` where the system refuses; `file` is then what it was. Every call has a neighbour of its own,
    so that processes and threads that write one file at a time leave one of their contents, whole.
    """
    with writing(file):
        part = file.with_name(f".{file.name}.{os.getpid()}.{next(_parts)}.part")
        try:
            write(part)
            with part.open("rb+") as stream:
                os.fsync(stream.fileno())
            part.replace(file)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        _sync(file.parent)


def _sync(folder: Path) -> None:
    """So that the rename itself survives a loss of power, where folders can be opened at all."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


MOST_UNPACKED = 100_000_000
_EMBEDDED = re.compile(
    r'<script type="(?:application/json|text/plain)" data-name="([^"]*)"( data-packed)?>(.*?)</script>'
)


def read_embedded(page: str, name: str) -> str | None:
    """The JSON text of that name in a page, unpacked; None where there is none. Raises `ValueError` if it is damaged or
    does not end after a hundred megabytes.
    """
    for said, packed, text in _EMBEDDED.findall(page):
        if said == name:
            return _inflate(text) if packed else text
    return None


def _inflate(text: str) -> str:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(base64.b64decode(text, validate=True), MOST_UNPACKED)
    except zlib.error as error:
        raise ValueError(f"its packed data cannot be unpacked ({error})") from error
    if not unpacker.eof:
        raise ValueError("its packed data are cut short or of more than 100 MB")
    return found.decode()
