"""Score every edge of the computational graph from a few passes.

    s(u -> v) = sum over positions of (write_u clean - write_u corrupt) . coefficient at v's input

Edge attribution patching (Syed et al. 2023), EAP-IG (Hanna et al. 2024) and relevance patching are points of one grid:
`rules` x `ig_steps`. Positive = the clean value along the edge raises the metric. Note the sign and the run: EAP-IG's own
code takes (corrupt - clean) and gradients at the clean run; that is minus `direction="noise"` here.

Cost: 2 forwards + `ig_steps` x (forward + backward) per batch of pairs, one product per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import device_of
from ..models.identity import identify_model
from ..patching.attribution import coefficient_points
from ..patching.plan import host_pairs, record_both
from ..patching.result import Direction, check_direction
from ..provenance import build_provenance
from ..relevance import Composite, find_composite
from ..runs.record import Baseline, check_task
from ..tasks.task import Task
from .scores import EdgeScores
from .space import EdgeSpace
from .writers import check_edges, reader_coefficients, reader_kinds, record_writers, stream_kinds, writer_kinds

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Progress = Callable[[int, int, str], None]

PRESETS: dict[str, tuple[str, int]] = {
    "eap": ("gradient", 1),
    "eap-ig": ("gradient", 5),
    "relp": ("relp", 1),
}
"""Familiar names as points of the grid (rules, ig_steps)."""


def score_edges(
    model: TransformerBridge,
    task: Task,
    *,
    rules: str | Composite = "relp",
    ig_steps: int = 1,
    direction: str = "denoise",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> EdgeScores:
    """Scores ``[pair, writer, reader]`` of all edges under a composite of rules.

    Works for grouped-query attention (k and v have one reader per key/value head, whose score is the sum over its query
    heads), parallel blocks, post-norms (linear at the live scale) and mixtures of experts (an MLP as one node).

    Raises `InputError` for prompts of unequal length within a pair, and everything that `attribute` raises.

    >>> scores = score_edges(model, task.train, rules="gradient", ig_steps=5)
    >>> circuit = scores.circuit(n_edges=80)
    """
    direction = check_direction(direction)
    composite = find_composite(rules)
    anatomy = check_task(model, task)
    check_edges(model, anatomy)
    require_aligned(task)
    space = EdgeSpace.of(anatomy)
    scores, clean, corrupt = [], [], []
    for start in range(0, len(task), batch_size):
        piece = task[start : start + batch_size]
        values, baseline = score_batch(model, piece, space, composite, ig_steps, direction)
        scores.append(values)
        clean.append(baseline.clean_per_example)
        corrupt.append(baseline.corrupt_per_example)
        if progress is not None:
            progress(min(start + batch_size, len(task)), len(task), "scoring edges")
    baseline = Baseline(torch.cat(clean), torch.cat(corrupt))
    baseline.require_gap()
    provenance = build_provenance(
        method="edge scores",
        rules=composite.to_json(),
        ig_steps=ig_steps,
        direction=direction,
        model=identify_model(model),
        task=task.provenance(),
    )
    return EdgeScores(
        space, torch.cat(scores), direction, composite.name, ig_steps, task.metric.name, baseline, provenance
    )


def require_aligned(task: Task) -> None:
    """Raises `InputError` unless the prompts of every pair have one length."""
    if not task.pairs.aligned:
        raise InputError(
            "edges compare writes position by position, so the two prompts of a pair need the same length. Reword the longer one."
        )


def score_batch(
    model: TransformerBridge,
    task: Task,
    space: EdgeSpace,
    composite: Composite,
    ig_steps: int,
    direction: Direction,
    fractions: Sequence[float] | None = None,
) -> tuple[Float[Tensor, "batch writer reader"], Baseline]:
    """Scores of all pairs of `task` in one piece; `fractions` overrides the points of the path (see `coefficient_points`)."""
    donor, host, baseline = record_both(model, task, writer_kinds(space), direction)
    delta = record_writers(model, space, donor) - record_writers(model, space, host)
    sign = 1.0 if direction == "denoise" else -1.0
    flat = sign * delta.flatten(2)  # batch writer pos*d_model
    pairs = host_pairs(task.pairs, direction).to(device_of(model))
    points = coefficient_points(
        model,
        task,
        pairs,
        composite,
        reader_kinds(space),
        donor,
        host,
        ig_steps,
        also_record=stream_kinds(space),
        fractions=fractions,
    )
    total = torch.zeros(
        len(task), space.n_writers, space.n_readers, dtype=torch.promote_types(flat.dtype, torch.float32)
    )
    n_points = 0
    for point in points:
        n_points += 1
        for columns, n_seen, coefficients in reader_coefficients(model, space, point):
            product = torch.bmm(flat[:, :n_seen], coefficients.flatten(2).transpose(1, 2))
            total[:, :n_seen, columns] += product.to(total)
    return total / n_points, baseline
