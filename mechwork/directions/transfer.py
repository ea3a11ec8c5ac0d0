"""A direction carried from one model into another: a map between their streams, and what the direction still does
there.

    f(x) = mean_B + (x - mean_A) M,   M fitted on the two models' vectors at the same tokens of the same texts

kind | M | source:

- ``orthogonal`` | scale * Q, Q^T Q = I, with the least squared error (Procrustes; needs equal widths to be a rotation)
  | Schonemann 1966
- ``least_squares`` | ridge regression | Lepori et al. 2025

v becomes v M, and a point of the axis (boundary, class means) its image f(point). No label is used for the map, so fit
it on text that has nothing to do with the direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from .direction import Direction
from .examples import Examples, record_positions

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MAPS = ("orthogonal", "least_squares")


@dataclass(frozen=True, eq=False)
class StreamMap(Result):
    """f(x) = `mean_to` + (x - `mean_from`) `matrix`; `fit` is the share of the target's variance that it explains on
    its own texts.
    """

    kind: str
    matrix: Float[Tensor, "d_from d_to"]
    mean_from: Float[Tensor, " d_from"]
    mean_to: Float[Tensor, " d_to"]
    site_from: Site
    site_to: Site
    fit: float
    provenance: Provenance

    def __call__(self, x: Float[Tensor, "*batch d_from"]) -> Float[Tensor, "*batch d_to"]:
        return self.mean_to.to(x) + (x - self.mean_from.to(x)) @ self.matrix.to(x)

    def _table(self) -> Table:
        """One row."""
        return {
            "kind": [self.kind],
            "site_from": [str(self.site_from)],
            "site_to": [str(self.site_to)],
            "fit": [self.fit],
            "norm": [float(self.matrix.norm())],
        }

    def carry(self, direction: Direction) -> Direction:
        """The direction in the other model, with its boundary and class means.

        Raises `InputError` for a direction at another site, or one that the map takes to nothing.
        """
        if direction.site != self.site_from:
            raise InputError(f"this map carries directions at {self.site_from}; got one at {direction.site}")
        vector = direction.vector.double() @ self.matrix
        if not float(vector.norm()) > 1e-9 * direction.norm:
            raise InputError(f"the map takes {direction.name!r} to nothing: the other model has no such direction")
        unit, u = vector / vector.norm(), direction.unit.double()
        base = self.mean_from if direction.centre is None else direction.centre.double()
        across = base - (base @ u) * u
        boundary, low, high = (
            float(self(across + point * u) @ unit) for point in (direction.boundary, direction.low, direction.high)
        )
        provenance = {
            **self.provenance, "method": f"direction carried by a map ({self.kind})",
            "transferred_from": direction.provenance.get("model"),
        }  # fmt: skip
        return Direction(
            vector.to(direction.vector.dtype), self.site_to, boundary, low, high, f"{direction.name}, carried "
                                                                                  "over", provenance,
            self(base).to(direction.vector.dtype),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"{self.kind} map from {self.site_from} to {self.site_to}: explains {self.fit:.3f} of the variance"


def fit_stream_map(
    model_from: TransformerBridge,
    model_to: TransformerBridge,
    texts_from: Examples,
    texts_to: Examples,
    site_from: Site,
    site_to: Site,
    kind: str = "orthogonal",
    *,
    ridge: float = 1e-2,
) -> StreamMap:
    """The map between the vectors at two sites, from the marked positions of the same texts in two models' tokens.

    Cost: 1 forward of each model. Raises `UnknownNameError` for an unknown kind, `InputError` for texts that do not
    correspond position by position, or an orthogonal map between different widths.

    >>> carried = fit_stream_map(small, large, texts_small, texts_large, site, other_site).carry(direction)
    """
    if kind not in MAPS:
        raise UnknownNameError("kind of map", kind, MAPS)
    counts = [examples.where.sum(dim=1) for examples in (texts_from, texts_to)]
    if len(counts[0]) != len(counts[1]) or not torch.equal(*counts):
        raise InputError(
            "the two models must read the same texts, token by token: as many prompts, and as many marked positions "
            "in each; got "
            f"{len(counts[0])} and {len(counts[1])} prompts with {int(counts[0].sum())} and {int(counts[1].sum())} "
            "positions"
        )
    x, y = (
        record_positions(model, examples, site)[examples.where].double()
        for model, examples, site in ((model_from, texts_from, site_from), (model_to, texts_to, site_to))
    )
    provenance = build_provenance(
        method=f"stream map: {kind}", model=identify_model(model_to), from_model=identify_model(model_from),
        texts={"name": texts_to.name, "sha256": texts_to.sha256()},
    )  # fmt: skip
    matrix = align(x, y, kind, ridge)
    left = (y - y.mean(dim=0) - (x - x.mean(dim=0)) @ matrix).pow(2).sum() / (y - y.mean(dim=0)).pow(2).sum()
    return StreamMap(kind, matrix, x.mean(dim=0), y.mean(dim=0), site_from, site_to, 1 - float(left), provenance)


def align(
    x: Float[Tensor, "n d_from"], y: Float[Tensor, "n d_to"], kind: str = "orthogonal", ridge: float = 1e-2
) -> Float[Tensor, "d_from d_to"]:
    """M with (x - mean) M near (y - mean), in float64; `ridge` in units of x's mean variance."""
    a, b = x.double() - x.double().mean(dim=0), y.double() - y.double().mean(dim=0)
    if kind == "orthogonal":
        if a.shape[1] != b.shape[1]:
            raise InputError(
                f"a rotation maps between equal widths; got {a.shape[1]} and {b.shape[1]}. Use kind='least_squares'"
            )
        left, sizes, right = torch.linalg.svd(a.T @ b)
        return sizes.sum() / a.pow(2).sum() * (left @ right)
    gram = a.T @ a
    return torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype), a.T @ b)
