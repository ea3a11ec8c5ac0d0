"""Bases of activations: the directions in which the vectors at a site vary, with or without their sizes taken out.

With the centred vectors X = U S V^T of n prompts (n > 1), the k leading rows of V^T are the axes, s_i = S_i / sqrt(n -
1) the standard
deviations along them:

kind | coordinates | what they are like over the prompts:

- ``svd`` | (x - mean) V | uncorrelated, the i-th with standard deviation s_i
- ``whitened`` | (x - mean) V / sqrt(s^2 + shrinkage mean(s^2)) | uncorrelated, all about as large: distances do not
  favour the loud directions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError, UnknownNameError
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from .direction import Direction
from .examples import Examples, record_examples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BASES = ("svd", "whitened")


@dataclass(frozen=True, eq=False)
class ActivationBasis(Result):
    """`axes` ``[k, d]`` orthonormal, the most varied first; `scales` divides coordinates; `variances` along the axes;
    `total`: of all.
    """

    kind: str
    site: Site
    mean: Float[Tensor, " d"]
    axes: Float[Tensor, "k d"]
    scales: Float[Tensor, " k"]
    variances: Float[Tensor, " k"]
    total: float
    provenance: Provenance

    @property
    def explained(self) -> Float[Tensor, " k"]:
        """The share of all variance along the first 1, 2, ... axes."""
        return self.variances.cumsum(dim=0) / self.total

    def _table(self) -> Table:
        """One row per axis."""
        return {
            "axis": range(len(self.axes)),
            "variance": self.variances.tolist(),
            "explained": self.explained.tolist(),
            "scale": self.scales.tolist(),
        }

    def coordinates(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """Of vectors; raises `InputError` for another width."""
        if x.shape[-1] != len(self.mean):
            raise InputError(f"this basis is of vectors of {len(self.mean)} numbers; got {x.shape[-1]}")
        return (x - self.mean.to(x)) @ self.axes.to(x).T / self.scales.to(x)

    def vectors(self, coordinates: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        """The vectors with these coordinates, at the mean across the axes."""
        return (coordinates * self.scales.to(coordinates)) @ self.axes.to(coordinates) + self.mean.to(coordinates)

    def direction(self, index: int) -> Direction:
        """One axis as a direction, as long as the standard deviation along it; its sign is arbitrary."""
        if not 0 <= index < len(self.axes):
            raise InputError(f"this basis has the axes 0 to {len(self.axes) - 1}; got {index}")
        size = max(float(self.variances[index]) ** 0.5, 1e-12)
        middle = float(self.mean @ self.axes[index])
        return Direction(
            self.axes[index] * size, self.site, middle, middle - size, middle + size, f"axis {index} of {self.kind} "
                                                                                      f"at {self.site}",
            self.provenance, self.mean,
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"{self.kind} basis at {self.site}: {len(self.axes)} axes with {float(self.explained[-1]):.3f} of the "
            "variance"
        )


@borrows
def fit_basis(
    model: TransformerBridge,
    examples: Examples,
    site: Site,
    kind: str = "svd",
    *,
    k: int | None = None,
    shrinkage: float = 1e-3,
) -> ActivationBasis:
    """The `k` (default: all that vary) leading axes of the prompts' vectors at a site. Cost: 1 forward of all prompts.

    Raises `UnknownNameError` for an unknown kind, `InputError` for more axes than vary, `MetricError` for vectors that
    do not vary or are not finite.
    """
    x = record_examples(model, examples, [site])[0]
    provenance = build_provenance(
        method=f"{kind} basis",
        model=identify_model(model),
        examples={"name": examples.name, "sha256": examples.sha256()},
    )
    return basis_of(x, site, kind, k=k, shrinkage=shrinkage, provenance=provenance)


def basis_of(
    x: Float[Tensor, "n d"],
    site: Site,
    kind: str = "svd",
    *,
    k: int | None = None,
    shrinkage: float = 1e-3,
    provenance: Provenance | None = None,
) -> ActivationBasis:
    """The basis of recorded vectors; errors as `fit_basis`."""
    if kind not in BASES:
        raise UnknownNameError("kind of basis", kind, BASES)
    if not shrinkage >= 0:
        raise InputError(f"shrinkage is at least 0; got {shrinkage}")
    if not bool(x.isfinite().all()):
        raise MetricError(f"activations at {site} are not finite; nothing can be fitted")
    rows = x.double()
    mean = rows.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    variances = sizes.pow(2) / max(1, len(rows) - 1)
    n_varied = int((sizes > 1e-7 * sizes.max().clamp(min=1e-30)).sum()) if float(sizes.max()) > 1e-12 else 0
    if n_varied == 0:
        raise MetricError(f"the {len(rows)} vectors at {site} are all the same: they span no basis")
    k = n_varied if k is None else k
    if not 1 <= k <= n_varied:
        raise InputError(f"the vectors vary in {n_varied} directions; got k={k}")
    kept, total = variances[:k], float(variances.sum())
    scales = torch.ones_like(kept) if kind == "svd" else (kept + shrinkage * variances.mean()).sqrt()
    mean, axes, scales, kept = (part.to(x.dtype) for part in (mean, axes[:k], scales, kept))
    return ActivationBasis(kind, site, mean, axes, scales, kept, total, provenance or {})
