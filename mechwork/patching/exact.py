"""Measured effects: activation patching, one run per cell, batched over cells and restarted at the patched layer.

    denoise: effect = m(corrupt run with the clean value put in) - m(corrupt)
    noise:   effect = m(clean) - m(clean run with the corrupt value put in)

Positive = the clean value raises the metric, in both directions. Cost per cell: the blocks from the patched layer on and
the unembedding, for all pairs. Heimersheim & Nanda 2024 ("How to use and interpret activation patching").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..interventions import Value, Write, intervene
from ..models.anatomy import ModelAnatomy, device_of
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..runs.record import Baseline, Run, align_donor, check_task, measure_baseline, record_run, run_to_metric
from ..runs.restart import restart_at
from ..sites import SITE_KINDS, Site, site_kind
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .result import Direction, Effect, Effects, check_direction

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, what)`` while long work goes on."""

PATCHABLE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_post")
"""Kinds with a position axis whose cells are (layer, position) or (layer, position, head)."""

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
        effects[plan.kind] = Effect(
            kind=plan.kind,
            per_example=plan.fold(change if direction == "denoise" else -change),
            axes=plan.axes,
            labels=plan.labels,
            baseline=baseline,
            direction=direction,
            estimated=False,
            metric_name=task.metric.name,
            provenance=provenance,
        )
    return Effects(effects)


@dataclass(frozen=True, eq=False)
class Plan:
    """The cells of one kind of site at any layer: masks of positions, times heads for per-head kinds."""

    kind: str
    masks: Bool[Tensor, "cell batch pos"]
    heads: tuple[int | None, ...]
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]

    @property
    def cells(self) -> list[tuple[int, int | None]]:
        """(index of the position mask, head) of every cell of a layer."""
        return [(i, head) for i in range(len(self.masks)) for head in self.heads]

    @property
    def n_cells(self) -> int:
        return len(self.labels["layer"]) * len(self.masks) * len(self.heads)

    def fold(self, values: Float[Tensor, "batch layer cell"]) -> Float[Tensor, "batch ..."]:
        """Split the cell axis into the axes of the result."""
        return values.reshape(len(values), *(len(self.labels[axis]) for axis in self.axes))


def build_plan(anatomy: ModelAnatomy, task: Task, pairs: PromptPairs, kind: str, positions: str | None) -> Plan:
    """Which cells a kind of site is patched at, and how the result's axes are named."""
    per_head = site_kind(kind).per_head
    positions = positions or ("all" if per_head else "each")
    names, masks = pairs.cells(positions)
    n_heads = anatomy.n_kv_heads if kind in ("k", "v") else anatomy.n_heads
    axes, labels = ["layer"], {"layer": tuple(str(layer) for layer in range(anatomy.n_layers))}
    if positions != "all":
        axes.append("pos")
        labels["pos"] = task.position_labels(names)
    if per_head:
        axes.append("head")
        labels["head"] = tuple(str(head) for head in range(n_heads))
    heads: tuple[int | None, ...] = tuple(range(n_heads)) if per_head else (None,)
    return Plan(kind, masks, heads, tuple(axes), labels)


def host_pairs(pairs: PromptPairs, direction: Direction) -> PromptPairs:
    """Pairs whose `clean` side is the run that is patched."""
    return pairs.corrupt_as_host() if direction == "denoise" else pairs


def record_both(
    model: TransformerBridge, task: Task, kinds: Sequence[str], direction: Direction
) -> tuple[Run, Run, Baseline]:
    """The run that gives, the run that receives (with its residual stream), and the baseline. Cost: 2 forwards."""
    wanted = list(dict.fromkeys(["resid_pre", *kinds]))
    clean = record_run(model, task.pairs, wanted)
    corrupt = record_run(model, task.pairs, wanted, corrupt=True)
    baseline = measure_baseline(task, clean.logits, corrupt.logits)
    return (clean, corrupt, baseline) if direction == "denoise" else (corrupt, clean, baseline)


def check_patchable(anatomy: ModelAnatomy, kinds: Sequence[str]) -> None:
    """Raises `InputError` for kinds that are unknown, not in this model, or without positions."""
    if not kinds or isinstance(kinds, str):
        raise InputError(f"sites is a list of site kinds, e.g. ['resid_pre', 'z']; got {kinds!r}")
    for kind in kinds:
        site_kind(kind)
        anatomy.check_site(Site(kind, 0) if SITE_KINDS[kind].per_layer else Site(kind))
        if kind not in PATCHABLE:
            raise InputError(
                f"patching is by position and layer; {kind!r} cannot be patched so. Patchable: {', '.join(PATCHABLE)}"
            )


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
