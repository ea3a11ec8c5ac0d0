"""Do features tell concepts apart? The Jensen-Shannon distance of each feature's activations on two classes of prompts.

    d(P, Q) = sqrt(JSD(P, Q)),   JSD = (KL(P || M) + KL(Q || M)) / 2,   M = (P + Q) / 2,   logarithms to base 2: 0
    alike, 1 disjoint

P and Q are histograms of one feature on the positive and the negative prompts (Lin 1991; Endres and Schindelin 2003).
Bins are between quantiles of the fitting half, both classes together, so that the distance does not depend on a
feature's units; what is exactly 0 stays in one bin. The best feature of a place is chosen on the fitting half of the
prompts (pairs are never split) and measured on the other.

Beside it, chosen and measured alike: the best *dimension* of the place's vectors, the best of as many *random
directions* as there
are features, and what *chance* gives: the 95th percentile of the best features' distances when labels are exchanged at
random within pairs. A small sample makes every distance positive; only what is above chance says anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..directions import Examples
from ..errors import InputError
from ..execute.memory import cut
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table, table_rows
from ..runs.room import rows_that_fit
from ..tasks.continuations import require_one_token
from ..tasks.encode import answer_token
from ..tasks.pairs import END
from ..tasks.task import Task
from .feature_set import FeatureSet
from .record import record_sites

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_BINS = 8


@dataclass(frozen=True)
class PlaceSeparability:
    """One place: distances on the held-out half, each of the best one on the fitting half.

    `feature` is the best feature; `top` are the best of those that are more active on the positive prompts: what one
    would suppress.
    """

    place: str
    feature: int
    distance: float
    top: tuple[int, ...]
    dimension: float
    random: float
    chance: float

    @property
    def passes(self) -> bool:
        """Whether the best feature is above chance and at least as good as the best dimension."""
        return self.distance > self.chance and self.distance >= self.dimension


@dataclass(frozen=True, eq=False)
class Separability(Result):
    """A concept at every place of a set of features."""

    concept: str
    rows: tuple[PlaceSeparability, ...]
    n_fit: int
    n_held_out: int
    provenance: Provenance

    @property
    def best(self) -> PlaceSeparability:
        """The place with the largest distance, the first of equals."""
        return max(self.rows, key=lambda row: row.distance)

    def __getitem__(self, place: str) -> PlaceSeparability:
        for row in self.rows:
            if row.place == place:
                return row
        raise InputError(f"no features were measured at {place}; there are {', '.join(row.place for row in self.rows)}")

    def _table(self) -> Table:
        """One row per place."""
        return table_rows(self.rows, "passes", concept=self.concept)

    def __str__(self) -> str:
        lines = [
            f"{self.concept}: Jensen-Shannon distance on {self.n_held_out} held-out prompts, chosen on {self.n_fit}",
            (
                f"{'place':<16}{'best feature':>14}{'distance':>10}{'best dimension':>16}{'random':>8}{'chance':>8}  "
                "passes"
            ),
        ]
        lines += [
            f"{r.place:<16}{f'f{r.feature}':>14}{r.distance:10.3f}{r.dimension:16.3f}{r.random:8.3f}{r.chance:8.3f}  "
            f"{'yes' if r.passes else 'no'}"
            for r in self.rows
        ]
        return "\n".join(lines)


@borrows
def concept_of_answer(
    model: TransformerBridge, task: Task, answer: str, position: str = END, name: str = ""
) -> Examples:
    """The prompts of a task, both sides of every pair, labelled by whether `answer` is right after them.

    ``concept_of_answer(model, agreement, " are")`` is the number of the subject. Raises `InputError` for an answer that
    is no single token, or that tells no prompts apart.
    """
    token = answer_token(model, answer)
    require_one_token(task.pairs.continuations, "a concept of an answer")
    right, wrong = ((side == token).any(dim=1) for side in (task.pairs.correct, task.pairs.incorrect))
    rows = (right | wrong).nonzero().flatten().tolist()
    if not rows:
        raise InputError(f"no pair of {task.name!r} has the answer {answer!r}")
    both = Examples.of_task(task[rows], position)
    labels = torch.cat([right[rows], wrong[rows]])
    return Examples(both.tokens, labels, both.where, both.groups, name or f"{task.name}: {answer.strip()}")


@borrows
def record_concept(
    model: TransformerBridge, features: FeatureSet, examples: Examples
) -> tuple[list[Float[Tensor, "prompt feature"]], list[Float[Tensor, "prompt d"]]]:
    """Features and vectors of every place, averaged over each prompt's marked positions. Cost: 1 forward of the
    prompts.
    """
    sites = [site for c in features for site in (c.reads, c.writes)]
    coded: list[list[Tensor]] = [[] for _ in features]
    plain: list[list[Tensor]] = [[] for _ in features]
    for rows in cut(len(examples), rows_that_fit(model, examples.tokens, sites=sites)):
        tokens = examples.tokens[rows]
        found = record_sites(model, tokens, sites)
        where = examples.where[rows].to(device_of(model))
        for i, coder in enumerate(features):
            f = coder.encode(found[coder.reads])
            weights = where.to(f) / where.sum(dim=1, keepdim=True)
            coded[i].append(torch.einsum("bp,bpf->bf", weights, f).detach().cpu())
            plain[i].append(torch.einsum("bp,bpd->bd", weights, found[coder.writes].to(f)).cpu())
    return [torch.cat(parts) for parts in coded], [torch.cat(parts) for parts in plain]


@borrows
def measure_separability(
    model: TransformerBridge,
    features: FeatureSet,
    examples: Examples,
    *,
    n_top: int = 5,
    n_bins: int = N_BINS,
    n_permutations: int = 20,
    seed: int = 0,
) -> Separability:
    """The distances of a concept at every place, with the controls of the module. Cost: 1 forward of the prompts.

    Raises `ArtefactError` for another model's features, `InputError` for fewer than two bins, permutations or groups of
    prompts.

    >>> number = concept_of_answer(model, mw.tasks.agreement(model, n=128), " are")
    >>> measure_separability(model, features, number).best.passes
    """
    if n_bins < 2 or n_permutations < 2 or n_top < 1:
        raise InputError(
            f"bins and permutations are at least 2, n_top at least 1; got {n_bins}, {n_permutations}, {n_top}"
        )
    features.check(model)
    groups = examples.groups.unique()
    if len(groups) < 4:
        raise InputError(
            "a concept is chosen on half of the groups of prompts and measured on the others: four or more; got "
            f"{len(groups)}"
        )
    order = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
    fit = torch.isin(examples.groups, order[: len(order) // 2])
    if any(not 0 < int(examples.labels[half].sum()) < int(half.sum()) for half in (fit, ~fit)):
        raise InputError("both classes are needed in both halves of the prompts; use more prompts, or another seed")
    coded, plain = record_concept(model, features, examples)
    generator = torch.Generator().manual_seed(seed + 1)
    shuffles = [exchange(examples.labels, examples.groups, generator) for _ in range(n_permutations)]
    rows = []
    for place, f, y in zip(features.places, coded, plain, strict=True):
        draws = torch.randn(y.shape[1], f.shape[1], generator=generator, dtype=torch.float64).to(y)
        ranked, held = _chosen(f, examples.labels, fit, n_bins)
        rises = f[fit & examples.labels].mean(dim=0) > f[fit & ~examples.labels].mean(dim=0)
        chance = torch.tensor([_best(f, labels, fit, n_bins) for labels in shuffles], dtype=torch.float64)
        rows.append(
            PlaceSeparability(
                place, int(ranked[0]), float(held[ranked[0]]), tuple(ranked[rises[ranked]][:n_top].tolist()),
                _best(y, examples.labels, fit, n_bins),
                _best((y - y[fit].mean(dim=0)) @ draws, examples.labels, fit, n_bins),
                float(torch.quantile(chance, 0.95)),
            )
        )  # fmt: skip
    provenance = build_provenance(
        method="concept separability", n_bins=n_bins, n_permutations=n_permutations, seed=seed,
        examples=examples.sha256(),
        features=features.describe(), model=identify_model(model),
    )  # fmt: skip
    return Separability(examples.name, tuple(rows), int(fit.sum()), int((~fit).sum()), provenance)


def exchange(labels: Bool[Tensor, " n"], groups: Int[Tensor, " n"], generator: torch.Generator) -> Bool[Tensor, " n"]:
    """Labels at random: both labels of a group flipped or not where a group has both, labels permuted over all
    otherwise.
    """
    paired = all(len(labels[groups == g].unique()) == 2 for g in groups.unique())
    if not paired:
        return labels[torch.randperm(len(labels), generator=generator)]
    flips = torch.rand(int(groups.max()) + 1, generator=generator) < 0.5
    return labels ^ flips[groups]


def bin_edges(values: Float[Tensor, "n feature"], n_bins: int = N_BINS) -> Float[Tensor, "edge feature"]:
    """Inner quantiles of every column; a value belongs to the bin after the last edge that it exceeds."""
    q = torch.linspace(0, 1, n_bins + 1, dtype=values.dtype)[1:-1]
    return torch.quantile(values, q, dim=0)


def bin_index(values: Float[Tensor, "*n feature"], edges: Float[Tensor, "edge feature"]) -> Int[Tensor, "*n feature"]:
    """Which bin every value is in, 0 to the number of edges."""
    index = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    for edge in edges.to(values):
        index += values > edge
    return index


def histograms(
    index: Int[Tensor, "n feature"], labels: Bool[Tensor, " n"], n_bins: int
) -> tuple[Float[Tensor, "bin feature"], Float[Tensor, "bin feature"]]:
    """Shares of the positive and of the negative prompts in every bin."""
    inside = [index == b for b in range(n_bins)]
    positive, negative = (torch.stack([one[rows].double().mean(dim=0) for one in inside]) for rows in (labels, ~labels))
    return positive, negative


def js_distance(p: Float[Tensor, "bin feature"], q: Float[Tensor, "bin feature"]) -> Float[Tensor, " feature"]:
    """Square root of the Jensen-Shannon divergence to base 2, per column."""
    middle = (p + q) / 2

    def divergence(a: Tensor) -> Tensor:
        return torch.where(a > 0, a * (a.clamp(min=1e-300) / middle.clamp(min=1e-300)).log2(), 0.0).sum(dim=0)

    return ((divergence(p) + divergence(q)) / 2).clamp(min=0).sqrt()


def _chosen(
    values: Float[Tensor, "n feature"], labels: Bool[Tensor, " n"], fit: Bool[Tensor, " n"], n_bins: int
) -> tuple[Int[Tensor, " feature"], Float[Tensor, " feature"]]:
    """Columns by falling distance on the fitting half, and every column's distance on the other half."""
    values = values.double()
    index = bin_index(values, bin_edges(values[fit], n_bins))
    near, far = (js_distance(*histograms(index[half], labels[half], n_bins)) for half in (fit, ~fit))
    return near.argsort(descending=True, stable=True), far


def _best(
    values: Float[Tensor, "n feature"], labels: Bool[Tensor, " n"], fit: Bool[Tensor, " n"], n_bins: int
) -> float:
    """The held-out distance of the column that is best on the fitting half."""
    ranked, held = _chosen(values, labels, fit, n_bins)
    return float(held[ranked[0]])
