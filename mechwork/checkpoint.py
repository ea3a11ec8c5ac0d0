"""Checkpoints of a training: one file that is replaced at once, and belongs to one run alone.

Numbers, facts and identity are in one safetensors file, so that a kill at any moment leaves either the state before
or the state after, never a half. Used by whatever trains (zoo, lenses, features); what is in a checkpoint is the
trainer's business. Checkpoints of release 0.1 (tensors, and a JSON file with their sha256) are read too.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .artefact import OWN, read_artefact, read_tensors, write_artefact
from .errors import ArtefactError, InputError
from .files import make_folder, read_object, sha256
from .provenance import Provenance, hash_json

FILE = "checkpoint.safetensors"
WHAT = "checkpoint of a training"
OLD = 3600
"""Seconds after which a half-written file is left over."""
_STATE = "checkpoint.json"
"""Of release 0.1."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder. `identity`: what makes the run this one (recipe, text, model, ...), as JSON values."""

    folder: Path
    identity: Provenance

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"checkpoints are kept in a folder, which is made if need be; {self.folder} is a file")

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Everything from which training goes on, in place of what was there."""
        make_folder(self.folder)
        write_artefact(self.folder / FILE, WHAT, {"identity": self.identity, "state": facts}, tensors)
        (self.folder / _STATE).unlink(missing_ok=True)
        clear_parts(self.folder)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved, or None; raises `ArtefactError` for another run's checkpoint, or damaged files."""
        file, old = self.folder / FILE, self.folder / _STATE
        if not file.exists() and not old.exists():
            return None
        if old.is_file() and OWN not in read_tensors(file)[0]:
            return self._load_old(file, old)
        found = read_artefact(file, WHAT)
        identity, state = found.facts.get("identity"), found.facts.get("state")
        if not isinstance(identity, dict) or not isinstance(state, dict):
            raise ArtefactError(f"{file} lacks its identity or its state; empty {self.folder} to start again")
        if changed := differing(identity, self.identity):
            raise self._another(f"its {', '.join(changed)} differ from this one's")
        return found.tensors, state

    def _load_old(self, file: Path, old: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        state = read_object(old, ("sha256",))
        if state.get("identity", hash_json({"recipe": state.get("recipe")})) != hash_json(self.identity):
            raise self._another("of another model, text or recipe, or other places")
        if sha256(file) != state["sha256"]:
            raise ArtefactError(f"{file} is not the one {_STATE} was written with; empty {self.folder} to start again")
        return read_tensors(file)[1], state

    def _another(self, why: str) -> ArtefactError:
        return ArtefactError(
            f"{self.folder} holds a checkpoint of another run: {why}. Use another folder, or empty this one"
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether a training was interrupted there."""
    return (folder / FILE).is_file()


def differing(found: Provenance, wanted: Provenance) -> list[str]:
    """Names of the entries in which two identities differ, as JSON."""
    plain = json.loads(json.dumps(wanted, default=str))
    return sorted(name for name in plain.keys() | found.keys() if plain.get(name) != found.get(name))


def clear_parts(folder: Path) -> None:
    """Remove what a killed process left half-written, once it is too old to be of one that still writes."""
    for part in folder.glob(".*.part"):
        with suppress(FileNotFoundError):  # one that still writes has moved it into place
            if time.time() - part.stat().st_mtime > OLD:
                part.unlink()
