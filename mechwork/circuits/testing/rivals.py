"""Rivals: further circuits that do the same with other edges, and where each still works.

    rivals = find_rivals(model, task, circuit, n=2)
    print(rivals)             # overlap with the first beside chance, faithfulness per ablation and template

A rival is a learned mask (see `learned`) of the circuit's size whose gates also pay for the edges of all circuits
before it: loss + `penalty` x mean P(z > 0) over those edges. When rivals of equal faithfulness share few edges, the
circuit is one answer of several (arXiv:2605.12671); what then tells them apart is whether they hold under other
ablations and on each template (arXiv:2606.06267). Faithfulness is on held-out pairs; intervals are bootstrapped.
Cost: `n_steps` (forward + backward) of a circuit per rival, and a forward per circuit and ablation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import InputError, UnknownNameError, check_whole
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...tasks.task import Task
from ..graph.ablated import ABLATIONS
from ..graph.circuit import Circuit
from ..search.learned import learn_circuit
from .curves import bootstrap_faithfulness, faithfulness
from .evaluate import EvaluationSettings, measure_circuits

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FEWEST = 4
"""Pairs of a template below which it is left out."""


@dataclass(frozen=True)
class RivalRow:
    """One circuit under one ablation on one part of the held-out pairs (``"all"``, or a template)."""

    circuit: str
    ablation: str
    pairs: str
    n_pairs: int
    faithfulness: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Rivals(Result):
    """The circuit (``"given"``), then its rivals. `overlaps`: each rival's Jaccard index of edges with the given one,
    `chance` what two random circuits of those sizes have.
    """

    circuits: dict[str, Circuit]
    overlaps: dict[str, float]
    chance: dict[str, float]
    rows: tuple[RivalRow, ...]
    provenance: Provenance

    def faithfulness(self, circuit: str, ablation: str = "corrupt", pairs: str = "all") -> float:
        """Of one circuit; raises `UnknownNameError` where it was not measured."""
        found = {(row.circuit, row.ablation, row.pairs): row.faithfulness for row in self.rows}
        if (circuit, ablation, pairs) not in found:
            raise UnknownNameError("measurement", f"{circuit}, {ablation}, {pairs}", map(", ".join, found))
        return found[circuit, ablation, pairs]

    def equal(self, margin: float = 0.1) -> tuple[str, ...]:
        """Rivals at least as faithful as the given circuit less `margin`, and not beyond 1 + margin where it is not."""
        off = {r.circuit: abs(1 - r.faithfulness) for r in self.rows if (r.ablation, r.pairs) == ("corrupt", "all")}
        return tuple(n for n in self.overlaps if n in off and off[n] <= off.get("given", -1.0) + margin)

    def _table(self) -> Table:
        """One row per circuit, ablation and part of the pairs."""
        return [vars(row) for row in self.rows]

    def __str__(self) -> str:
        lines = [f"{'circuit':<10}{'edges':>6}{'overlap':>9}{'chance':>8}  faithfulness on all pairs, per ablation"]
        for name, circuit in self.circuits.items():
            here = [row for row in self.rows if row.circuit == name and row.pairs == "all"]
            said = ", ".join(f"{r.ablation} {r.faithfulness:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in here)
            shared = f"{self.overlaps[name]:9.3f}{self.chance[name]:8.3f}" if name in self.overlaps else " " * 17
            lines.append(f"{name:<10}{circuit.n_edges:>6}{shared}  {said}")
            parts = [row for row in self.rows if row.circuit == name and row.pairs != "all"]
            if parts:
                worst = min(parts, key=lambda row: row.faithfulness)
                lines.append(
                    f"{'':<10}least on a template ({worst.ablation}): {worst.faithfulness:.3f} of {worst.n_pairs} pairs"
                )
        found = ", ".join(self.equal()) or "none"
        return "\n".join([*lines, f"as faithful as the given one (within .1): {found}"])

    __repr__ = __str__


@borrows
def find_rivals(
    model: TransformerBridge,
    task: Task,
    circuit: Circuit,
    *,
    n: int = 2,
    penalty: float = 10.0,
    ablations: Sequence[str] = ("corrupt", "mean"),
    n_steps: int = 200,
    batch_size: int = 16,
    rate: float = 0.1,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Rivals:
    """`n` further circuits of the size of `circuit`, each with few edges of those before it, and how all of them do.

    Learned on the training pairs under ``corrupt`` ablation, tested on the held-out ones. Means come from the training
    pairs. `batch_size` pairs a step; with `checkpoint` (a folder) an interrupted run goes on where it was, to the same
    circuits. Raises `InputError` for an empty circuit or the whole model, an unknown ablation, a penalty below 0.

    >>> find_rivals(model, task, circuit, n=2).overlaps
    """
    check_whole("n", n, least=1)
    if penalty < 0:
        raise InputError(f"the penalty of shared edges is at least 0; got {penalty}")
    if not 0 < circuit.n_edges < circuit.space.n_edges:
        raise InputError(
            f"rivals have a circuit's size and other edges: it has some of the {circuit.space.n_edges} edges, not all; "
            f"got {circuit.n_edges}"
        )
    for name in ablations:
        if name not in ABLATIONS:
            raise UnknownNameError("ablation", name, ABLATIONS)
    train, test = task.train, task.test
    circuits = {"given": circuit}
    for i in range(n):
        place = None if checkpoint is None else Path(checkpoint) / f"rival-{i + 1}.safetensors"
        circuits[f"rival {i + 1}"] = learn_circuit(
            model, train, circuit.n_edges, n_steps=n_steps, batch_size=batch_size, rate=rate, checkpoint=place,
            avoid=list(circuits.values()), penalty=penalty, seed=seed + i,
            progress=_after(progress, i * n_steps, n * n_steps),
        )  # fmt: skip
    rows: list[RivalRow] = []
    space = circuit.space
    masks = [space.mask, torch.zeros_like(space.mask), *(one.mask for one in circuits.values())]
    parts = _parts(test)
    for ablation in ablations:
        source = None if ablation == "corrupt" else train
        settings = EvaluationSettings(ablation, seed=seed, source=source)
        whole, empty, *found = measure_circuits(model, test, space, masks, settings).metric
        for name, metric in zip(circuits, found, strict=True):
            for label, index in parts.items():
                c, e, m = metric[index], empty[index], whole[index]
                low, high = bootstrap_faithfulness(c, e, m, seed=seed)
                rows.append(RivalRow(name, ablation, label, len(index), faithfulness(c, e, m), low, high))
    others = {name: one for name, one in circuits.items() if name != "given"}
    return Rivals(
        circuits,
        {name: circuit.overlap(one) for name, one in others.items()},
        {name: circuit.expected_overlap(one) for name, one in others.items()},
        tuple(rows),
        build_provenance(
            method="rivals", penalty=penalty, n_steps=n_steps, batch_size=batch_size, seed=seed,
            model=identify_model(model), task=task.provenance(), circuit=circuit.provenance,
        ),
    )  # fmt: skip


def _after(progress: Progress | None, done: int, of: int) -> Progress | None:
    """The steps of one circuit as part of all circuits'."""
    return progress and (lambda step, _, _what: progress(done + step, of, "learning rivals"))


def _parts(task: Task) -> dict[str, list[int]]:
    """All questions, and those of each template with enough of them."""
    n = len(task) // task.pairs.n_per_question
    names = task.pairs.templates[:: task.pairs.n_per_question]
    found = {"all": list(range(n))}
    for name in dict.fromkeys(names):
        rows = [i for i, template in enumerate(names) if template == name]
        if FEWEST <= len(rows) < n:
            found[name] = rows
    return found
