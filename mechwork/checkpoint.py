"""Checkpoints of a training: one safetensors file and one JSON file, moved into place, belonging to one run alone.

Bottom layer: used by whatever trains (lenses, features); what is in a checkpoint is the trainer's business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .bundled import read_json, sha256, write_atomically
from .errors import ArtefactError, InputError
from .provenance import Provenance, hash_json

TENSORS, STATE = "checkpoint.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder. `identity`: what makes the run this one (recipe, text, model, ...), as JSON values."""

    folder: Path
    identity: Provenance

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"checkpoints are kept in a folder, which is made if need be; {self.folder} is a file")

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Everything from which training goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        file = self.folder / TENSORS
        write_atomically(file, lambda part: save_file(stored, str(part)))
        state = {"identity": hash_json(self.identity), "sha256": sha256(file), **facts}
        write_atomically(self.folder / STATE, lambda part: part.write_text(json.dumps(state), encoding="utf-8"))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved, or None; raises `ArtefactError` for another run's checkpoint, or damaged files."""
        if not (self.folder / STATE).is_file():
            return None
        state: dict[str, Any] = read_json(self.folder / STATE)
        if state.get("identity") != hash_json(self.identity):
            raise ArtefactError(
                f"{self.folder} holds a checkpoint of another run (another model, text or recipe, or other places); use another folder, or empty this one"
            )
        file = self.folder / TENSORS
        if not file.is_file() or sha256(file) != state["sha256"]:
            raise ArtefactError(
                f"{file} is missing or is not the one {STATE} was written with; empty {self.folder} to start again"
            )
        try:
            return load_file(str(file)), state
        except SafetensorError as error:
            raise ArtefactError(f"{file} is damaged: {error}") from error
