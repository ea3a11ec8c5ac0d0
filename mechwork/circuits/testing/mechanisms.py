"""One mechanism or several: are there kinds of pairs that use different edges, and does one circuit hide that?

    found = study_mechanisms(model, task, n_edges=100)
    print(found)                 # the split, a circuit per kind of pair, and how each does on the others' pairs
    found.verdict                # "one", "several" or "inconclusive", and found.reason

A pair's *profile* is its scores of the `n_profile` strongest edges (of the mean absolute score), scaled to length 1.
Profiles are split in two by k-means, and each part again, while the split is better than what one Gaussian cloud of the
same covariance gives (SigClust, Liu et al. 2008): p = rank of the share of squares that the split leaves, among
`n_null` clouds. A cluster's circuit has the strongest edges of its pairs' mean; held-out pairs go to the nearest
centre. The mixture of two tasks still has one faithful circuit (arXiv:2605.09129), so faithfulness cannot tell;
exchanging the circuits can. *Several*: on every cluster's held-out pairs its own circuit is shown to do better (paired
bootstrap: nearer to 1) than every other's. *One*: no split, or every exchange costs less than `margin`.
Cost: `score_edges` of both halves of the pairs, and a forward of about 1.5 per circuit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...directions.clusters import find_clusters
from ...errors import InputError, MetricError, check_seed, check_whole
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...statistics import rank_p
from ...tasks.task import Task
from ..graph.circuit import Circuit
from ..graph.select import select
from ..scoring.score import score_edges
from ..scoring.scores import EdgeScores
from .curves import bootstrap_faithfulness, faithfulness, resampled_faithfulness
from .evaluate import EvaluationSettings, measure_circuits

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FEWEST = 6
"""Pairs of the smallest cluster that is believed, and of the smallest held-out part that is judged."""
RESTARTS = 4
MIXTURE = "mixture"


@dataclass(frozen=True)
class MechanismRow:
    """One circuit on the held-out pairs of one cluster (``"all"``: on all). `cost`: how much further from 1 it is than
    the cluster's own circuit, with its paired interval (NaN for the own one, the mixture's and all pairs).
    """

    circuit: str
    pairs: str
    n_pairs: int
    n_edges: int
    faithfulness: float
    low: float
    high: float
    cost: float = float("nan")
    cost_interval: tuple[float, float] = (float("nan"), float("nan"))


@dataclass(frozen=True, eq=False)
class Mechanisms(Result):
    """Clusters of pairs and their circuits. `splits`: size, p-value of every split that was tried; `members`: cluster
    (from 0) of every training pair; `templates`: of how many training pairs of which template a cluster is made.
    """

    verdict: str
    reason: str
    circuits: dict[str, Circuit]
    rows: tuple[MechanismRow, ...]
    members: Int[Tensor, " batch"]
    splits: tuple[tuple[int, float], ...]
    templates: dict[str, dict[str, int]]
    overlaps: dict[str, float]
    provenance: Provenance = field(default_factory=dict)

    @property
    def hides(self) -> bool:
        """Whether the circuit of all pairs hides several: it is within .1 of the model on all of them."""
        mixed = next((r.faithfulness for r in self.rows if (r.circuit, r.pairs) == (MIXTURE, "all")), float("nan"))
        return self.verdict == "several" and abs(1 - mixed) <= 0.1

    def _table(self) -> Table:
        """One row per circuit and part of the held-out pairs."""
        return [vars(row) for row in self.rows]

    def __str__(self) -> str:
        lines = [f"mechanisms: {self.verdict}: {self.reason}"]
        lines += [f"split of {n} pairs: p = {p:.3g}" for n, p in self.splits]
        if self.rows:
            lines.append(f"{'circuit':<12}{'on':<12}{'pairs':>6}{'edges':>7}  faithfulness, and cost of the exchange")
        for r in self.rows:
            cost = f"   {r.cost:+.3f} [{r.cost_interval[0]:.3f}, {r.cost_interval[1]:.3f}]" if r.cost == r.cost else ""
            lines.append(
                f"{r.circuit:<12}{r.pairs:<12}{r.n_pairs:>6}{r.n_edges:>7}  {r.faithfulness:.3f} [{r.low:.3f}, "
                f"{r.high:.3f}]{cost}"
            )
        lines += [f"{pair}: Jaccard index of edges {value:.3f}" for pair, value in self.overlaps.items()]
        if self.hides:
            lines.append("the circuit of all pairs is faithful and hides this")
        return "\n".join(lines)

    __repr__ = __str__


@borrows
def study_mechanisms(
    model: TransformerBridge,
    task: Task,
    *,
    n_edges: int = 100,
    preset: str = "eap-ig",
    n_profile: int = 200,
    n_null: int = 99,
    level: float = 0.05,
    margin: float = 0.1,
    max_clusters: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Mechanisms:
    """Clusters of the training pairs, their circuits, and what exchanging these costs on held-out pairs.

    Too few pairs, or a metric that is the same with and without edges: the verdict is inconclusive, and says why.

    Raises:
        InputError: a count, level or margin out of range.

    >>> study_mechanisms(model, task, n_edges=80).verdict
    """
    check_seed(seed)
    counts = {"n_edges": n_edges, "n_profile": n_profile, "max_clusters": max_clusters}
    for name, value in counts.items():
        check_whole(name, value, least=1)
    for name, value in (("level", level), ("margin", margin)):
        if not 0 < value < 1:
            raise InputError(f"{name} is between 0 and 1; got {value}")
    if (1 + check_whole("n_null", n_null)) * level < 1:
        raise InputError(f"p = {level:g} needs {round(1 / level) - 1} clouds at least; got n_null={n_null}")
    train, test = task.train, task.test
    facts = build_provenance(
        method="mechanisms", preset=preset, seed=seed, n_edges=n_edges, n_profile=n_profile, n_null=n_null,
        level=level, margin=margin, model=identify_model(model), task=task.provenance(),
    )  # fmt: skip
    none = torch.zeros(len(train), dtype=torch.long)
    blank = Mechanisms("inconclusive", "", {}, (), none, (), {}, {}, facts)
    if len(train) < 2 * FEWEST:
        return replace(blank, reason=f"{len(train)} training pairs cannot be two kinds; {4 * FEWEST} would do")
    try:
        scores = score_edges(model, train, preset=preset, keep="pairs", seed=seed, progress=progress)
    except MetricError as error:
        return replace(blank, reason=str(error))
    profiles, kept = edge_profiles(scores, n_profile)
    if not float(profiles.abs().sum()):
        return replace(blank, reason="every edge has the score 0 on every pair: nothing to tell pairs apart by")
    members, splits = split_profiles(profiles, n_null, level, max_clusters, seed)
    n = int(members.max()) + 1
    circuits = {MIXTURE: _circuit(scores, None, n_edges)}
    circuits |= {f"cluster {i + 1}": _circuit(scores, members == i, n_edges) for i in range(n if n > 1 else 0)}
    held_out = torch.zeros(len(test), dtype=torch.long)
    if n > 1:
        theirs = edge_profiles(score_edges(model, test, preset=preset, keep="pairs", seed=seed), n_profile, kept)[0]
        centres = torch.stack([profiles[members == i].mean(dim=0) for i in range(n)])
        held_out = torch.cdist(theirs, centres).argmin(dim=1)
    found = replace(
        blank, circuits=circuits, members=members, splits=splits, templates=_templates(scores, members),
        overlaps={
            f"{a}, {b}": circuits[a].overlap(circuits[b]) for i, a in enumerate(circuits) for b in list(circuits)[:i]
            if MIXTURE not in (a, b)
        },
    )  # fmt: skip
    try:
        rows = _exchange(model, test, circuits, held_out, seed)
    except MetricError as error:
        return replace(found, reason=str(error))
    return _judge(replace(found, rows=rows), margin)


def edge_profiles(
    scores: EdgeScores, n_profile: int, kept: Int[Tensor, " profile"] | None = None
) -> tuple[Float[Tensor, "batch profile"], Int[Tensor, " profile"]]:
    """Unit vectors of every pair's scores at the `n_profile` edges of largest mean absolute score (or at `kept`)."""
    edges = scores.require_pairs()[:, scores.space.mask].double()
    if kept is None:
        kept = edges.abs().mean(dim=0).argsort(descending=True, stable=True)[:n_profile]
    chosen = edges[:, kept]
    return chosen / chosen.norm(dim=1, keepdim=True).clamp(min=1e-30), kept


def split_profiles(
    profiles: Float[Tensor, "batch profile"], n_null: int, level: float, max_clusters: int, seed: int
) -> tuple[Int[Tensor, " batch"], tuple[tuple[int, float], ...]]:
    """Clusters by splits that one Gaussian cloud does not explain, and (size, p) of every split that was tried."""
    generator = torch.Generator().manual_seed(seed)
    members = torch.zeros(len(profiles), dtype=torch.long)
    splits: list[tuple[int, float]] = []
    waiting = [0]
    while waiting and int(members.max()) + 1 < max_clusters:
        number = waiting.pop(0)
        inside = (members == number).nonzero().flatten()
        if len(inside) < 2 * FEWEST:
            continue
        p, index = split_p(profiles[inside], n_null, generator)
        splits.append((len(inside), p))
        if p <= level and int(index.bincount(minlength=2).min()) >= FEWEST:
            new = int(members.max()) + 1
            members[inside[index == 1]] = new
            waiting += [number, new]
    return members, tuple(splits)


def split_p(rows: Float[Tensor, "n d"], n_null: int, generator: torch.Generator) -> tuple[float, Int[Tensor, " n"]]:
    """p-value of "one Gaussian cloud" against the best split in two (SigClust), and the split.

    Clouds have the covariance of the sample: Z (x - mean) / sqrt(n - 1) with Z of independent normal numbers.
    """
    centred = rows - rows.mean(dim=0)
    if float(centred.norm()) <= 1e-6 * float(rows.norm()):
        return 1.0, torch.zeros(len(rows), dtype=torch.long)
    left, index = _best_split(centred, generator)
    nulls = []
    for _ in range(n_null):
        z = torch.randn(len(rows), len(rows), generator=generator, dtype=rows.dtype)
        nulls.append(-_best_split(z @ centred / (len(rows) - 1) ** 0.5, generator)[0])
    return rank_p(-left, torch.tensor(nulls, dtype=torch.float64)), index


def _best_split(rows: Float[Tensor, "n d"], generator: torch.Generator) -> tuple[float, Int[Tensor, " n"]]:
    """The share of squares around the mean that the best of some k-means splits leaves, and the split."""
    rows = rows - rows.mean(dim=0)
    whole = float(rows.pow(2).sum())
    best: tuple[float, Tensor] = (float("inf"), torch.zeros(len(rows), dtype=torch.long))
    for _ in range(RESTARTS):
        index, centres = find_clusters(rows, 2, generator)
        left = float((rows - centres[index]).pow(2).sum()) / whole
        if left < best[0]:
            best = left, index
    return best


def _circuit(scores: EdgeScores, rows: Tensor | None, n_edges: int) -> Circuit:
    values = scores.values if rows is None else scores.require_pairs()[rows].mean(dim=0)
    n = min(n_edges, scores.space.n_edges)
    return Circuit(scores.space, select(scores.space, values, n), values, provenance=scores.provenance).pruned()


def _templates(scores: EdgeScores, members: Tensor) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, number in zip(scores.templates, members.tolist(), strict=False):
        row = found.setdefault(f"cluster {number + 1}", {})
        row[name] = row.get(name, 0) + 1
    return found


def _exchange(
    model: TransformerBridge, test: Task, circuits: dict[str, Circuit], held_out: Tensor, seed: int
) -> tuple[MechanismRow, ...]:
    """Every circuit on the held-out pairs of every cluster that has enough of them."""
    space = next(iter(circuits.values())).space
    masks = [space.mask, torch.zeros_like(space.mask), *(one.mask for one in circuits.values())]
    whole, empty, *found = measure_circuits(model, test, space, masks, EvaluationSettings(seed=seed)).metric
    metric = dict(zip(circuits, found, strict=True))
    held_out = held_out[:: test.pairs.n_per_question]
    parts = {"all": torch.ones_like(held_out, dtype=torch.bool)}
    parts |= {name: held_out == i for i, name in enumerate(n for n in circuits if n != MIXTURE)}
    rows = []
    for part, at in parts.items():
        if int(at.sum()) < FEWEST:
            continue
        m, e = whole[at], empty[at]
        ratios = {
            name: resampled_faithfulness(row[at][None], e, m, n_resamples=1000, seed=seed)[:, 0]
            for name, row in metric.items()
        }
        for name, row in metric.items():
            value = faithfulness(row[at], e, m)
            low, high = bootstrap_faithfulness(row[at], e, m, seed=seed)
            fact = MechanismRow(name, part, int(at.sum()), circuits[name].n_edges, value, low, high)
            if part in metric and name not in (part, MIXTURE):
                off = (1 - ratios[name]).abs() - (1 - ratios[part]).abs()
                own = faithfulness(metric[part][at], e, m)
                ends = off.quantile(torch.tensor([0.025, 0.975], dtype=off.dtype)).tolist()
                fact = replace(fact, cost=abs(1 - value) - abs(1 - own), cost_interval=(ends[0], ends[1]))
            rows.append(fact)
    return tuple(rows)


def _judge(found: Mechanisms, margin: float) -> Mechanisms:
    names = [name for name in found.circuits if name != MIXTURE]
    if not names:
        return replace(found, verdict="one", reason="pairs do not fall into kinds that use different edges")
    exchanged = [row for row in found.rows if row.cost == row.cost]
    if len(exchanged) < len(names) * (len(names) - 1):
        return replace(found, reason=f"fewer than {FEWEST} held-out pairs of some cluster; give more pairs")
    n = len(names)
    if all(row.cost_interval[0] > 0 for row in exchanged):
        return replace(found, verdict="several", reason=f"{n} kinds of pairs, and no circuit does for another kind")
    if all(row.cost_interval[1] < margin for row in exchanged):
        return replace(found, verdict="one", reason=f"{n} kinds of pairs, whose circuits do for each other")
    return replace(found, reason=f"{n} kinds of pairs; some circuits do for another kind, or it is not shown")
