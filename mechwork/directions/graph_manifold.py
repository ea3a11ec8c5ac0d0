"""A graph fitted to states whose labels have neighbours: days in a week, squares of a board, forms of a verb.

    node k       the mean state m_k of class k
    edges        which classes are neighbours, as the labels say
    path a -> b  the way with the fewest edges (of equally few the shortest in activation space), along straight edges
    neighbours   mean distance between neighbours' means / mean distance between the other pairs' means; below 1 the
                 means lie as the graph says. By lot: the same with the classes dealt out among the nodes

A ring of classes is a closed curve without bends; `fit_curve(period=...)` rounds it off. Source: manifold steering
along class means; Park et al. 2024 (graphs in context) for states that take the shape of a graph. Cost: 1 forward of
all prompts.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError, UnknownNameError
from ..interventions import Add
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from ..statistics import rank_p
from .examples import record_examples
from .labelled import Labelled

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Edge = tuple[int, int]
N_LOTS = 200


@dataclass(frozen=True, eq=False)
class GraphFit(Result, what="graph of class means"):
    """`means` ``[class d]`` at `site`, `edges` by number of class; `neighbours`, `by_lot` and `p` as in the module.

    `distance`: mean distance of held-out prompts from the nearest edge; `mean_distance` from the nearest mean.
    """

    classes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    site: Site
    means: Float[Tensor, "n_class d"]
    neighbours: float
    by_lot: float
    p: float
    distance: float
    mean_distance: float
    n_tested: int
    provenance: Provenance = field(default_factory=dict)

    def number_of(self, name: str) -> int:
        """The number of a class; raises `UnknownNameError` for another."""
        if name not in self.classes:
            raise UnknownNameError("class", name, self.classes)
        return self.classes.index(name)

    def way(self, start: str, end: str) -> tuple[str, ...]:
        """The classes from one to another, both ends named; raises `InputError` when no edges lead there."""
        numbers = shortest_way(self.means, self.edges, self.number_of(start), self.number_of(end))
        return tuple(self.classes[i] for i in numbers)

    def path(self, start: str, end: str, n: int) -> Float[Tensor, "n d"]:
        """`n` places on the way, in equal steps of length along its straight edges."""
        return walk(self.means[[self.number_of(name) for name in self.way(start, end)]].double(), n)

    def write(self, start: str, end: str, share: float = 1.0) -> Add:
        """What is added to a state of class `start` to take it `share` of the way to `end`, along the edges."""
        if not 0 < share <= 1:
            raise InputError(f"a share of the way is above 0 and at most 1; got {share}")
        places = self.path(start, end, 1025)
        return Add((places[round(share * 1024)] - places[0]).float())

    def _table(self) -> Table:
        """One row per edge."""
        ends = self.means[[edge[0] for edge in self.edges]], self.means[[edge[1] for edge in self.edges]]
        return {
            "from": [self.classes[a] for a, _ in self.edges],
            "to": [self.classes[b] for _, b in self.edges],
            "length": (ends[0] - ends[1]).norm(dim=1).tolist(),
        }

    def __str__(self) -> str:
        return (
            f"graph of {len(self.classes)} classes and {len(self.edges)} edges at {self.site}: neighbours are "
            f"{self.neighbours:.2f} times as far from each other as other pairs (classes by lot {self.by_lot:.2f}, p "
            f"{self.p:.3f}); {self.n_tested} held-out prompts lie {self.distance:.3g} from the nearest edge, "
            f"{self.mean_distance:.3g} from the nearest mean"
        )


@borrows
def fit_graph(
    model: TransformerBridge, data: Labelled, edges: Sequence[tuple[str, str]], site: Site, *, seed: int = 0
) -> GraphFit:
    """Class means at a site as the nodes of a graph whose edges are pairs of class names. Cost: 1 forward.

    Raises:
        InputError: labels that are numbers, fewer than two edges' classes, an edge from a class to itself or given
            twice, a class without prompts among those fitted.
        UnknownNameError: an edge to a class that is not there.
        MetricError: states that are not finite.

    >>> days = ["Monday", "Tuesday", "Wednesday"]
    >>> found = fit_graph(model, data, list(zip(days, days[1:])), Site("resid_post", 3))
    >>> found.way("Monday", "Wednesday")
    ('Monday', 'Tuesday', 'Wednesday')
    """
    numbers = number_edges(data, edges)
    x = record_examples(model, data, [site])[0].double()
    if not bool(x.isfinite().all()):
        raise MetricError(f"activations at {site} are not finite; nothing can be fitted")
    fitted, tested = data.split_rows(seed=seed)
    means = class_means(x[fitted], data.targets[fitted], data.classes)
    near, lot, p = neighbour_ratio(means, numbers, seed)
    ends = [means[[edge[side] for edge in numbers]] for side in (0, 1)]
    distance = to_segments(x[tested], *ends).mean()
    alone = torch.cdist(x[tested], means).amin(dim=1).mean()
    facts = build_provenance(
        method="graph of class means", model=identify_model(model), seed=seed,
        examples={"name": data.name, "sha256": data.sha256()},
    )  # fmt: skip
    return GraphFit(
        data.classes, numbers, site, means.float(), near, lot, p, float(distance), float(alone), len(tested), facts
    )


def number_edges(data: Labelled, edges: Sequence[tuple[str, str]]) -> tuple[Edge, ...]:
    """Edges by number of class; errors as `fit_graph`."""
    found = [(data.number_of(a), data.number_of(b)) for a, b in edges]
    if not found:
        raise InputError("a graph has edges: pairs of names of classes; got none")
    seen = [frozenset(edge) for edge in found]
    wrong = [edge for edge, pair in zip(edges, seen, strict=True) if len(pair) < 2 or seen.count(pair) > 1]
    if wrong:
        raise InputError(f"an edge joins two different classes and is given once; got {wrong[0]}")
    return tuple(found)


def class_means(
    x: Float[Tensor, "n d"], targets: Tensor, classes: Sequence[str]
) -> Float[Tensor, "n_class d"]:  # fmt: skip
    """The mean of every class; raises `InputError` for one without rows."""
    missing = [name for k, name in enumerate(classes) if not bool((targets == k).any())]
    if missing:
        raise InputError(f"every class needs prompts among those fitted; {missing[0]!r} has none. Give more prompts")
    return torch.stack([x[targets == k].mean(dim=0) for k in range(len(classes))])


def shortest_way(points: Float[Tensor, "n d"], edges: Sequence[Edge], start: int, end: int) -> tuple[int, ...]:
    """Nodes from `start` to `end` by fewest edges, then least length (Dijkstra); `InputError` when there is no way."""
    beside: dict[int, list[int]] = {}
    for a, b in edges:
        beside.setdefault(a, []).append(b)
        beside.setdefault(b, []).append(a)
    queue: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, (start,))]
    done: set[int] = set()
    while queue:
        hops, length, way = heapq.heappop(queue)
        here = way[-1]
        if here == end:
            return way
        if here in done:
            continue
        done.add(here)
        for other in beside.get(here, []):
            if other not in done:
                step = float((points[here] - points[other]).norm())
                heapq.heappush(queue, (hops + 1, length + step, (*way, other)))
    raise InputError(f"no edges lead from class {start} to class {end}")


def walk(corners: Float[Tensor, "m d"], n: int) -> Float[Tensor, "n d"]:
    """`n` places along straight pieces between corners, in equal steps of length."""
    if len(corners) == 1:
        return corners.expand(n, -1)
    steps = corners.diff(dim=0).norm(dim=1)
    far = torch.cat([steps.new_zeros(1), steps.cumsum(dim=0)])
    at = torch.linspace(0, 1, n, dtype=corners.dtype) * far[-1]
    piece = torch.searchsorted(far, at.contiguous(), right=True).clamp(1, len(far) - 1)
    share = (at - far[piece - 1]) / steps[piece - 1].clamp(min=1e-30)
    return corners[piece - 1] + share.clamp(0, 1)[:, None] * (corners[piece] - corners[piece - 1])


def to_segments(
    x: Float[Tensor, "*batch d"], starts: Float[Tensor, "edge d"], ends: Float[Tensor, "edge d"]
) -> Float[Tensor, "*batch"]:
    """Distance of every vector from the nearest of some straight pieces."""
    along = ends - starts
    share = ((x[..., None, :] - starts) * along).sum(dim=-1) / along.pow(2).sum(dim=-1).clamp(min=1e-30)
    nearest = starts + share.clamp(0, 1)[..., None] * along
    return (x[..., None, :] - nearest).norm(dim=-1).amin(dim=-1)


def neighbour_ratio(points: Float[Tensor, "n d"], edges: Sequence[Edge], seed: int) -> tuple[float, float, float]:
    """(mean distance of neighbours / of the other pairs, its mean with nodes by lot, p: how many lots are as small).

    NaN where all pairs are neighbours.
    """
    n = len(points)
    far = torch.cdist(points.double(), points.double())
    beside = torch.zeros(n, n, dtype=torch.bool)
    for a, b in edges:
        beside[a, b] = beside[b, a] = True
    others = ~beside & ~torch.eye(n, dtype=torch.bool)
    if not bool(others.any()):
        return float("nan"), float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    lots = []
    for _ in range(N_LOTS):
        order = torch.randperm(n, generator=generator)
        dealt = far[order][:, order]
        lots.append(float(dealt[beside].mean() / dealt[others].mean()))
    mine = float(far[beside].mean() / far[others].mean())
    return mine, sum(lots) / N_LOTS, rank_p(-mine, -torch.tensor(lots, dtype=torch.float64))
