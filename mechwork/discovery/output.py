"""An output folder that appears at once and complete, or not at all.

Files are written into a hidden sibling, which is renamed at the end; after a failure or an interruption the sibling and
any folder made for it are gone. An existing folder is never touched without ``--force``, and with it only if mechwork wrote it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

MARK = "report.json"
"""A folder that holds this file was written by mechwork and may be replaced."""


def check_output(folder: Path, *, force: bool) -> None:
    """Refuse, before anything is computed, a folder that could not be written at the end."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"the output is a folder; {folder} is something else. Choose another --out.")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise InputError(
                f"{folder} exists and is not overwritten. Choose another --out, or pass --force to replace it."
            )
        if not (folder / MARK).is_file():
            raise InputError(
                f"--force replaces only folders that mechwork wrote; {folder} has no {MARK}. Choose another --out."
            )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    place = existing.parent if existing == folder.absolute() else existing
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{folder} cannot be made: {place} is not a folder that may be written to. Choose another --out."
        )


@contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yields a temporary folder to write into; on a clean exit it becomes `folder`."""
    check_output(folder, force=force)
    folder = folder.absolute()
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        part.chmod(0o777 & ~_umask())
        yield part
        _replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def _replace(part: Path, folder: Path) -> None:
    if not folder.exists():
        part.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    try:
        folder.rename(old / folder.name)
        part.rename(folder)
    except BaseException:
        if not folder.exists() and (old / folder.name).exists():
            (old / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
