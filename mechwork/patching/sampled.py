"""Exact effects of a task's places, or of a random sample of them, beside every estimate of the same places.

A sample is drawn per kind of site, uniformly and without replacement, among the places that can have an effect: those
from the first token on in which some pair's prompts differ (before it, both runs are the same, and every estimate is
exactly 0 with every effect). Kinds with heads are measured at all positions together.

    measured = measure_places(model, task, ["resid_pre", "z"], n_places=40, seed=0)
    measured.estimate(model, task, find_estimator("relp"))
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, check_whole
from ..models.borrow import run_tail
from ..tasks.task import Task
from .attribution import attribute
from .estimators import Estimator
from .exact import Job, patch, plan_sweep
from .result import Effects

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HEADED = ("q", "k", "v", "z")


@dataclass
class Estimates:
    """What one estimator says of the measured places, kind by kind, and the CPU seconds it took."""

    estimator: dict[str, Any]
    values: dict[str, list[float]]
    seconds: float


@dataclass
class MeasuredPlaces:
    """Places of one task: their names, flat indexes and exact effects by kind; the estimates so far, by name.

    `n_places`: how many places of a kind there are, and how many of them can have an effect. `gap`: clean minus corrupt
    metric. `seconds`: CPU seconds of the exact effects, and of one forward of the same pairs (F).
    """

    names: dict[str, list[str]]
    indexes: dict[str, list[int]]
    exact: dict[str, list[float]]
    n_places: dict[str, tuple[int, int]]
    gap: float
    seconds: dict[str, float]
    estimates: dict[str, Estimates] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.exact)

    def has(self, estimator: Estimator) -> bool:
        """Whether this very estimator was run already."""
        found = self.estimates.get(estimator.name)
        return found is not None and found.estimator == estimator.to_json()

    def estimate(
        self, model: TransformerBridge, task: Task, estimator: Estimator, direction: str, positions: str | None
    ) -> None:
        """Runs the estimator and keeps its values at these places. Cost: see `Estimator.cost`."""
        began, found = time.process_time(), {}
        for kinds, where in by_positions(self.kinds, positions):
            found |= attribute(
                model, task, kinds, rules=estimator.rules, ig_steps=estimator.ig_steps, direction=direction,
                positions=where,
            )  # fmt: skip
        seconds = time.process_time() - began
        values = {kind: found[kind].values.flatten()[self.indexes[kind]].tolist() for kind in self.kinds}
        self.estimates[estimator.name] = Estimates(estimator.to_json(), values, seconds)

    def pair(self, kind: str, name: str) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """(estimated, exact) at the places of a kind."""
        estimate = torch.tensor(self.estimates[name].values[kind], dtype=torch.float64)
        return estimate, torch.tensor(self.exact[kind], dtype=torch.float64)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "estimates": {name: vars(found) for name, found in self.estimates.items()}}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> MeasuredPlaces:
        """What `to_json` told."""
        estimates = {name: Estimates(**found) for name, found in facts["estimates"].items()}
        sizes = {kind: (int(n[0]), int(n[1])) for kind, n in facts["n_places"].items()}
        return cls(**{**facts, "estimates": estimates, "n_places": sizes})


def measure_places(
    model: TransformerBridge,
    task: Task,
    kinds: Sequence[str],
    *,
    n_places: int | None = None,
    direction: str = "denoise",
    positions: str | None = None,
    screen: str | None = None,
    verify_random: float = 0.05,
    seed: int = 0,
) -> MeasuredPlaces:
    """Exact effects of all places of each kind; of `n_places` random ones; or of those that a `screen` chooses.

    Cost: that of `patch` at these places, and one forward to know F.
    """
    if n_places is not None and (check_whole("n_places", n_places) < 3 or screen is not None):
        raise InputError(f"n_places counts at least 3 places per kind and goes without a screen; got {n_places}")
    began = time.process_time()
    found: dict[str, Any] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for part, where in by_positions(kinds, positions):
        if screen is not None:
            screened = patch(
                model, task, part, direction=direction, positions=where, screen=screen, verify_random=verify_random
            )
            effects = screened.measured
        elif n_places is None:
            effects = patch(model, task, part, direction=direction, positions=where)
        else:
            job = plan_sweep(model, task, part, direction=direction, positions=where)
            live = live_cells(job)
            drawn = tuple(_draw(cells, n_places, seed) for cells in live)
            effects = replace(job, sweep=replace(job.sweep, only=drawn)).run()
            sizes |= {kind: (effects[kind].values.numel(), len(c)) for kind, c in zip(part, live, strict=True)}
        found |= effects
        for kind in part:
            n = effects[kind].values.numel()
            sizes.setdefault(kind, (n, n))
    seconds = time.process_time() - began
    ordered = Effects({kind: found[kind] for kind in kinds})
    places = {
        kind: sorted(effect.ranked(~effect.values.isnan()), key=lambda row: row[2]) for kind, effect in ordered.items()
    }
    gap = float((ordered.baseline.clean_per_example - ordered.baseline.corrupt_per_example).double().mean())
    return MeasuredPlaces(
        {kind: [name for name, _, _ in rows] for kind, rows in places.items()},
        {kind: [flat for _, _, flat in rows] for kind, rows in places.items()},
        {kind: [value for _, value, _ in rows] for kind, rows in places.items()},
        {kind: sizes[kind] for kind in ordered},
        gap,
        {"exact": seconds, "forward": _forward_seconds(model, task)},
    )


def by_positions(kinds: Sequence[str], positions: str | None) -> list[tuple[list[str], str | None]]:
    """The kinds of site that are patched at `positions`, and those that always are at all."""
    heads = [kind for kind in kinds if kind in HEADED] if positions is not None else []
    parts = [([kind for kind in kinds if kind not in heads], positions), (heads, None)]
    return [(part, where) for part, where in parts if part]


def live_cells(job: Job) -> list[list[int]]:
    """Per grid, the cells whose place has a token at or after the first in which its pair's prompts differ."""
    pairs = job.task.pairs
    width = min(pairs.clean_tokens.shape[1], pairs.corrupt_tokens.shape[1])
    differs = pairs.clean_tokens[:, :width] != pairs.corrupt_tokens[:, :width]
    first = torch.where(differs.any(dim=1), differs.int().argmax(dim=1), width)
    if not job.anatomy.causal:
        first = torch.zeros_like(first)
    found = []
    for number, grid in enumerate(job.sweep.grids):
        mask = job.places[grid.positions]
        late = torch.arange(mask.shape[2])[None, :] >= first[:, None].cpu()
        live = (mask.cpu() & late).flatten(1).any(dim=1).tolist()
        found.append([cell.index for cell in grid.cells(number) if live[cell.place]])
    return found


def _draw(cells: Sequence[int], n: int, seed: int) -> tuple[int, ...]:
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:n]
    return tuple(sorted(cells[i] for i in order.tolist()))


def _forward_seconds(model: TransformerBridge, task: Task) -> float:
    from ..models.anatomy import device_of

    began = time.process_time()
    with torch.no_grad():
        run_tail(model, task.pairs.clean_tokens.to(device_of(model)), task.pairs.n_tail)
    return time.process_time() - began
