"""Where the shipped data lie, and whether they are what was shipped.

`data/` of a checkout and `mechwork/_data` of an installed wheel hold the same tree: ``tasks/NAME.json``,
``models/NAME/`` and ``circuits/NAME/``. A folder that carries a ``manifest.json`` lists the sha256 of every file beside
it; `verify` refuses a file that is missing, truncated or altered, by name.

Bottom layer: imports only `errors` and `files`. Everything here reads files; nothing is read on import.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from .errors import ArtefactError, InputError, NotFoundError, UnknownNameError
from .files import read_json, sha256, write_json

MANIFEST = "manifest.json"


@cache
def root() -> Path:
    """The folder that holds the shipped data.

    Raises:
        NotFoundError: neither ``mechwork/_data`` (wheel) nor ``data`` beside the package (checkout) exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_data", package.parent / "data"):
        if (folder / "tasks").is_dir():
            return folder
    raise NotFoundError(
        f"mechwork's data were looked for in {package / '_data'} and {package.parent / 'data'} and found in neither; "
        "reinstall the package"
    )


def path(*parts: str) -> Path:
    """The path of a shipped file or folder, e.g. ``path("models", "gpt2-6l")``.

    Raises:
        InputError: a part is empty or would leave the data folder.
        NotFoundError: there is no such file or folder.
    """
    if not parts or any(p in ("", ".", "..") or "/" in p or "\\" in p for p in parts):
        raise InputError(f"parts of a shipped path are plain names, got {parts!r}")
    found = root().joinpath(*parts)
    if not found.exists():
        raise NotFoundError(f"{'/'.join(parts)} is not among the shipped data in {root()}")
    return found


def load_json(*parts: str) -> Any:
    """The content of a shipped JSON file, e.g. ``load_json("tasks", "ioi.json")``."""
    return read_json(path(*parts))


def model_names() -> list[str]:
    """Names of the bundled models, sorted: the folders of ``data/models`` that hold a manifest."""
    folder = root() / "models"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / MANIFEST).is_file())


def checkpoints(name: str) -> list[int]:
    """Steps of training at which the bundled model's weights are shipped too (loaded as ``NAME@STEP``), rising.

    Raises:
        UnknownNameError: no bundled model has this name.
    """
    names = model_names()
    if name not in names:
        raise UnknownNameError("bundled model", name, names)
    return sorted(int(file.stem.removeprefix("step-")) for file in path("models", name).glob("step-*.safetensors"))


def checkpoint_file(name: str, step: int) -> Path:
    """The weights of a bundled model after `step` steps of its training.

    Raises:
        UnknownNameError: no bundled model has this name.
        InputError: its weights were not kept at this step; says at which they were.
    """
    steps = checkpoints(name)
    if step not in steps:
        kept = f"those of {', '.join(map(str, steps))}" if steps else "none but the final ones"
        raise InputError(f"{name} has no weights of step {step}; shipped are {kept}")
    return path("models", name, f"step-{step:06d}.safetensors")


def verified_model(name: str) -> Path:
    """The folder of a bundled model, after its files were verified.

    Raises:
        UnknownNameError: no bundled model has this name.
        ArtefactError: a file of it is missing, truncated or altered.
    """
    names = model_names()
    if name not in names:
        raise UnknownNameError("bundled model", name, names)
    folder = path("models", name)
    verify(folder)
    return folder


def write_manifest(folder: Path) -> Path:
    """Write ``manifest.json``: name -> bytes and sha256 of every other file of `folder`."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name != MANIFEST)
    entries = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}
    manifest = folder / MANIFEST
    return write_json(manifest, {"files": entries})


def verify(folder: Path) -> None:
    """Compare every file that the folder's manifest lists with its recorded size and sha256.

    Raises:
        NotFoundError: the folder has no manifest.
        ArtefactError: names the first file that is missing, truncated or altered.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise NotFoundError(f"{folder} has no {MANIFEST}, so its files cannot be verified")
    content = read_json(manifest)
    entries = content.get("files") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise ArtefactError(f"{manifest} must hold a table 'files', got {content!r:.80}; reinstall or remake it")
    for name, entry in entries.items():
        file = folder / name
        remedy = "restore it (git checkout, or reinstall mechwork)"
        if not isinstance(entry, dict) or Path(name).name != name:
            raise ArtefactError(f"{manifest} has a malformed entry {name!r}; {remedy}")
        if not file.is_file():
            raise ArtefactError(f"{name} is listed in {manifest} but missing; {remedy}")
        size = file.stat().st_size
        if size != entry.get("bytes"):
            raise ArtefactError(f"{file} has {size} bytes where {MANIFEST} says {entry.get('bytes')}; {remedy}")
        if (found := sha256(file)) != entry.get("sha256"):
            raise ArtefactError(
                f"{file} was altered: sha256 {found} where {MANIFEST} says {entry.get('sha256')}; {remedy}"
            )
