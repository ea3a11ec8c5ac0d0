"""Several scores of one graph made into one: the idea that won the 2025 shared task on circuit localisation.

``"mean"``: each score divided by its root mean square over edges, then averaged (per pair, so intervals stay).
``"rank"``: the mean of each edge's rank by absolute score, scaled to (0, 1], with the sign of the mean score; no
per-pair form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError, MetricError
from ...provenance import stable
from ...statistics import ordinal_ranks
from .sample import Streamed
from .scores import EdgeScores


def ensemble(scores: Sequence[EdgeScores], how: Literal["mean", "rank"] = "mean") -> EdgeScores:
    """One score from several of the same model, task and sign. Cost: none beyond theirs.

    Raises `InputError` for fewer than two, or for scores of different graphs, models, tasks or metrics.

    >>> both = ensemble([score_edges(model, task, preset=p) for p in ("relp", "eap-ig")])
    """
    if how not in ("mean", "rank"):
        raise InputError(f"scores are combined by 'mean' or 'rank'; got {how!r}")
    _check(scores)
    first = scores[0]
    scales = [float(s.values[s.space.mask].pow(2).mean().sqrt()) for s in scores]
    if min(scales) == 0:
        raise MetricError("scores that are all zero cannot be combined with others; score the edges again")
    packed = torch.stack([s.values[s.space.mask] / scale for s, scale in zip(scores, scales, strict=True)])
    kept = [s.per_example for s in scores if s.per_example is not None]
    per_example: Tensor | None = None
    streamed: Streamed | None = None
    if how == "mean" and len(kept) == len(scores):
        per_example = torch.stack([p / scale for p, scale in zip(kept, scales, strict=True)]).mean(dim=0)
    else:
        mean = packed.mean(dim=0)
        if how == "rank":
            mean = torch.stack([ordinal_ranks(row.abs()) for row in packed]).mean(dim=0) * mean.sign()
        unknown = torch.full_like(mean, torch.nan)
        streamed = Streamed(first.n_pairs, mean, unknown, mean.new_empty(0, len(mean)))
    name = f"{how} of " + ", ".join(_label(s) for s in scores)
    provenance = {**first.provenance, "preset": name, "ensemble": [stable(s.provenance) for s in scores]}
    return replace(first, per_example=per_example, streamed=streamed, rules=name, provenance=provenance)


def _label(scores: EdgeScores) -> str:
    return scores.provenance.get("preset") or f"{scores.rules} x {scores.ig_steps}"


def _check(scores: Sequence[EdgeScores]) -> None:
    if len(scores) < 2:
        raise InputError(f"an ensemble needs at least two scores; got {len(scores)}")

    def facts(s: EdgeScores) -> tuple[object, ...]:
        model, task = s.provenance.get("model", {}), s.provenance.get("task", {})
        return (s.space, s.metric_name, model.get("weights_sha256"), task.get("sha256"), s.n_pairs)

    for other in scores[1:]:
        if facts(other) != facts(scores[0]):
            raise InputError(
                "scores can be combined when they are of one graph, model, task and metric; got "
                f"{scores[0].space}, {scores[0].metric_name} and {other.space}, {other.metric_name}"
            )
