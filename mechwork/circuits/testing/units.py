"""Circuit evaluation as units: some circuits on one batch of pairs.

What the circuits of a batch share (the plain run, the ablated writes) is recorded once by whoever runs them, and kept
for the next unit. Means and learned constants see the whole task: they are computed before, and travel with the work.
How many circuits make a unit follows from how many circuits and batches there are, never from the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...execute import ModelRef, Progress, Work
from ...execute.drive import run_units
from ...execute.memory import cut
from ...execute.task import pack_task, unpack_task, why_not_sent
from ...execute.unit import Run, Tensors, Unit
from ...models.anatomy import device_of, heads_share_scale
from ...models.pulse import beat
from ...runs.prefix import Prefix, record_prefix
from ...runs.record import run_to_metric
from ...shapes import EdgeMask
from ...statistics import kl_nats
from ...tasks.metrics import accuracy
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from ..graph.ablated import CutWrites, restore_ablation
from ..graph.prune import effective
from ..graph.run import AblatedWrites, as_circuit
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space, splits_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "circuits.measure"
FEWEST, UNITS = 4, 64
"""Circuits in a unit at least; units of a work at most, where batches of pairs do not make more."""


class Measured(NamedTuple):
    """Per circuit and pair (question, where one has several): the metric, whether the answer is right, and
    KL(model ‖ circuit) at the answer (mean over its tokens) in nats.
    """

    metric: Float[Tensor, "circuit batch"]
    correct: Float[Tensor, "circuit batch"]
    kl: Float[Tensor, "circuit batch"]


def run_circuits(
    model: TransformerBridge,
    task: Task,
    space: EdgeSpace,
    masks: Sequence[EdgeMask],
    ablation: CutWrites,
    n_pairs: int,
    seed: int,
    progress: Progress | None,
    shared: SharedRuns | None = None,
) -> Measured:
    """Every circuit on every pair, `n_pairs` at a time; `seed` is the ablation's."""
    facts, tensors = pack_task(task)
    settings = {"task": facts, "ablation": ablation.kind, **space.splits, "seed": seed}
    constant = {} if ablation.constant is None else {"ablated": {"constant": ablation.constant}}
    data = {"task": tensors, "circuits": {"edges": pack_masks(space, masks)}, **constant}
    work = Work(OPERATION, ModelRef.of(model), settings, data, why_not_sent([task.metric]))
    batches = cut(len(task), n_pairs)
    groups = cut(len(masks), max(FEWEST, -(-len(masks) * len(batches) // UNITS)))
    units = (work.unit(rows, [group.start, group.stop]) for rows in batches for group in groups)
    found: dict[str, list[list[Tensor]]] = {name: [[] for _ in batches] for name in Measured._fields}
    done, bench = 0, CircuitBench(model, task, space, masks, ablation, shared or SharedRuns())
    for unit, values in run_units(work, units, bench.run):
        for name, parts in found.items():
            parts[unit.rows[0] // n_pairs].append(values[name])
        done += len(values["metric"])
        if progress is not None:
            progress(done, len(masks) * len(batches), "evaluating circuits")
    return Measured(*(torch.cat([torch.cat(part) for part in parts], dim=1) for parts in found.values()))


def pack_masks(space: EdgeSpace, masks: Sequence[EdgeMask]) -> Tensor:
    """A bit per edge of the graph, ``[circuit, byte]``."""
    places, rows = space.mask.flatten().nonzero().flatten(), []
    for mask in masks:
        beat()
        rows.append(np.packbits(mask.flatten()[places].cpu().numpy()))
    return torch.from_numpy(np.stack(rows))


def unpack_masks(space: EdgeSpace, packed: Tensor) -> list[EdgeMask]:
    """What `pack_masks` packed."""
    bits = torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=space.n_edges)).bool()
    masks = []
    for row in bits:
        mask = torch.zeros_like(space.mask)
        mask[space.mask] = row
        masks.append(mask)
    return masks


def build(model: TransformerBridge, work: Work) -> Run:
    """What runs the units in a process that has the work's data and the model alone."""
    says = work.settings
    task = unpack_task(says["task"], work.data["task"])
    space = edge_space(model, task, **splits_of(says))
    constant = work.data["ablated"]["constant"].to(device_of(model)) if "ablated" in work.data else None
    ablation = restore_ablation(model, task, space, says["ablation"], constant, seed=says["seed"])
    return CircuitBench(model, task, space, unpack_masks(space, work.data["circuits"]["edges"]), ablation).run


@dataclass(frozen=True, eq=False)
class PairBatch:
    """What all circuits share on some pairs."""

    rows: tuple[int, int]
    pairs: PromptPairs
    prefix: Prefix | None
    plain: Float[Tensor, "batch tail d_vocab"]
    reference: Float[Tensor, "batch column d_vocab"]
    ablated: AblatedWrites


@dataclass(eq=False)
class SharedRuns:
    """The shared runs of the batch that was last run. Whoever measures again and again, on the same pairs under the
    same ablation, hands the same one over, and they are not recorded again.
    """

    last: PairBatch | None = None


@dataclass(eq=False)
class CircuitBench:
    """Runs circuits; the shared runs of the last batch are kept.

    The full circuit is the model, and the empty one, where cut edges carry one other run, that run.
    """

    model: TransformerBridge
    task: Task
    space: EdgeSpace
    masks: Sequence[EdgeMask]
    ablation: CutWrites
    shared: SharedRuns = field(default_factory=SharedRuns)
    _whole: Tensor | None = field(default=None, init=False)

    def run(self, unit: Unit) -> Tensors:
        """Metric, correctness and KL ``[circuit, batch]`` of a unit's circuits. Cost: 1 forward each, and 2 with a
        batch's first.
        """
        batch, (first, last) = self._batch(unit.rows), unit.says
        rows: dict[str, list[Tensor]] = {name: [] for name in Measured._fields}
        for mask in self.masks[first:last]:
            logits = self._logits(batch, mask)
            found = batch.pairs.read(logits).log_softmax(dim=-1)
            rows["metric"].append(self.task.measure(logits, batch.pairs).cpu())
            rows["correct"].append(accuracy(logits, batch.pairs).cpu().float())
            rows["kl"].append(kl_nats(batch.reference, found).mean(dim=1).cpu())
        return {name: torch.stack(found) for name, found in rows.items()}

    def _batch(self, rows: tuple[int, int]) -> PairBatch:
        if self.shared.last is None or self.shared.last.rows != rows:
            self.shared.last = None  # before the next is recorded: memory holds one batch
            pairs = self.task.pairs[slice(*rows)].to(device_of(self.model))
            prefix = record_prefix(self.model, self.task, pairs) if self.ablation.shares_prefix else None
            plain = run_to_metric(self.model, self.task, pairs, pairs.clean_tokens, prefix)
            reference = pairs.read(plain).log_softmax(dim=-1)
            after, writes = self.ablation.after, self.ablation.writes
            ablated = writes(pairs, rows[0]) if after is None else after(pairs, prefix)
            self.shared.last = PairBatch(rows, pairs, prefix, plain, reference, ablated)
        return self.shared.last

    def _logits(self, batch: PairBatch, mask: EdgeMask) -> Float[Tensor, "batch tail d_vocab"]:
        if torch.equal(mask, self.whole):
            return batch.plain
        pairs, prefix = batch.pairs, batch.prefix
        if self.ablation.kind == "corrupt" and self.paired and not bool(mask.any()):
            return run_to_metric(self.model, self.task, pairs, pairs.corrupt_tokens, prefix)
        with torch.no_grad(), as_circuit(self.model, self.space, mask, batch.ablated):
            return run_to_metric(self.model, self.task, pairs, pairs.clean_tokens, prefix)

    @property
    def whole(self) -> EdgeMask:
        """The full circuit as `prune.effective` leaves it."""
        if self._whole is None:
            coupled = tuple(heads_share_scale(self.model, layer) for layer in range(self.space.n_layers))
            self._whole = effective(self.space, self.space.mask, coupled, paired=self.paired)
        return self._whole

    @property
    def paired(self) -> bool:
        """Whether a circuit without edges computes one other run."""
        return self.ablation.paired and (self.ablation.kind != "corrupt" or self.task.pairs.aligned)
