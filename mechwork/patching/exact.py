"""Measured effects: activation patching, one run per cell, batched over cells and restarted at the patched layer.

    denoise: effect = m(corrupt run with the clean value put in) - m(corrupt)
    noise:   effect = m(clean) - m(clean run with the corrupt value put in)

Positive = the clean value raises the metric, in both directions. Cost per cell: the blocks from the patched layer on and
the unembedding, for all pairs. Heimersheim & Nanda 2024 ("How to use and interpret activation patching").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..interventions import Value, Write, intervene
from ..models.anatomy import device_of
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..runs.record import align_donor, check_task, run_to_metric
from ..runs.restart import restart_at
from ..sites import Site
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .plan import Plan, build_plan, check_patchable, host_pairs, record_both
from .result import Effects, check_direction

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, what)`` while long work goes on."""

CHUNK_BYTES = 256 * 2**20
"""How much memory the activations of one chunk of cells may take, roughly."""


def patch(
    model: TransformerBridge,
    task: Task,
    sites: Sequence[str],
    *,
    direction: str = "denoise",
    positions: str | None = None,
    progress: Progress | None = None,
) -> Effects:
    """Measure the effect of patching every (layer, position) or (layer, head) of the given kinds of site.

    `positions`: ``"each"`` (token positions; spans when prompts differ in length), ``"spans"``, or ``"all"`` (every position at
    once). By default residual kinds are resolved by position and per-head kinds patched at all positions.

    Returns effects ``[layer, pos]``, or ``[layer, head]`` / ``[layer, pos, head]`` for per-head kinds, per pair and averaged.
    Cost: 2 forwards, and per cell a forward from the patched layer on.

    Raises `InputError` for an unknown or missing site, a model in training mode or tokens of another model, and
    `MetricError` for a metric that is not finite; both before or at the first two forwards.

    >>> effects = patch(model, task, ["resid_pre"])
    >>> effects["resid_pre"].axes
    ('layer', 'pos')
    """
    direction = check_direction(direction)
    anatomy = check_task(model, task)
    check_patchable(anatomy, sites)
    donor, host, baseline = record_both(model, task, sites, direction)
    pairs = host_pairs(task.pairs, direction).to(device_of(model))
    index = pairs.alignment()
    plans = [build_plan(anatomy, task, pairs, kind, positions) for kind in sites]
    total, done = sum(plan.n_cells for plan in plans), 0
    provenance = build_provenance(
        method="activation patching", direction=direction, model=identify_model(model), task=task.provenance()
    )
    effects = {}
    for plan in plans:
        rows = []
        for layer in range(anatomy.n_layers):
            values = align_donor(donor.layers[plan.kind][layer], host.layers[plan.kind][layer], index)
            rows.append(_patch_layer(model, task, pairs, plan, layer, values, host.layers["resid_pre"][layer]))
            done += plan.n_cells // anatomy.n_layers
            if progress is not None:
                progress(done, total, f"patching {plan.kind}")
        metric = torch.stack(rows, dim=1).cpu()  # batch layer cell
        reference = baseline.corrupt_per_example if direction == "denoise" else baseline.clean_per_example
        change = metric - reference[:, None, None]
        change = change if direction == "denoise" else -change
        effects[plan.kind] = plan.effect(change, task, baseline, direction, provenance, estimated=False)
    return Effects(effects)


def _patch_layer(
    model: TransformerBridge,
    task: Task,
    pairs: PromptPairs,
    plan: Plan,
    layer: int,
    values: Float[Tensor, "batch pos ..."],
    resid_pre: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch cell"]:
    """The metric of every cell of one layer, chunk by chunk: a chunk stacks copies of all pairs, one cell per copy."""
    metrics = []
    step = _copies_per_chunk(model, pairs)
    for start in range(0, len(plan.cells), step):
        chunk = plan.cells[start : start + step]
        writes = _writes(plan, chunk, layer, values)
        tokens = pairs.clean_tokens.repeat(len(chunk), 1)
        with restart_at(model, layer, resid_pre.repeat(len(chunk), 1, 1)), intervene(model, writes):
            logits = run_to_metric(model, task, pairs, tokens)
        metrics += [task.measure(part, pairs) for part in logits.split(len(pairs))]
    return torch.stack(metrics, dim=1)


def _writes(plan: Plan, chunk: list[tuple[int, int | None]], layer: int, values: Tensor) -> list[Write]:
    """The writes of stacked cells: one per head that occurs, each at the positions of the copies that patch it."""
    copies = [plan.masks[i] for i, _ in chunk]
    nowhere = torch.zeros_like(copies[0])
    writes = []
    for head in dict.fromkeys(head for _, head in chunk):
        where = torch.cat([mask if h == head else nowhere for mask, (_, h) in zip(copies, chunk, strict=True)])
        value = values if head is None else values[:, :, head]
        repeats: Any = (len(chunk), *[1] * (value.ndim - 1))
        writes.append(Write(Site(plan.kind, layer, head), Value(value.repeat(repeats)), where))
    return writes


def _copies_per_chunk(model: TransformerBridge, pairs: PromptPairs) -> int:
    """How many cells fit in `CHUNK_BYTES`, counting logits, attention and a few residual-sized activations per pair."""
    cfg = model.cfg
    n_pos = pairs.clean_tokens.shape[1]
    per_pair = 4 * (2 * int(cfg.d_vocab) * pairs.n_tail + (16 * int(cfg.d_model) + int(cfg.n_heads) * n_pos) * n_pos)
    return max(1, CHUNK_BYTES // (per_pair * len(pairs)))
