"""Several vectors instead of one, and a probe that chooses among them while the model runs.

Within every group, d = mean of the positive prompts - mean of the negative ones. The differences are clustered by
k-means; the centres are the vectors v_k. A multinomial probe learns from the negative prompts' states which cluster
their group fell into, and picks k = argmax_k (w_k . x + b_k) at every position anew. This is G-ACT's arrangement. Its
probe is trained on line, one group after another, each once (``online=True``, see `online`); the default is fitted to
all of them at once. One mean vector is the case of one cluster.

`agreement` is the probe's balanced accuracy on groups that were not fitted, beside that of clusters dealt out by lot;
a probe that is not above it chooses by chance, and then one vector does as well. Cost: 1 forward of all prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, MetricError, check_whole
from ..interventions import Choice, Write
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from .classes import ClassProbe, fit_class_probe
from .examples import Examples, record_examples
from .online import train_online

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROUNDS = 100
ProbeFit = Callable[[Tensor, Tensor, int], ClassProbe]
"""From states, their clusters and how many there are, to the probe that chooses."""


@dataclass(frozen=True, eq=False)
class ClusteredVectors(Result, what="clustered vectors"):
    """`vectors`, `weights` ``[cluster d]``; `sizes`: groups per cluster; `spread_left`: the share of the differences'
    squared distance from their mean that the clusters leave. Of a probe trained on line, `as_they_came` is the share of
    groups whose cluster it told before it learnt it, `control_as_they_came` the same by lot (NaN of others).
    """

    vectors: Float[Tensor, "n d"]
    weights: Float[Tensor, "n d"]
    biases: Float[Tensor, " n"]
    sizes: tuple[int, ...]
    spread_left: float
    agreement: float
    control: float
    site: Site
    provenance: Provenance = field(default_factory=dict)
    as_they_came: float = float("nan")
    control_as_they_came: float = float("nan")

    def write(self, strength: float = 1.0) -> Write:
        """The write, for `intervene` and generation."""
        return Write(self.site, Choice(self.vectors, self.weights, self.biases, strength))

    def by_lot(self, seed: int = 0) -> ClusteredVectors:
        """The control: the same vectors, each chosen where the probe means another."""
        n = len(self.vectors)
        order = (torch.arange(n) + 1 + seed % max(n - 1, 1)) % n
        return replace(self, weights=self.weights[order], biases=self.biases[order])

    def _table(self) -> Table:
        """One row per cluster."""
        cosine = torch.nn.functional.cosine_similarity(self.vectors, self.vectors.mean(dim=0, keepdim=True))
        return {
            "cluster": list(range(len(self.vectors))),
            "groups": list(self.sizes),
            "length": self.vectors.norm(dim=1).tolist(),
            "cosine with their mean": cosine.tolist(),
        }

    def __str__(self) -> str:
        online = f"; on line, {self.as_they_came:.3f} of the groups before they were learnt, by lot "
        online = "" if math.isnan(self.as_they_came) else f"{online}{self.control_as_they_came:.3f}"
        return (
            f"{len(self.vectors)} vectors at {self.site} of {', '.join(map(str, self.sizes))} groups, spread left "
            f"{self.spread_left:.2f}; the probe finds the cluster of {self.agreement:.3f} of held-out groups, by lot "
            f"{self.control:.3f}{online}"
        )


@borrows
def fit_clusters(
    model: TransformerBridge, examples: Examples, site: Site, n_clusters: int = 3, *, online: bool = False,
    n_controls: int = 3, seed: int = 0,
) -> ClusteredVectors:  # fmt: skip
    """Cluster the differences within groups, and fit the probe that chooses. Cost: 1 forward of all prompts.

    `online`: the probe sees every group once, in an order by lot, and changes with each (`OnlineProbe`).

    Raises `InputError` for fewer than 3 groups with both classes per cluster, `MetricError` for states that are not
    finite.

    >>> found = fit_clusters(model, Examples.of_task(task.train), Site("resid_post", 3), 2)
    >>> with intervene(model, [found.write()]):
    ...     logits = model(prompt)
    """
    x = record_examples(model, examples, [site])[0].double()
    if not bool(x.isfinite().all()):
        raise MetricError(f"activations at {site} are not finite; nothing can be fitted")
    differences, states = differences_by_group(x, examples)
    n = len(differences)
    if check_whole("n_clusters", n_clusters) < 1 or n < 3 * n_clusters:
        raise InputError(f"each of {n_clusters} clusters needs 3 groups with prompts of both classes; there are {n}")
    generator = torch.Generator().manual_seed(seed)
    index, centres = find_clusters(differences, n_clusters, generator)
    whole = (differences - differences.mean(dim=0)).pow(2).sum().clamp(min=1e-30)
    left = float((differences - centres[index]).pow(2).sum() / whole)
    came, lots_came = float("nan"), [float("nan")]
    fit: ProbeFit = fit_class_probe
    if online and n_clusters > 1:
        order = torch.randperm(n, generator=generator)
        dealt = [index[torch.randperm(n, generator=generator)] for _ in range(n_controls)]
        came = train_online(states[order], index[order], n_clusters).as_they_came
        lots_came = [train_online(states[order], one, n_clusters).as_they_came for one in dealt] or lots_came
        fit = _in_order(generator)
    probe = _probe(states, index, n_clusters, fit)
    agreement = _held_out(states, index, n_clusters, generator, fit)
    lots = [_held_out(states, index[torch.randperm(n, generator=generator)], n_clusters, generator, fit)
            for _ in range(n_controls)]  # fmt: skip
    provenance = build_provenance(
        method="clustered vectors", seed=seed, model=identify_model(model), online=online,
        examples={"name": examples.name, "sha256": examples.sha256()},
    )  # fmt: skip
    return ClusteredVectors(
        centres, probe.weights, probe.biases, tuple(index.bincount(minlength=n_clusters).tolist()), left, agreement,
        sum(lots) / len(lots) if lots else float("nan"), site, provenance, came,
        sum(lots_came) / len(lots_came),
    )  # fmt: skip


def find_clusters(
    rows: Float[Tensor, "n d"], k: int, generator: torch.Generator
) -> tuple[Int[Tensor, " n"], Float[Tensor, "k d"]]:
    """k-means (Lloyd), begun at rows drawn with a chance by their squared distance (Arthur & Vassilvitskii 2007).

    Clusters are numbered by size, largest first; an empty one takes the row that is furthest from its centre.
    """
    centres = rows[torch.randint(len(rows), (1,), generator=generator)]
    while len(centres) < k:
        away = torch.cdist(rows, centres).amin(dim=1).pow(2) + 1e-30
        centres = torch.cat([centres, rows[torch.multinomial(away, 1, generator=generator)]])
    index = torch.cdist(rows, centres).argmin(dim=1)
    for _ in range(ROUNDS):
        for number in range(k):
            if not bool((index == number).any()):
                index[(rows - centres[index]).norm(dim=1).argmax()] = number
        centres = torch.stack([rows[index == number].mean(dim=0) for number in range(k)])
        new = torch.cdist(rows, centres).argmin(dim=1)
        if torch.equal(new, index):
            break
        index = new
    order = index.bincount(minlength=k).argsort(descending=True, stable=True)
    return order.argsort()[index], centres[order]


def differences_by_group(x: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
    """Differences within groups that have both classes, and the mean state of their negative prompts."""
    differences, states = [], []
    for group in examples.groups.unique():
        inside = examples.groups == group
        sides = [x[inside & side] for side in (examples.labels, ~examples.labels)]
        if all(len(side) for side in sides):
            differences.append(sides[0].mean(dim=0) - sides[1].mean(dim=0))
            states.append(sides[1].mean(dim=0))
    if not differences:
        raise InputError("differences need groups with prompts of both classes; these examples have none")
    return torch.stack(differences), torch.stack(states)


def _in_order(generator: torch.Generator) -> ProbeFit:
    """One pass on line, in an order by lot."""

    def fit(states: Tensor, index: Tensor, k: int) -> ClassProbe:
        order = torch.randperm(len(index), generator=generator)
        return train_online(states[order], index[order], k).probe

    return fit


def _probe(states: Tensor, index: Tensor, k: int, fit: ProbeFit) -> ClassProbe:
    if k == 1:
        return ClassProbe(torch.zeros_like(states[:1]), torch.zeros(1, dtype=states.dtype))
    return fit(states, index, k)


def _held_out(states: Tensor, index: Tensor, k: int, generator: torch.Generator, fit: ProbeFit) -> float:
    """Balanced accuracy on the third of every cluster's groups that was not fitted."""
    if k == 1:
        return 1.0
    tested = torch.zeros(len(index), dtype=torch.bool)
    for number in range(k):
        rows = (index == number).nonzero().flatten()
        tested[rows[torch.randperm(len(rows), generator=generator)[: len(rows) // 3]]] = True
    said = fit(states[~tested], index[~tested], k).judge(states[tested])
    right = [(said[index[tested] == number] == number).double().mean() for number in index[tested].unique().tolist()]
    return float(torch.stack(right).mean()) if right else float("nan")
