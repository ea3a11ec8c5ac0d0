"""Scores whose sign is sure first: edges that change sign when the pairs are resampled come after all others.

An edge is *sure* when at least `share` of the bootstrap means of its score have the sign of its mean (the bootstrapped
selection of arXiv:2510.25786, which drops the others). The others are scaled below the smallest sure one, so that
every size still has its circuit; their order and their signs stay. No forward pass.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...errors import InputError
from .sample import Streamed
from .scores import EdgeScores

SURE = 0.95


def sure_first(scores: EdgeScores, *, share: float = SURE, n_resamples: int = 500, seed: int = 0) -> EdgeScores:
    """The same scores with unsure edges below all sure ones; their values no longer are effects.

    Raises `InputError` for a share outside (0.5, 1], fewer than two pairs, or scores without resamples.

    >>> sure_first(scores).circuit(n_edges=80)
    """
    if not 0.5 < share <= 1:
        raise InputError(f"an edge is sure when more than half of its resamples agree: share in (0.5, 1]; got {share}")
    if scores.n_pairs < 2:
        raise InputError("scores are resampled over at least two pairs; got one")
    mean = scores.values[scores.space.mask]
    means = scores.resampled_means(n_resamples, seed)
    sure = (means.sign() == mean.sign()).to(mean).mean(dim=0) >= share
    least = mean[sure & (mean != 0)].abs()
    unsure = mean[~sure].abs()
    if not len(unsure) or not float(unsure.max()):
        return scores
    factor = 1.0 if not len(least) else min(1.0, 0.5 * float(least.min()) / float(unsure.max()))
    packed = torch.where(sure, mean, factor * mean)
    unknown = torch.full_like(packed, torch.nan)
    streamed = Streamed(scores.n_pairs, packed, unknown, packed.new_empty(0, len(packed)))
    provenance = {**scores.provenance, "sure_first": share}
    return replace(scores, per_example=None, streamed=streamed, provenance=provenance)
