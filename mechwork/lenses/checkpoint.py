"""What is in the checkpoint of a lens's training, and how a run is put together again from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint import FILE, WHAT, Checkpoint
from ..files import reading
from .translators import Parts

if TYPE_CHECKING:
    from .train import _LensWork


@dataclass
class LensRun:
    """Everything that changes while training."""

    parts: Parts
    optimizer: torch.optim.Adam
    generator: torch.Generator
    cursor: int
    start: Tensor
    untrained: Tensor
    best: Tensor
    best_parts: Parts
    best_step: list[int]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stale: int = 0
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)


def save_run(keeper: Checkpoint, run: LensRun) -> None:
    """Everything from which training goes on."""
    tensors = {f"part.{name}": part.detach() for name, part in run.parts.items()}
    tensors |= {f"best.{name}": part for name, part in run.best_parts.items()}
    for name, part in run.parts.items():
        tensors |= {f"adam.{key}.{name}": torch.as_tensor(value) for key, value in run.optimizer.state[part].items()}
    tensors |= {
        "generator": run.generator.get_state(),
        "start": run.start,
        "untrained": run.untrained,
        "best_bits": run.best,
    }
    facts = {
        "step": run.step, "cursor": run.cursor, "tokens": run.tokens, "seconds": run.seconds, "stale": run.stale,
        "stopped": run.stopped, "best_step": run.best_step, "history": run.history,
    }  # fmt: skip
    keeper.save(tensors, facts)


def load_run(keeper: Checkpoint, work: _LensWork) -> LensRun | None:
    """The run that was saved, or None; raises `ArtefactError` for another run's checkpoint, or damaged files."""
    kept = keeper.load()
    if kept is None:
        return None
    with reading(keeper.folder / FILE, WHAT):
        return _restore(work, kept[1], kept[0])


def _restore(work: _LensWork, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LensRun:
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
    return LensRun(
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
