"""What a study has found so far, in a folder: one JSON file per piece of work, so that an interrupted study goes on.

Each file carries the sha256 of what its numbers were computed from; those of another model, task or setting are
refused. Floats are written so that reading gives the same bits.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from ..files import make_folder, write_json


@dataclass(frozen=True)
class Kept:
    """``FOLDER/NAME.json`` under a `key`; without a folder nothing is kept."""

    folder: str | Path | None
    name: str
    key: str

    @property
    def file(self) -> Path:
        return Path(self.folder or ".").expanduser() / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', self.name)}.json"

    def read(self) -> dict[str, Any] | None:
        """The facts; None where there are none yet. Raises `ArtefactError` for a damaged file or another study's."""
        if self.folder is None or not self.file.is_file():
            return None
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
            key, facts = data["key"], dict(data["facts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{self.file} is damaged ({error}); delete it, and it is measured again") from error
        if key != self.key:
            raise ArtefactError(
                f"{self.file} belongs to another model, task or settings. Choose another folder, or delete the file."
            )
        return facts

    def write(self, facts: dict[str, Any]) -> None:
        """Keeps the facts, whole or not at all."""
        if self.folder is None:
            return
        make_folder(self.file.parent)
        write_json(self.file, {"key": self.key, "facts": facts})
