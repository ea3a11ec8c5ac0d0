"""Whether a discovery may be written to a folder: asked before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError

MARKS = ("request.json", "report.json")
"""A folder that holds one of these was written by mechwork and may be replaced."""


def check_output(folder: Path, *, force: bool) -> None:
    """Refuse, before anything is computed, a folder that could not be written at the end."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"the output is a folder; {folder} is something else. Choose another --out.")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise InputError(
                f"{folder} exists and is not overwritten. Choose another --out, or pass --force to replace it."
            )
        if not any((folder / mark).is_file() for mark in MARKS):
            raise InputError(
                f"--force replaces only folders that mechwork wrote; {folder} has no {MARKS[0]}. Choose another --out."
            )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    place = existing.parent if existing == folder.absolute() else existing
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{folder} cannot be made: {place} is not a folder that may be written to. Choose another --out."
        )
