"""What an estimator returns for a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ...runs.record import Baseline


@dataclass(frozen=True, eq=False)
class Rows:
    """Scores of some pairs, ``[batch, writer, reader]`` or with cells of positions after the batch, and their
    baseline.
    """

    values: Float[Tensor, "batch *cell writer reader"]
    baseline: Baseline
