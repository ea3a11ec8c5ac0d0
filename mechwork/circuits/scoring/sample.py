"""Scores of many pairs, streamed: mean, variance and bootstrap means, without keeping a score per pair.

The bootstrap's draws are fixed before the first pair is seen, so each batch adds its share to every resample and the
result equals the bootstrap over kept pairs to rounding. Percentile intervals (Efron 1979); sums in at least float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...statistics import bootstrap_weights


@dataclass(frozen=True, eq=False)
class Streamed:
    """What is left of `n` pairs: per edge (packed, in the order of the space's mask) mean, unbiased variance, bootstrap
    means.

    `seed` is that of the draws. `resampled` has no rows for scores that are not means over pairs (ensembles of ranks).
    """

    n: int
    mean: Float[Tensor, " edge"]
    variance: Float[Tensor, " edge"]
    resampled: Float[Tensor, "resample edge"]
    seed: int = 0


class Stream:
    """Collects rows of scores, keeping either all of them or their moments and bootstrap means."""

    def __init__(self, n: int, n_cells: int, *, keep: bool, n_resamples: int, seed: int) -> None:
        self.n, self.seed, self.keep = n, seed, keep
        self.rows: list[Tensor] = []
        self.done = 0
        if not keep:
            self.weights = bootstrap_weights(n, n_resamples, seed)
            self.mean, self.squares = torch.zeros(n_cells), torch.zeros(n_cells)
            self.resampled = torch.zeros(n_resamples, n_cells)

    def add(self, rows: Float[Tensor, "batch cell"]) -> None:
        """The next pairs' scores."""
        rows = rows.cpu()
        if self.keep:
            self.rows.append(rows)
        else:
            self._merge(rows.to(torch.promote_types(rows.dtype, torch.float32)))
        self.done += len(rows)

    def _merge(self, rows: Tensor) -> None:
        """Means and sums of squared deviations of two groups of pairs combined (Chan et al. 1979)."""
        n, m = self.done, len(rows)
        mean = rows.mean(dim=0)
        shift = mean - self.mean
        self.squares = self.squares + (rows - mean).pow(2).sum(dim=0) + shift**2 * (n * m / (n + m))
        self.mean = self.mean + shift * (m / (n + m))
        draws = self.weights[:, n : n + m].to(rows)
        self.resampled = self.resampled.to(rows).addmm_(draws, rows)

    def kept(self) -> Float[Tensor, "batch cell"] | None:
        """All rows, when they were kept."""
        return torch.cat(self.rows) if self.keep else None

    def streamed(self) -> Streamed | None:
        """What is left of the rows, when they were not kept."""
        if self.keep:
            return None
        variance = self.squares / (self.n - 1) if self.n > 1 else torch.full_like(self.squares, torch.nan)
        return Streamed(self.n, self.mean, variance, self.resampled, self.seed)
