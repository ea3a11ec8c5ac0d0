"""Checkpoints of a lens's training: one safetensors file and one JSON file, moved into place, belonging to one run alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..bundled import read_json, sha256, write_atomically
from ..errors import ArtefactError, InputError
from ..provenance import Provenance, hash_json

if TYPE_CHECKING:
    from .train import _Run, _Work

TENSORS, STATE = "checkpoint.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class LensCheckpoint:
    """A folder. `identity`: recipe, text and model, as JSON values."""

    folder: Path
    identity: Provenance

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"checkpoints are kept in a folder, which is made if need be; {self.folder} is a file")

    def save(self, run: _Run) -> None:
        """Everything from which training goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"part.{name}": part.detach() for name, part in run.parts.items()}
        tensors |= {f"best.{name}": part for name, part in run.best_parts.items()}
        for name, part in run.parts.items():
            tensors |= {
                f"adam.{key}.{name}": torch.as_tensor(value) for key, value in run.optimizer.state[part].items()
            }
        tensors |= {
            "generator": run.generator.get_state(),
            "start": run.start,
            "untrained": run.untrained,
            "best_bits": run.best,
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        file = self.folder / TENSORS
        write_atomically(file, lambda part: save_file(tensors, str(part)))
        state = {
            "identity": hash_json(self.identity), "step": run.step, "cursor": run.cursor, "tokens": run.tokens, "seconds": run.seconds,
            "stale": run.stale, "stopped": run.stopped, "best_step": run.best_step, "history": run.history, "sha256": sha256(file),
        }  # fmt: skip
        write_atomically(self.folder / STATE, lambda part: part.write_text(json.dumps(state), encoding="utf-8"))

    def load(self, work: _Work) -> _Run | None:
        """The run that was saved, or None; raises `ArtefactError` for one of another model, text or recipe, or damaged files."""
        if not (self.folder / STATE).is_file():
            return None
        state: dict[str, Any] = read_json(self.folder / STATE)
        if state.get("identity") != hash_json(self.identity):
            raise ArtefactError(
                f"{self.folder} holds a checkpoint of another model, text or recipe; use another folder, or empty this one"
            )
        file = self.folder / TENSORS
        if not file.is_file() or sha256(file) != state["sha256"]:
            raise ArtefactError(
                f"{file} is missing or is not the one {STATE} was written with; empty {self.folder} to start again"
            )
        try:
            tensors = load_file(str(file))
        except SafetensorError as error:
            raise ArtefactError(f"{file} is damaged: {error}") from error
        return _restore(work, state, tensors)


def _restore(work: _Work, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> _Run:
    from .train import _Run

    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix(prefix): value.to(work.device)
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    parts, optimizer = work.optimizer(named("part."))
    for name, part in parts.items():
        own = {
            key.split(".")[1]: value
            for key, value in tensors.items()
            if key.startswith("adam.") and key.split(".", 2)[2] == name
        }
        if own:
            optimizer.state[part] = {
                key: value if key == "step" else value.to(work.device) for key, value in own.items()
            }
    generator = torch.Generator()
    generator.set_state(tensors["generator"])
    facts = {key: state[key] for key in ("step", "tokens", "seconds", "stale", "stopped", "history")}
    return _Run(
        parts,
        optimizer,
        generator,
        state["cursor"],
        tensors["start"],
        tensors["untrained"],
        tensors["best_bits"],
        named("best."),
        state["best_step"],
        **facts,
    )
