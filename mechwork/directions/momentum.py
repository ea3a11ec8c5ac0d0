"""Single dimensions of many sites, ranked together and scaled by how surely they tell the two sides of a pair apart.

    beta_i = + n(x+_i > x-_i) / n   where that is at least n(x+_i < x-_i) / n,   - n(x+_i < x-_i) / n   elsewhere
    x_i -> x_i + s beta_i x_i        for the dimensions with the largest |beta_i| over all sites

n counts groups with prompts of both classes. This is AUSteer (Feng et al. 2026): `beta` is its activation momentum, the
dose s beta_i x_i adapts to the input, and one list holds the dimensions of every site: what W_O reads (`z` of a head),
writes of the MLPs, the stream. Many dimensions and few pairs make |beta| = 1 by luck: `by_lot` has the largest |beta|
of the same dimensions when the two sides of every pair are exchanged by the toss of a coin. Cost: 1 forward of all
prompts per kind of site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError, check_whole
from ..interventions import Stretch, Write
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from .clusters import differences_by_group
from .examples import Examples, record_examples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class DimensionRanking(Result, what="ranking of dimensions"):
    """`momentum` of every dimension, the sites side by side, `widths` of them each.

    `by_lot`: the largest |momentum| of each round with exchanged sides. `drawn`: the seed of a control's dimensions.
    """

    sites: tuple[Site, ...]
    widths: tuple[int, ...]
    momentum: Float[Tensor, " dimension"]
    by_lot: tuple[float, ...]
    n_pairs: int
    drawn: int | None = None
    provenance: Provenance = field(default_factory=dict)

    def top(self, n: int) -> list[tuple[Site, int, float]]:
        """(site, dimension, momentum) of the `n` surest, or what the control drew in their place.

        Raises `InputError` for a number outside 1 to that of all dimensions.
        """
        if not 1 <= check_whole("n", n) <= len(self.momentum):
            raise InputError(f"dimensions are 1 to {len(self.momentum)} in number; got {n}")
        order = self.momentum.abs().argsort(descending=True, stable=True)[:n]
        starts = torch.tensor(self.widths).cumsum(0)
        place = torch.searchsorted(starts, order, right=True).tolist()
        found = [(k, int(i) - (int(starts[k]) - self.widths[k]), float(self.momentum[i]))
                 for k, i in zip(place, order.tolist(), strict=True)]  # fmt: skip
        if self.drawn is not None:
            generator = torch.Generator().manual_seed(self.drawn)
            lots = {k: iter(torch.randperm(self.widths[k], generator=generator).tolist()) for k in sorted(set(place))}
            found = [(k, next(lots[k]), beta) for k, _, beta in found]
        return [(self.sites[k], i, beta) for k, i, beta in found]

    def writes(self, n: int, strength: float = 1.0) -> list[Write]:
        """x + strength beta x at the `n` surest dimensions, for `intervene` and generation; one write per site."""
        scales: dict[Site, Tensor] = {}
        for site, i, beta in self.top(n):
            scale = scales.setdefault(site, torch.ones(self.widths[self.sites.index(site)], dtype=torch.float64))
            scale[i] += strength * beta
        return [Write(site, Stretch(scale, torch.zeros_like(scale))) for site, scale in scales.items()]

    def control(self, seed: int = 0) -> DimensionRanking:
        """As many dimensions of every site drawn by lot, with the same momenta."""
        return replace(self, drawn=seed)

    def beyond_lot(self) -> int:
        """How many dimensions are surer than the surest of any round by lot."""
        return int((self.momentum.abs() > max(self.by_lot, default=float("nan")) + 1e-12).sum())

    def _table(self) -> Table:
        """One row per site."""
        parts = self.momentum.split(list(self.widths))
        limit = max(self.by_lot, default=float("nan"))
        return {
            "site": [*map(str, self.sites)],
            "dimensions": self.widths,
            "largest": [float(part.abs().max()) for part in parts],
            "beyond lot": [int((part.abs() > limit + 1e-12).sum()) for part in parts],
        }

    def __str__(self) -> str:
        most = ", ".join(f"{site}[{i}] {beta:+.2f}" for site, i, beta in self.top(min(4, len(self.momentum))))
        lot = f"{max(self.by_lot):.2f}" if self.by_lot else "not drawn"
        return (
            f"{len(self.momentum)} dimensions of {len(self.sites)} sites by {self.n_pairs} pairs: {most}; largest by "
            f"lot {lot}, {self.beyond_lot()} beyond it"
        )


@borrows
def rank_dimensions(
    model: TransformerBridge, examples: Examples, sites: Sequence[Site], *, n_controls: int = 5, seed: int = 0
) -> DimensionRanking:
    """Rank the dimensions of all `sites` together by activation momentum (see the module).

    Raises `InputError` for no sites, one twice, or fewer than two groups with prompts of both classes; `MetricError`
    for activations that are not finite.

    >>> found = rank_dimensions(model, Examples.of_task(task.train), [Site("mlp_out", layer) for layer in range(6)])
    >>> with intervene(model, found.writes(100, strength=2.0)):
    ...     model.generate(prompt)
    """
    if not sites or len(set(sites)) != len(sites):
        raise InputError(f"dimensions are ranked over one site or more, each once; got {[*map(str, sites)]}")
    kinds: dict[str, list[int]] = {}
    for i, site in enumerate(sites):
        kinds.setdefault(site.kind, []).append(i)
    rows: dict[int, Tensor] = {}
    for places in kinds.values():
        for i, x in zip(places, record_examples(model, examples, [sites[i] for i in places]), strict=True):
            if not bool(x.isfinite().all()):
                raise MetricError(f"activations at {sites[i]} are not finite; nothing can be ranked")
            rows[i] = differences_by_group(x.double(), examples)[0]
    differences = torch.cat([rows[i] for i in range(len(sites))], dim=1)
    if len(differences) < 2:
        raise InputError(f"a momentum counts pairs: two or more with both classes; got {len(differences)}")
    generator = torch.Generator().manual_seed(seed)
    coins = torch.randint(2, (n_controls, len(differences), 1), generator=generator).double() * 2 - 1
    lots = [float(momentum(differences * coin).abs().max()) for coin in coins]
    facts = build_provenance(
        method="activation momentum", model=identify_model(model), seed=seed,
        examples={"name": examples.name, "sha256": examples.sha256()},
    )  # fmt: skip
    return DimensionRanking(
        tuple(sites), tuple(rows[i].shape[1] for i in range(len(sites))), momentum(differences), tuple(lots),
        len(differences), provenance=facts,
    )  # fmt: skip


def momentum(differences: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """beta of every column: the signed share of the rows on the more frequent side of 0; ties are positive."""
    more, less = ((differences > 0).sum(dim=0), (differences < 0).sum(dim=0))
    return torch.where(more >= less, more, -less).double() / len(differences)
