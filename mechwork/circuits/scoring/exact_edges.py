"""Measured effects of single edges: one run per edge, batched over edges and restarted at the reader's layer.

    noise:   effect = m(clean) - m(clean run in which the edge alone carries the ablated write)
    denoise: effect = m(corrupt run in which the edge alone carries the clean write) - m(corrupt)

Positive = the clean value along the edge raises the metric, in both directions. This is what edge attribution patching
and its relatives estimate (Syed et al. 2023, eq. 1; the sum over positions is inside the run). With one edge changed,
nothing before its reader differs from the unpatched run, so the reader simply sees the stream plus (other write - own
write) of the source.

Cost: 2 forwards, and for every edge the blocks from its reader's layer on, for all pairs: exact, and slow on large
graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError, UnknownNameError
from ...execute import ModelRef, Progress, Unit, Work
from ...execute.drive import run_units
from ...execute.task import pack_task, unpack_task, why_not_sent
from ...execute.unit import Run as RunUnit
from ...execute.unit import Tensors
from ...models.anatomy import block_norm, device_of, mlp_norm_name
from ...models.borrow import borrows, hooked
from ...models.identity import identify_model
from ...patching.result import Direction, check_direction
from ...patching.sides import host_pairs
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...runs.record import Run, record_run, run_to_metric
from ...runs.restart import restart_at
from ...shapes import EdgeMatrix
from ...sites import Site, hook_name
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space, record_writers, splits_of, stream_kinds, writer_kinds

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


ABLATIONS = ("corrupt", "zero", "mean")

OPERATION = "edges.exact"
ROWS_PER_RUN = 512
"""How many copies of a prompt go through one forward pass."""


@dataclass(frozen=True, eq=False)
class EdgeEffects(Result, strongest="effect"):
    """Measured effects of every edge, ``[batch, writer, reader]``, zero where there is no edge; `values` is the mean.

    Positive = the clean value along the edge raises the metric. `ablation` says what the edge carried instead.
    """

    space: EdgeSpace
    per_example: Float[Tensor, "batch writer reader"]
    direction: Direction
    ablation: str
    metric_name: str
    provenance: Provenance

    @property
    def values(self) -> EdgeMatrix:
        """Mean effect over pairs, in units of the metric."""
        return self.per_example.mean(dim=0)

    @property
    def magnitude(self) -> EdgeMatrix:
        """Mean over pairs of the absolute effect: zero only for edges that change no pair."""
        return self.per_example.abs().mean(dim=0)

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` edges of largest absolute mean effect, strongest first."""
        flat = self.values.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.space.edge_name(*divmod(i, self.space.n_readers)), float(flat[i])) for i in order]

    def _table(self) -> Table:
        """One row per edge, strongest first."""
        mask = self.space.mask
        columns = {"effect": self.values[mask].tolist(), "magnitude": self.magnitude[mask].tolist()}
        return {**self.space.ends(), **columns}


@borrows
def measure_edges(
    model: TransformerBridge,
    task: Task,
    *,
    ablation: str = "corrupt",
    direction: str = "noise",
    split_input: bool = False,
    split_experts: bool = False,
    progress: Progress | None = None,
) -> EdgeEffects:
    """The effect of every single edge, measured. `ablation` is ``"corrupt"``, ``"zero"`` or ``"mean"``; `split_input`
    and `split_experts` as in `score_edges`.

    Zero and mean ablations have no denoising direction: there is no run in which everything is ablated to begin with.

    Raises `InputError` for prompts of unequal length within a pair, `UnknownNameError` for another ablation; both
    before any forward pass.

    >>> effects = measure_edges(model, task, direction="denoise")
    >>> effects.top(3)
    """
    direction = check_direction(direction)
    if ablation not in ABLATIONS:
        raise UnknownNameError("ablation", ablation, ABLATIONS)
    if ablation != "corrupt" and direction == "denoise":
        raise InputError(f"{ablation} ablation replaces values of the clean run: use direction='noise'")
    space = edge_space(model, task, split_input=split_input, split_experts=split_experts)
    sweep = record_sweep(model, task, space, ablation, direction)
    facts, tensors = pack_task(task)
    settings = {"task": facts, "ablation": ablation, "direction": direction, **space.splits}
    work = Work(OPERATION, ModelRef.of(model), settings, {"task": tensors}, why_not_sent([task.metric]))
    effects = torch.zeros(len(task), space.n_writers, space.n_readers, dtype=sweep.delta.dtype)
    reference = task.measure(sweep.host.logits, sweep.pairs).detach().cpu()
    rows = slice(0, len(task))
    for unit, found in run_units(work, (work.unit(rows, column) for column in range(space.n_readers)), sweep.measured):
        column = unit.says
        change = found["metric"] - reference[:, None]
        effects[:, : int(space.n_seen[column]), column] = (change if direction == "denoise" else -change).to(effects)
        if progress is not None:
            progress(column + 1, space.n_readers, "measuring edges")
    provenance = build_provenance(
        method="measured edges",
        ablation=ablation,
        direction=direction,
        model=identify_model(model),
        task=task.provenance(),
    )
    return EdgeEffects(space, task.pairs.per_question(effects), direction, ablation, task.metric.name, provenance)


def record_sweep(
    model: TransformerBridge, task: Task, space: EdgeSpace, ablation: str, direction: Direction
) -> EdgeSweep:
    """The unpatched run, and what every edge would carry more. Cost: 1 forward, and 1 for corrupt ablation."""
    pairs = host_pairs(task.pairs, direction).to(device_of(model))
    kinds = list(dict.fromkeys([*writer_kinds(space), *stream_kinds(space), "resid_post"]))
    host = record_run(model, pairs, kinds, n_tail=pairs.n_tail if task.metric.reads_final else None)
    own = record_writers(model, space, host)
    if ablation == "corrupt":
        other = record_writers(model, space, record_run(model, pairs, kinds, corrupt=True, n_tail=1))
    elif ablation == "zero":
        other = torch.zeros_like(own)
    else:
        counts = pairs.mask.to(own)
        other = (torch.einsum("wbpd,bp->wd", own, counts) / counts.sum())[:, None, None, :].expand_as(own)
    return EdgeSweep(model, task, pairs, space, host, other - own)


def build(model: TransformerBridge, work: Work) -> RunUnit:
    """What runs the units, a reader each, in a process that has the work's data and the model alone."""
    says, task = work.settings, unpack_task(work.settings["task"], work.data["task"])
    space = edge_space(model, task, **splits_of(says))
    return record_sweep(model, task, space, says["ablation"], says["direction"]).measured


@dataclass(frozen=True, eq=False)
class EdgeSweep:
    """The unpatched run, and what each writer's edge would carry more: `delta` = other write - own write."""

    model: TransformerBridge
    task: Task
    pairs: PromptPairs
    space: EdgeSpace
    host: Run
    delta: Float[Tensor, "writer batch pos d_model"]

    def measured(self, unit: Unit) -> Tensors:
        """The metric ``[batch, writer]`` with each edge into the unit's reader changed."""
        return {"metric": self.measure(unit.says, int(self.space.n_seen[unit.says]))}

    def measure(self, column: int, n_seen: int) -> Float[Tensor, "batch writer"]:
        """The metric with the edge from each of the first `n_seen` writers to reader `column` changed, one at
        a time.
        """
        step = max(1, ROWS_PER_RUN // len(self.pairs))
        metrics = []
        for start in range(0, n_seen, step):
            rows = list(range(start, min(start + step, n_seen)))
            metrics += [self.task.measure(part, self.pairs).cpu() for part in self.run(column, rows)]
        return torch.stack(metrics, dim=1)

    def run(self, column: int, rows: list[int]) -> tuple[Tensor, ...]:
        """Logits for each writer of `rows`: copies of all pairs, one changed edge per copy, in one forward pass."""
        n = len(rows)
        layer, name, change = self._reader(column)
        delta = self.delta[rows].flatten(0, 1)

        def hook(activation: Tensor, hook: Any) -> Tensor:
            return change(activation, delta).to(activation.dtype)  # sums of halves and float32 are float32

        tokens = self.pairs.clean_tokens.repeat(n, 1)
        stream = self.host.layers["resid_pre"][layer].repeat(n, 1, 1)
        with (
            torch.no_grad(),
            restart_at(self.model, layer, stream),
            hooked(self.model, [(name, hook)]),
        ):
            return run_to_metric(self.model, self.task, self.pairs, tokens).split(len(self.pairs))

    def _reader(self, column: int) -> tuple[int, str, Callable[[Tensor, Tensor], Tensor]]:
        """The layer of a reader, where it is hooked, and its activation with something added to the stream it reads."""
        space = self.space
        if column == space.logits_reader:
            last = space.n_layers - 1
            return last, hook_name(Site("resid_post", last)), torch.add
        layer = column // space.readers_per_layer
        for kind in "qkv":
            columns = space.attention_readers(layer, kind)
            if columns.start <= column < columns.stop:
                return layer, hook_name(Site(kind, layer)), self._projected(layer, kind, column - columns.start)
        middle = "resid_pre" if space.parallel else "resid_mid"
        return layer, hook_name(Site("mlp_in", layer)), self._normed(layer, mlp_norm_name(self.model, layer), middle)

    def _normed(self, layer: int, norm_name: str, stream_kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        norm, stream = block_norm(self.model, layer, norm_name), self.host.layers[stream_kind][layer]

        def change(activation: Tensor, delta: Tensor) -> Tensor:
            x = stream.repeat(len(delta) // len(stream), 1, 1) + delta
            return (x if norm is None else norm(x)).to(activation.dtype)

        return change

    def _projected(self, layer: int, kind: str, head: int) -> Callable[[Tensor, Tensor], Tensor]:
        attn = self.model.blocks[layer].attn
        weight, bias = getattr(attn, f"W_{kind.upper()}").detach()[head], getattr(attn, f"b_{kind.upper()}")
        read = self._normed(layer, "ln1", "resid_pre")

        def change(activation: Tensor, delta: Tensor) -> Tensor:
            projected = read(activation, delta) @ weight
            changed = activation.clone()
            changed[:, :, head] = projected if bias is None else projected + bias.detach()[head]
            return changed

        return change
