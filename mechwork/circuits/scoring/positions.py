"""Edge scores resolved by position (Haklay et al. 2025, PEAP).

`score_positions`: the scores of `score_edges` before they are summed over positions, ``[span, writer, reader]``; their
sum over spans is the position-blind score, in which opposite contributions cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...patching.result import Direction
from ...provenance import Provenance, build_provenance
from ...relevance import Composite, Rule
from ...result import Result, Table
from ...runs.record import Baseline
from ...shapes import EdgeMatrix
from ...statistics import percentile_interval
from ...tasks.task import Task
from ..graph.budget import DEFAULT_BUDGET
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from .methods import Method, find_method
from .sample import Stream, Streamed
from .score import N_RESAMPLES, check_correspondence, join_baselines, plan_batches
from .units import run_batches

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class PositionScores(Result, strongest="score"):
    """Edge scores per span or position: `values` is ``[span, writer, reader]``, mean over pairs; zero where there is no
    edge.
    """

    space: EdgeSpace
    labels: tuple[str, ...]
    streamed: Streamed
    direction: Direction
    rules: str
    metric_name: str
    baseline: Baseline
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, "span writer reader"]:
        return self._unpack(self.streamed.mean)

    def standard_error(self) -> Float[Tensor, "span writer reader"]:
        """Of `values`, over pairs."""
        return self._unpack((self.streamed.variance / self.streamed.n).sqrt())

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of every score over pairs: (low, high), each ``[span, writer, reader]``.

        Raises `InputError` for scores made with ``intervals=False``.
        """
        if not len(self.streamed.resampled):
            raise InputError(
                "these scores were made without intervals; score_positions(..., intervals=True) keeps them"
            )
        low, high = percentile_interval(self.streamed.resampled, level)
        return self._unpack(low), self._unpack(high)

    def summed(self) -> EdgeMatrix:
        """Over all positions: what `score_edges` gives."""
        return self.values.sum(dim=0)

    def cancelled(self) -> EdgeMatrix:
        """Share of each edge's positional contributions that cancels in the sum: 1 - |sum| / sum of |.|, 0
        where none.
        """
        total = self.values.abs().sum(dim=0)
        return torch.where(total > 0, 1 - self.summed().abs() / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)

    def top(self, n: int = 10) -> list[tuple[str, str, float]]:
        """The `n` (span, edge, score) of largest absolute score, strongest first."""
        flat = self.values.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        cells = self.space.n_writers * self.space.n_readers
        return [
            (self.labels[i // cells], self.space.edge_name(*divmod(i % cells, self.space.n_readers)), float(flat[i]))
            for i in order
        ]

    def _table(self) -> Table:
        """One row per span and edge, strongest first."""
        n, mask = len(self.labels), self.space.mask
        ends = {name: column * n for name, column in self.space.ends().items()}
        at = [label for label in self.labels for _ in range(self.space.n_edges)]
        numbers = {"score": self.values[:, mask], "standard_error": self.standard_error()[:, mask]}
        return {"at": at, **ends, **{name: x.flatten().tolist() for name, x in numbers.items()}}

    def _unpack(self, packed: Float[Tensor, " cell"]) -> Float[Tensor, "span writer reader"]:
        full = packed.new_zeros(len(self.labels), self.space.n_writers, self.space.n_readers)
        full[:, self.space.mask] = packed.view(len(self.labels), -1)
        return full


@borrows
def score_positions(
    model: TransformerBridge,
    task: Task,
    *,
    positions: str = "each",
    preset: str | None = None,
    rules: str | Composite | Sequence[str | Rule] | None = None,
    ig_steps: int | None = None,
    path: str | None = None,
    direction: str | None = None,
    ablation: str = "corrupt",
    memory_budget: int | str = DEFAULT_BUDGET,
    intervals: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> PositionScores:
    """Edge scores by token position (``"each"``; spans when prompts differ in length) or by ``"spans"``; otherwise as
    `score_edges`. `intervals` keeps 200 bootstrap means of every score, which are most of the memory and of the file.

    Raises `InputError` for methods without positions (exact, information-flow, random) and for tasks whose prompts
    cannot be aligned; and what `score_edges` raises. Cost: that of `score_edges`; products are formed position by
    position.

    >>> score_positions(model, task.train, positions="spans", rules="gradient").top(5)
    """
    method = find_method(preset, rules=rules, ig_steps=ig_steps, path=path, direction=direction, ablation=ablation)
    if method.estimator != "coefficients":
        raise InputError(f"{method.estimator!r} has no scores by position; use a method of coefficients, e.g. 'eap'")
    space = edge_space(model, task, aligned=None)
    check_correspondence(method, task)
    turned = method.direction == "denoise" and not task.pairs.aligned
    pairs = task.pairs.corrupt_as_host() if turned else task.pairs
    names, cells = pairs.cells(positions)
    plan = plan_batches(model, task, space, method, memory_budget, None, n_cells=len(names))
    n, n_resamples = task.pairs.n_per_question, N_RESAMPLES if intervals else 0
    stream = Stream(len(task) // n, len(names) * space.n_edges, keep=False, n_resamples=n_resamples, seed=seed)
    mask, ends = space.mask, list[Baseline]()
    for unit, rows in run_batches(
        model, task, space, method, plan.n_pairs, plan.n_positions, seed, cells=cells.cpu().contiguous(),
        remade=plan.remade,
    ):  # fmt: skip
        stream.add(task.pairs.per_question(rows.values[:, :, mask.to(rows.values.device)].flatten(1)))
        ends.append(rows.baseline)
        if progress is not None:
            progress(unit.rows[1], len(task), "scoring edges by position")
    streamed = stream.streamed()
    assert streamed is not None
    return PositionScores(
        space, task.position_labels(names), streamed, method.direction, method.rules.name, task.metric.name,
        join_baselines(ends).by(task.pairs.per_question),
        position_provenance("edge scores by position", method, model, task, positions),
    )  # fmt: skip


def position_provenance(what: str, method: Method, model: TransformerBridge, task: Task, positions: str) -> Provenance:
    """Where scores by position come from."""
    return build_provenance(
        method=what, **method.to_json(), positions=positions, model=identify_model(model), task=task.provenance()
    )
