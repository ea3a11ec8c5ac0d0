"""Faithfulness of feature circuits over their size, for several rankings of the same nodes, beside random ones and the
empty one.

faithfulness(C) = (m(C) - m(empty)) / (m(M) - m(empty)), m = mean metric over the pairs, not clipped; `empty` keeps no
node, M is the whole model (Marks et al. 2024, sec. 3.2). A circuit of size n keeps the n nodes of largest absolute
score; random circuits draw among the nodes that vary between the two prompts, since the others could be kept or cut
without any difference. `area` is the mean of faithfulness over log size (trapezoid), so that small circuits count as
much as large ones; `distance` that of
|1 - faithfulness| (0 best).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..circuits.graph.writers import require_aligned
from ..circuits.testing.curves import bootstrap_faithfulness, faithfulness, resampled_faithfulness
from ..errors import InputError, MetricError
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task
from ..shapes import PerExample
from ..statistics import percentile_interval
from ..tasks.task import Task
from .circuit import measure_feature_circuits
from .feature_set import FeatureSet
from .scores import ERRORS, FeatureScores, NodeTable, mask_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SIZES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, eq=False)
class FeatureCurves(Result):
    """Metrics ``[method, size, batch]`` of circuits of the same sizes by several methods. `sizes` are those that were
    asked for and exist.
    """

    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    n_varying: int
    per_example: Float[Tensor, "method size batch"]
    random_per_example: Float[Tensor, "repeat size batch"]
    empty_per_example: PerExample
    model_per_example: PerExample
    ablation: str
    errors: str
    metric_name: str
    task_name: str
    provenance: Provenance

    def faithfulness(self, method: str) -> Float[Tensor, " size"]:
        """Of one method's circuits."""
        return self._faithfulness(self.per_example[self._index(method)])

    @property
    def random(self) -> Float[Tensor, " size"]:
        """Of random circuits of the same sizes, averaged over repeats."""
        if not len(self.random_per_example):
            return torch.full((len(self.sizes),), torch.nan, dtype=torch.float64)
        return torch.stack([self._faithfulness(repeat) for repeat in self.random_per_example]).mean(dim=0)

    def intervals(self, method: str, level: float = 0.95) -> tuple[tuple[float, float], ...]:
        """Bootstrap interval over pairs at every size."""
        return tuple(
            bootstrap_faithfulness(row, self.empty_per_example, self.model_per_example, level=level)
            for row in self.per_example[self._index(method)]
        )

    def area(self, method: str) -> float:
        """Mean faithfulness over log size."""
        return float(self._area(self.faithfulness(method)[None])[0])

    def distance(self, method: str) -> float:
        """Mean of |1 - faithfulness| over log size; 0 is best."""
        return float(self._area((1 - self.faithfulness(method)).abs()[None])[0])

    @property
    def random_area(self) -> float:
        return float(self._area(self.random[None])[0])

    def difference(
        self, method: str, other: str, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float, float]:
        """``area(method) - area(other)`` with its bootstrap interval over the same resampled pairs."""
        areas = [
            self._area(
                resampled_faithfulness(
                    self.per_example[self._index(m)], self.empty_per_example, self.model_per_example,
                    n_resamples=n_resamples, seed=seed
                )
            )
            for m in (method, other)
        ]  # fmt: skip
        low, high = percentile_interval((areas[0] - areas[1])[:, None], level)
        return self.area(method) - self.area(other), float(low), float(high)

    def _table(self) -> Table:
        """One row per method and size."""
        rows = []
        for method in self.methods:
            columns = zip(
                self.sizes,
                self.faithfulness(method).tolist(),
                self.intervals(method),
                self.random.tolist(),
                strict=True,
            )
            rows += [
                {"method": method, "n_nodes": n, "faithfulness": f, "low": low, "high": high, "random": r}
                for n, f, (low, high), r in columns
            ]
        return rows

    def __str__(self) -> str:
        head = (
            f"{self.task_name}: faithfulness of the n strongest of {self.n_varying} nodes that vary, {self.ablation} "
            f"ablation, errors {self.errors}; "
            f"{len(self.model_per_example)} pairs"
        )
        lines = [head, f"{'nodes':>7}" + "".join(f"{m:>34}" for m in self.methods) + f"{'random':>10}"]
        told = [list(zip(self.faithfulness(m).tolist(), self.intervals(m), strict=True)) for m in self.methods]
        for i, n in enumerate(self.sizes):
            cells = "".join(f"{f'{t[i][0]:.3f} [{t[i][1][0]:.3f}, {t[i][1][1]:.3f}]':>34}" for t in told)
            lines.append(f"{n:7d}{cells}{float(self.random[i]):10.3f}")
        areas = "".join(f"{self.area(m):34.3f}" for m in self.methods)
        return "\n".join([*lines, f"{'area':>7}{areas}{self.random_area:10.3f}"])

    def _index(self, method: str) -> int:
        if method not in self.methods:
            raise InputError(f"these curves are of {', '.join(self.methods)}; got {method!r}")
        return self.methods.index(method)

    def _faithfulness(self, metrics: Float[Tensor, "size batch"]) -> Float[Tensor, " size"]:
        return torch.tensor(
            [faithfulness(row, self.empty_per_example, self.model_per_example) for row in metrics], dtype=torch.float64
        )

    def _area(self, heights: Float[Tensor, "row size"]) -> Float[Tensor, " row"]:
        if len(self.sizes) == 1:
            return heights.double()[:, 0]
        x = torch.tensor(self.sizes, dtype=torch.float64).log10()
        return torch.trapezoid(heights.double(), x, dim=1) / (x[-1] - x[0])


@borrows
def evaluate_feature_circuits(
    model: TransformerBridge,
    task: Task,
    features: FeatureSet,
    scores: Mapping[str, FeatureScores],
    *,
    sizes: Sequence[int] = SIZES,
    ablation: str = "corrupt",
    errors: str = "ranked",
    n_random: int = 3,
    source: Task | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> FeatureCurves:
    """Curves of several rankings (name -> scores) on `task`, whose pairs should not be those that were scored.

    ``errors="cut"`` allows features alone, so that nothing the coders do not explain gets through. `source`: whose
    clean prompts means by position come from. Cost per batch of pairs: 2 forwards, and 1 (with every coder run once)
    per circuit.

    Raises:
        InputError: no scores, scores of other features or of another metric, sizes that are not rising or all beyond
            what varies.
        ArtefactError: features of another model.
        MetricError: the model and the empty circuit have the same metric.

    >>> curves = evaluate_feature_circuits(model, task.test, features, {"relp": relp, "ig": ig})
    """
    nodes = NodeTable.of(features)
    if not scores or any(one.nodes != nodes for one in scores.values()):
        raise InputError("scores to compare are of these features, one or more; got none, or scores of other features")
    if any(one.metric_name != task.metric.name for one in scores.values()):
        raise InputError(
            f"scores are of the metric {task.metric.name}; got {', '.join(one.metric_name for one in scores.values())}"
        )
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or errors not in ERRORS:
        raise InputError(
            f"sizes are rising numbers of nodes and errors {' or '.join(ERRORS)}; got {tuple(sizes)} and {errors!r}"
        )
    check_task(model, task)
    features.check(model)
    require_aligned(task)
    rankings = {name: one.ranking(errors) for name, one in scores.items()}
    n_varying = min(map(len, rankings.values()))
    within = tuple(n for n in sizes if n <= n_varying)
    if not within:
        raise InputError(
            f"only {n_varying} nodes vary between the prompts; ask for sizes up to that, got {tuple(sizes)}"
        )
    masks = [mask_of(nodes, order[:n]) for order in rankings.values() for n in within]
    pool = torch.tensor(next(iter(rankings.values())))
    for repeat in range(n_random):
        order = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + repeat))].tolist()
        masks += [mask_of(nodes, order[:n]) for n in within]
    controls = [torch.ones(len(nodes), dtype=torch.bool), torch.zeros(len(nodes), dtype=torch.bool)]
    found = measure_feature_circuits(
        model, task, features, [*controls, *masks], ablation=ablation, source=source, batch_size=batch_size
    )
    if not bool(found.isfinite().all()):
        raise MetricError("a circuit's metric is not finite; are the model's weights and the features?")
    n, n_methods = len(within), len(rankings)
    provenance = build_provenance(
        method="feature circuits", ablation=ablation, errors=errors, seed=seed, n_random=n_random,
        features=features.describe(),
        model=identify_model(model), task=task.provenance(),
        scores={name: one.provenance for name, one in scores.items()},
    )  # fmt: skip
    curves = FeatureCurves(
        tuple(rankings), within, n_varying, found[2 : 2 + n_methods * n].unflatten(0, (n_methods, n)),
        found[2 + n_methods * n :].unflatten(0, (n_random, n)) if n_random else found.new_zeros(0, n, found.shape[1]),
        found[1], found[0], ablation, errors, task.metric.name, task.name, provenance,
    )  # fmt: skip
    faithfulness(curves.model_per_example, curves.empty_per_example, curves.model_per_example)
    return curves
