"""Measured effects: activation patching, as a sweep over cells.

    denoise: effect = m(corrupt run with the clean value put in) - m(corrupt)
    noise:   effect = m(clean) - m(clean run with the corrupt value put in)

Positive = the clean value raises the metric, in both directions. Cost per cell at layer l of L and position p of T, all
pairs together: (L - l) / L x (T - p) / T of the blocks, and the unembedding of what the metric reads (see `Tricks`).
Heimersheim & Nanda 2024 ("How to use and interpret activation patching").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InputError
from ..execute import Ledger, MemoryBudget, ModelRef, Progress, Unit, Work
from ..execute.drive import run_units
from ..execute.memory import cut
from ..execute.task import pack_task, why_not_sent
from ..execute.unit import Tensors, bits
from ..models.anatomy import ModelAnatomy, device_of, dtype_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, stable
from ..relevance import Composite, find_composite
from ..runs.record import Baseline, check_task
from ..runs.room import d_mlp_of, sizes_of
from ..sites import Site
from ..tasks.marks import is_marked
from ..tasks.metrics import Metric, MetricFunction
from ..tasks.task import Task
from .execute import Baselines, Chunk, Done, GivenRows, can_step
from .grids import PATCHABLE, Neurons, effect_of
from .memory import fit, tail_of
from .result import Direction, Effect, Effects, check_direction
from .screen import ScreenedEffects, check_shares, run_screen
from .sides import Share, host_pairs
from .sweep import Grid, Sweep, Tricks
from .units import OPERATION, Blocks
from .words import build_named, find_named

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RESULT = "effects.safetensors"
"""The file of the finished sweep in its checkpoint."""


# fmt: off
@overload
def patch(
    model: TransformerBridge, task: Task, sites: Sequence[str | Site], *, direction: str = ...,
    positions: str | None = ...,
    neurons: Neurons | None = ..., metrics: Sequence[str | Metric | MetricFunction] | None = ..., screen: None = None,
    verify_top: float = ..., verify_random: float = ..., memory_budget: MemoryBudget | None = ...,
    checkpoint: str | Path | None = ...,
    tricks: Tricks | None = ..., progress: Progress | None = ...,
) -> Effects: ...
@overload
def patch(
    model: TransformerBridge, task: Task, sites: Sequence[str | Site], *, direction: str = ...,
    positions: str | None = ...,
    neurons: Neurons | None = ..., metrics: Sequence[str | Metric | MetricFunction] | None = ...,
    screen: str | Composite,
    verify_top: float = ..., verify_random: float = ..., memory_budget: MemoryBudget | None = ...,
    checkpoint: str | Path | None = ...,
    tricks: Tricks | None = ..., progress: Progress | None = ...,
) -> ScreenedEffects: ...
# fmt: on
@borrows
def patch(
    model: TransformerBridge,
    task: Task,
    sites: Sequence[str | Site],
    *,
    direction: str = "denoise",
    positions: str | None = None,
    neurons: Neurons | None = None,
    metrics: Sequence[str | Metric | MetricFunction] | None = None,
    screen: str | Composite | None = None,
    verify_top: float = 0.05,
    verify_random: float = 0.01,
    memory_budget: MemoryBudget | None = None,
    checkpoint: str | Path | None = None,
    tricks: Tricks | None = None,
    progress: Progress | None = None,
) -> Effects | ScreenedEffects:
    """Measure the effect of patching every (layer, position) or (layer, head) of the given sites.

    `sites`: kinds (``"resid_pre"``), or places in words (``"a3.h1"``, ``"resid_pre.5@END"``, ``"m3.n17"``; see
    `mechwork.names`): the result then has only their entries on each axis, and NaN where no word names a cell.

    `positions`: ``"each"`` (token positions; spans when prompts differ in length), ``"spans"``, or ``"all"`` (every
    position at once). By default residual kinds are resolved by position and per-head kinds patched at all positions.
    For ``pattern`` and ``attn_scores`` positions are the queries'. `neurons` (``{3: [17, (4, 5)]}``) patches single
    neurons and groups of them at ``mlp_post``.

    `metrics`: several at once instead of the task's own; ``effects.under(name)`` has the others. `screen` (rules of
    `attribute`, e.g. ``"relp"``): estimate every cell, measure only the share `verify_top` of largest estimates and a
    random share `verify_random` of the rest; gives `ScreenedEffects`. `memory_budget`: what the sweep may take beside
    the weights, as bytes or ``"2GB"``. `checkpoint`: a folder in which finished chunks are kept, so that an interrupted
    sweep, called again, goes on
    where it was and gives the same numbers. `tricks`: what the engine may save (default: all).

    Returns effects ``[layer, pos]``, or ``[layer, head]`` / ``[layer, pos, head]`` for per-head kinds, per pair and
    averaged; ``[neuron]`` / ``[neuron, pos]`` for `neurons`, ``[pos]`` for ``embed``.
    Cost: 2 forwards, and per cell the blocks from the patched one on, at the positions from the patched one on.

    Raises `InputError` for an unknown or missing site, a model in training mode, tokens of another model or a budget
    too small for one cell, `ArtefactError` for a checkpoint of another sweep, all before any forward of the sweep; and
    `MetricError` for a metric that is not finite.

    >>> effects = patch(model, task, ["resid_pre"])
    >>> effects["resid_pre"].axes
    ('layer', 'pos')
    """
    check_shares(verify_top, verify_random)
    if screen is not None:
        find_composite(screen)
        named = find_named(sites)
        if neurons is not None or not named.whole or not set(named.kinds) <= set(PATCHABLE):
            raise InputError(
                f"whole kinds can be screened: {', '.join(PATCHABLE)}; leave screen out for {list(sites)} or neurons"
            )
    task.pairs.require_corrupt()
    job = plan_sweep(
        model,
        task,
        sites,
        direction=direction,
        positions=positions,
        neurons=neurons,
        metrics=metrics,
        memory_budget=memory_budget,
        tricks=tricks,
    )
    if screen is None:
        return job.run(checkpoint=checkpoint, progress=progress)
    return run_screen(
        job, job.sweep.kinds, screen, verify_top, verify_random, positions, checkpoint=checkpoint, progress=progress
    )


@dataclass(frozen=True, eq=False)
class Job:
    """A sweep with the model and the task it is for; `share` is what of the donor is put in (None: all of it).

    `given` says what is put in instead of the donor's activations, and `about` is what the provenance says of it.
    `operation`, `settings` and `data` are from which another process builds it (see `execute.operations`).
    """

    model: TransformerBridge
    task: Task
    anatomy: ModelAnatomy
    metrics: tuple[Metric, ...]
    sweep: Sweep
    direction: Direction
    places: dict[str, Bool[Tensor, "place batch pos"]]
    share: Share | None = None
    given: GivenRows | None = None
    about: Provenance = field(default_factory=dict)
    operation: str = OPERATION
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Tensors] = field(default_factory=dict)

    @property
    def work(self) -> Work:
        """The sweep as pure data."""
        facts, tensors = pack_task(self.task)
        why = "what it puts in is a function of this process; use forked workers"
        own = (self.share is not None or self.given is not None) and self.operation == OPERATION
        return Work(
            self.operation,
            ModelRef.of(self.model),
            {"sweep": self.sweep.to_json(), "task": facts, "about": self.about, **self.settings},
            {"task": tensors, "places": dict(self.places), **self.data},
            why if own else why_not_sent(self.metrics),
        )

    def run(self, *, checkpoint: str | Path | None = None, progress: Progress | None = None) -> Effects:
        """Run it, or what the checkpoint lacks of it."""
        facts: Provenance = {
            "method": "activation patching",
            "direction": self.direction,
            "model": identify_model(self.model),
            "task": self.task.provenance(),
            **self.about,
        }
        tables = Tables(self)
        with ExitStack() as stack:
            ledger = None
            if checkpoint is not None:
                plan = {"plan": self.sweep.to_json(), "model": facts["model"], "task": facts["task"], **self.about}
                identity = {**plan, **bits(device_of(self.model).type)}
                ledger = stack.enter_context(Ledger(checkpoint, identity))
            done, total = 0, len(self.sweep.cells) * len(self.task)
            for part in self._parts(tables, ledger):
                tables.put(part)
                done += len(part.cells) * (part.rows.stop - part.rows.start)
                if progress is not None:
                    progress(*_in_cells(done, total, len(self.task)), f"patching {self._what(part)}")
            effects = tables.effects(build_provenance(**facts, sweep=self._shown()))
            if ledger is not None:
                effects.save(ledger.folder / RESULT, provenance=stable(effects.provenance))
        return effects

    def _parts(self, tables: Tables, ledger: Ledger | None) -> Iterator[Done]:
        """The metrics of all cells, block by block and chunk by chunk; baselines go to `tables` at once."""
        work = self.work
        blocks = Blocks(self.model, self.task, self.sweep, self.metrics, self.places, self.share, self.given)
        unchanged: list[Done] = []
        chunks: dict[str, Chunk] = {}

        def units() -> Iterator[Unit]:
            for rows in cut(len(self.task), self.sweep.pairs_per_block or len(self.task)):
                block = blocks.at(rows)
                tables.put_baselines(block.base)
                unchanged.extend([block.unchanged] if block.same else [])
                todo = block.chunks
                del block  # or it would stay while the next one is recorded
                for chunk in todo:
                    unit = work.unit(rows, chunk.to_json())
                    chunks[unit.key] = chunk
                    yield unit

        for unit, values in run_units(work, units(), blocks.run, ledger=ledger):
            yield Done(slice(*unit.rows), chunks.pop(unit.key).cells, values["metric"])
        yield from unchanged

    def _what(self, part: Done) -> str:
        return ", ".join(dict.fromkeys(self.sweep.grids[cell.grid].kind for cell in part.cells))

    def _shown(self) -> Provenance:
        plan = self.sweep.to_json()
        return {
            **{name: plan[name] for name in ("tricks", "chunk_bytes", "pairs_per_block")},
            "metrics": list(plan["metrics"]),
        }


def _in_cells(done: int, total: int, n_pairs: int) -> tuple[int, int]:
    return done // n_pairs, total // n_pairs


class Tables:
    """Measured metrics as they come in, per grid ``[metric, batch, cell]``; NaN where nothing was measured."""

    def __init__(self, job: Job) -> None:
        n, m = len(job.task), len(job.metrics)
        dtype = dtype_of(job.model)
        self.job = job
        self.values = [torch.full((m, n, grid.n_cells), torch.nan, dtype=dtype) for grid in job.sweep.grids]
        self.host = torch.full((m, n), torch.nan, dtype=dtype)
        self.donor = torch.full((m, n), torch.nan, dtype=dtype)

    def put_baselines(self, part: Baselines) -> None:
        self.host[:, part.rows], self.donor[:, part.rows] = part.host.cpu(), part.donor.cpu()

    def put(self, part: Done) -> None:
        values = part.values.cpu()
        for number, table in enumerate(self.values):
            mine = [i for i, cell in enumerate(part.cells) if cell.grid == number]
            if mine:
                table[:, part.rows, [part.cells[i].index for i in mine]] = values[:, :, mine]

    def effects(self, provenance: Provenance) -> Effects:
        """The results, the first metric's in front."""
        by_metric = [
            {grid.kind: self._effect(number, grid, m, provenance) for number, grid in enumerate(self.job.sweep.grids)}
            for m in range(len(self.job.metrics))
        ]
        names = [metric.name for metric in self.job.metrics]
        others = {name: Effects(kinds) for name, kinds in zip(names[1:], by_metric[1:], strict=True)}
        return Effects(by_metric[0], others)

    def _effect(self, number: int, grid: Grid, m: int, provenance: Provenance) -> Effect:
        denoise = self.job.direction == "denoise"
        clean, corrupt = (self.donor[m], self.host[m]) if denoise else (self.host[m], self.donor[m])
        per_question = self.job.task.pairs.per_question
        change = per_question(self.values[number][m] - self.host[m][:, None])
        return effect_of(
            grid,
            change if denoise else -change,
            Baseline(clean, corrupt).by(per_question),
            self.job.direction,
            self.job.metrics[m].name,
            provenance,
            estimated=False,
        )


def plan_sweep(
    model: TransformerBridge,
    task: Task,
    sites: Sequence[str | Site],
    *,
    direction: str = "denoise",
    positions: str | None = None,
    neurons: Neurons | None = None,
    metrics: Sequence[str | Metric | MetricFunction] | None = None,
    memory_budget: MemoryBudget | None = None,
    tricks: Tricks | None = None,
) -> Job:
    """The sweep that `patch` runs, with everything refused that can be refused before. Cost: 2 forwards of one pair.

    Without `tricks`, all of them, but whole forwards for a model whose blocks cannot be stepped through.
    """
    checked = check_direction(direction)
    anatomy = check_task(model, task)
    task, measures = with_metrics(model, task, metrics)
    pairs = host_pairs(task.pairs, checked)
    grids, places, only = build_named(anatomy, d_mlp_of(model), task, pairs, sites, positions, neurons)
    steps = not is_marked(pairs.clean_tokens) and can_step(model, task, checked)
    chosen = tricks or (Tricks() if steps else Tricks(suffix=False, readout=False))
    n_tail = tail_of(pairs, measures, sparing=chosen.readout)
    sizes = sizes_of(anatomy, d_mlp_of(model), pairs, n_tail, torch.finfo(dtype_of(model)).bits // 8)
    logits = 0 if chosen.readout and all(m.reads_answers for m in measures) else sizes.n_tail
    block, chunk = fit(sizes, [grid.kind for grid in grids], len(task), memory_budget, logits, device_of(model).type)
    sweep = Sweep(
        grids, checked, tuple(m.name for m in measures), chosen, chunk, 0 if block == len(task) else block, only
    )
    return Job(model, task, anatomy, measures, sweep, checked, places)


def with_metrics(
    model: TransformerBridge, task: Task, metrics: Sequence[str | Metric | MetricFunction] | None
) -> tuple[Task, tuple[Metric, ...]]:
    """The task with the first metric, and all of them; pairs carry what a metric needs (kl_divergence: 1 forward)."""
    if metrics is None:
        return task, (task.metric,)
    if isinstance(metrics, str) or not metrics:
        raise InputError(f"metrics is a list, e.g. ['logit_difference', 'kl_divergence']; got {metrics!r}")
    tasks: list[Task] = []
    for metric in metrics:
        tasks.append((tasks[-1] if tasks else task).with_metric(metric, model))
    found = tuple(one.metric for one in tasks)
    if len({metric.name for metric in found}) != len(found):
        raise InputError(f"metrics must have different names; got {', '.join(metric.name for metric in found)}")
    return replace(tasks[-1], metric=found[0]), found
