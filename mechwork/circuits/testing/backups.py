"""Backups: what takes over when a head of the circuit is ablated, found by measuring and added to the circuit.

    found = complete_with_backups(model, task, circuit)
    print(found)                 # who backs up whom, and how much more alike circuit and model react now
    found.completed              # the circuit with them

A head b backs up h when losing b costs more without h than with it, over pairs (M is the whole model, m the metric):

    takes over = [m(M - h) - m(M - h - b)] - [m(M) - m(M - b)],    in shares of m(M) - m(empty)

significant by sign flips, corrected over all (h, b) by Benjamini and Hochberg. A circuit found with h at work cannot
contain such b (Wang et al. 2022; CoAx, arXiv:2607.01940): the completed circuit has every edge between them and its
nodes. Judge: incompleteness |m(C - h) - m(M - h)| / |m(M) - m(empty)| before and after. Ablated by the mean or zero:
in the paired corrupt run the head that is cut still writes, and may hold its backup down. Cost per batch of pairs:
1 forward (about 1.5 plain ones) per pair of head and later head, and 4 per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import InputError, UnknownNameError
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table, table_rows
from ...shapes import EdgeMask
from ...statistics import benjamini_hochberg, bootstrap_interval, sign_flip_p
from ...tasks.task import Task
from ..graph.ablated import ABLATIONS
from ..graph.circuit import Circuit
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from .completeness import without_node
from .curves import faithfulness
from .evaluate import EvaluationSettings, measure_circuits

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class TakeOver:
    """How much of the gap `backup` takes over when `head` is ablated."""

    head: str
    backup: str
    share: float
    share_interval: tuple[float, float]
    p: float
    q: float


@dataclass(frozen=True)
class Reaction:
    """What losing a head costs the model and the circuit (shares of the gap), and how unlike they are, before and
    after.
    """

    head: str
    model_drop: float
    circuit_drop: float
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class BackupCompletion(Result):
    """Who backs up whom (significant ones, strongest first), and the circuit without and with them."""

    rows: tuple[TakeOver, ...]
    reactions: tuple[Reaction, ...]
    circuit: Circuit
    completed: Circuit
    faithfulness: tuple[float, float]
    n_tested: int
    provenance: Provenance

    @property
    def backups(self) -> tuple[str, ...]:
        """The heads that were added, strongest first."""
        return tuple(dict.fromkeys(row.backup for row in self.rows))

    def _table(self) -> Table:
        """One row per head and backup."""
        return table_rows(self.rows)

    def __str__(self) -> str:
        lines = [
            (
                f"{len(self.backups)} backups of {len(self.reactions)} heads ({self.n_tested} pairs of heads tested); "
                f"edges {self.circuit.n_edges} -> {self.completed.n_edges}, faithfulness {self.faithfulness[0]:.3f} -> "
                f"{self.faithfulness[1]:.3f}"
            ),
            f"{'ablated':<9}{'model loses':>12}{'circuit loses':>15}{'incompleteness':>16}  backups",
        ]
        for r in self.reactions:
            said = ", ".join(f"{row.backup} +{row.share:.2f}" for row in self.rows if row.head == r.head)
            change = f"{r.before:.3f} -> {r.after:.3f}"
            lines.append(f"{r.head:<9}{r.model_drop:12.3f}{r.circuit_drop:15.3f}{change:>16}  {said}")
        return "\n".join(lines)

    __repr__ = __str__


@borrows
def complete_with_backups(
    model: TransformerBridge,
    task: Task,
    circuit: Circuit,
    heads: Sequence[str] | None = None,
    *,
    ablation: str = "mean",
    level: float = 0.05,
    least: float = 0.02,
    seed: int = 0,
    source: Task | None = None,
    progress: Progress | None = None,
) -> BackupCompletion:
    """Find the backups of `heads` (default: all heads of the circuit) and add them.

    `least`: a backup takes over at least this share of the gap. Raises `InputError` for a circuit of another graph or
    without heads, a head that is not in it, fewer than 6 pairs; `MetricError` when there is no gap.

    >>> complete_with_backups(model, task, circuit).backups
    """
    space = edge_space(model, task, **circuit.space.splits, aligned=None)
    if circuit.space != space:
        raise InputError(f"the circuit belongs to another graph, {circuit.space}; this model's is {space}")
    if ablation not in ABLATIONS:
        raise UnknownNameError("ablation", ablation, ABLATIONS)
    own = [node for node in circuit.nodes if node.startswith("a")]
    for head in heads or ():
        if head not in own:
            raise UnknownNameError("head of the circuit", head, own)
    names = list(heads or own)
    if not names:
        raise InputError("the circuit has no heads whose backups could be looked for")
    if len(task) < 6:
        raise InputError(f"backups are told from chance on at least 6 pairs; got {len(task)}. Give more.")
    settings = EvaluationSettings(ablation, seed=seed, source=source, progress=progress)
    whole, empty = space.mask, torch.zeros_like(space.mask)
    later = {head: _later_heads(space, head) for head in names}
    candidates = list(dict.fromkeys(b for found in later.values() for b in found))
    masks: dict[tuple[str, ...], EdgeMask] = {("M",): whole, ("E",): empty, ("C",): circuit.mask}
    masks |= {("M", b): without_node(space, whole, b) for b in candidates}
    for head in names:
        masks["M", head] = gone = without_node(space, whole, head)
        masks["C", head] = without_node(space, circuit.mask, head)
        masks |= {("M", head, b): without_node(space, gone, b) for b in later[head]}
    found = measure_circuits(model, task, space, list(masks.values()), settings).metric.double()
    m = dict(zip(masks, found, strict=True))
    gap = float((m["M",] - m["E",]).mean())
    faithfulness(m["C",], m["E",], m["M",])  # refuses when undefined
    pairs = [(head, b) for head in names for b in later[head]]
    rows: tuple[TakeOver, ...] = ()
    if pairs:
        over = torch.stack([(m["M", h] - m["M", h, b]) - (m["M",] - m["M", b]) for h, b in pairs], dim=1)
        over = over if gap > 0 else -over
        p = sign_flip_p(over, n=4999, seed=seed, alternative="greater")
        q, ends = benjamini_hochberg(p), bootstrap_interval(over / abs(gap), seed=seed)
        kept = [
            TakeOver(h, b, float(over[:, i].mean()) / abs(gap), (float(ends[0, i]), float(ends[1, i])), float(p[i]),
                     float(q[i]))
            for i, (h, b) in enumerate(pairs)
            if float(q[i]) <= level and float(over[:, i].mean()) >= least * abs(gap)
        ]  # fmt: skip
        rows = tuple(sorted(kept, key=lambda row: -row.share))
    completed = _with_nodes(circuit, list(dict.fromkeys(row.backup for row in rows)))
    again = [completed.mask, *(without_node(space, completed.mask, head) for head in names)]
    after, *without = measure_circuits(model, task, space, [whole, empty, *again], settings).metric.double()[2:]
    reactions = tuple(
        Reaction(
            head,
            float((m["M",] - m["M", head]).mean()) / gap,
            float((m["C",] - m["C", head]).mean()) / gap,
            abs(float((m["C", head] - m["M", head]).mean()) / gap),
            abs(float((row - m["M", head]).mean()) / gap),
        )
        for head, row in zip(names, without, strict=True)
    )
    both = (faithfulness(m["C",], m["E",], m["M",]), faithfulness(after, m["E",], m["M",]))
    facts = build_provenance(
        method="backup completion", ablation=ablation, level=level, least=least, seed=seed,
        model=identify_model(model), task=task.provenance(), circuit=circuit.provenance,
    )  # fmt: skip
    return BackupCompletion(rows, reactions, circuit, completed, both, len(pairs), facts)


def _later_heads(space: EdgeSpace, head: str) -> list[str]:
    """Heads of later layers: those that can see what is missing."""
    layer = space.layer_of_writer(space.writers.index(head))
    return [space.writers[row] for i in range(layer + 1, space.n_layers) for row in _rows(space.head_writers(i))]


def _rows(span: slice) -> range:
    return range(span.start, span.stop)


def _with_nodes(circuit: Circuit, nodes: Sequence[str]) -> Circuit:
    """The circuit and every edge of the graph between `nodes` and its own nodes or each other."""
    space, mask = circuit.space, circuit.mask.clone()
    rows = [space.writers.index(node) for node in nodes]
    writers = mask.any(dim=1) | (space.feeds & mask.any(dim=0)[None, :]).any(dim=1)
    writers[rows] = True
    writers[: space.n_inputs] = True
    readers = (space.feeds & writers[:, None]).any(dim=0)
    readers[space.logits_reader] = True
    for row in rows:
        mask[row] |= space.mask[row] & readers
        mask[:, space.feeds[row]] |= space.mask[:, space.feeds[row]] & writers[:, None]
    return Circuit(space, mask, None, provenance=circuit.provenance)
