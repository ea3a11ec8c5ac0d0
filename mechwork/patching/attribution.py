"""Estimated effects: attribution patching, relevance patching, and their integrated-gradient forms, as one estimator.

    estimate = sum over the cell of (a_clean - a_corrupt) . coefficient,   coefficient = d m / d a

The *coefficient* comes from one backward pass under a composite of rules (`GRADIENT`: attribution patching, Nanda 2023;
`RELP`: relevance patching), at the corrupt run for the denoising effect and at the clean run for the noising effect, or
averaged over `ig_steps` midpoints of the path between the two runs' embeddings (Hanna et al. 2024; Sundararajan et al. 2017).
Positive = the clean value raises the metric. Cost: 2 forwards + 1 backward; with steps, 2 + n forwards + n backwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError
from ..models.anatomy import device_of
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..relevance import Binding, Composite, Rule, find_composite
from ..relevance.drop import droppable_layers
from ..runs.record import Run, align_donor, check_task, record_run
from ..sites import Site, hook_name
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .plan import build_plan, check_patchable, host_pairs, record_both
from .queries_keys import QUERY_KEY, check_open, fixed_cells, patched_scores
from .result import Effects, check_direction
from .words import find_named, narrow_effects

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BETWEEN_LAYERS = ("embed", "resid_pre", "resid_mid", "resid_post")
"""Kinds of the stream itself, which belong to no layer that GradDrop could leave out."""


def attribute(
    model: TransformerBridge,
    task: Task,
    sites: Sequence[str | Site],
    *,
    rules: str | Composite | Sequence[str | Rule] = "relp",
    ig_steps: int = 1,
    direction: str = "denoise",
    positions: str | None = None,
) -> Effects:
    """Estimate what `mechwork.patch` measures, with the same axes and sign, from a few passes.

    `sites`: kinds, or places in words, as in `mechwork.patch`.

    `rules` is a `Composite`, a preset's name (``"gradient"``, ``"relp"``, ``"relp_ah"``, ``"cp_lrp"``, ``"attnlrp"``, ``"gim"``, ``"atp_star"``) or a
    list of rules; `ig_steps` = 1 is plain. With ``"atp_star"`` estimates are magnitudes averaged over backward passes that skip a
    layer each, with the sign of their sum, and q and k go through the softmax exactly (n_layers backward passes, and one
    forward per layer for each of q and k).

    Raises `InputError` for an unknown site or rule, rules that do not fit the model, and pairs of unequal length with `ig_steps` > 1;
    `MetricError` for a metric without gradient, or coefficients that overflow.

    >>> approx = attribute(model, task, sites=exact.sites, rules="relp")
    >>> print(approx.agreement(exact))
    """
    direction = check_direction(direction)
    composite = find_composite(rules)
    anatomy = check_task(model, task)
    named = find_named(sites)
    if named.neurons is not None:
        raise InputError("neurons are measured, not estimated; use mechwork.patch, or 'mlp_post' for a layer's neurons")
    sites = named.kinds
    check_patchable(anatomy, sites)
    through_softmax = [kind for kind in sites if composite.query_key_fix and kind in QUERY_KEY]
    if through_softmax:
        check_open(model)
    also = ["attn_scores"] if through_softmax else []
    donor, host, baseline = record_both(model, task, [*sites, *also], direction)
    pairs = host_pairs(task.pairs, direction).to(device_of(model))
    index = pairs.alignment()
    plans = {kind: build_plan(anatomy, task, pairs, kind, named.positions(kind, positions)) for kind in sites}
    changes = {
        kind: [
            align_donor(value, own, index) - own
            for value, own in zip(donor.layers[kind], host.layers[kind], strict=True)
        ]
        for kind in sites
    }
    scores = {
        (kind, layer): patched_scores(
            model, pairs, kind, layer, host.layers[kind][layer] + changes[kind][layer], host.layers["resid_pre"][layer]
        )
        for kind in through_softmax
        for layer in range(anatomy.n_layers)
    }
    kinds = [*sites, *(["pattern"] if through_softmax else [])]
    terms: dict[str, list[Tensor]] = {kind: [] for kind in sites}
    for point in coefficient_points(
        model, task, pairs, composite, kinds, donor, host, ig_steps, grad_drop=composite.grad_drop
    ):
        for kind, plan in plans.items():
            rows = []
            for layer in range(anatomy.n_layers):
                if kind in through_softmax:
                    cells = fixed_cells(
                        kind, host.layers["attn_scores"][layer], scores[kind, layer],
                        point.coefficients["pattern"][layer], plan.masks, anatomy.group_size,
                    )  # fmt: skip
                else:
                    product = (changes[kind][layer] * point.coefficients[kind][layer]).sum(dim=-1)  # batch pos (head)
                    cells = torch.einsum("bp...,cbp->bc...", product, plan.masks.to(product))
                rows.append(cells.flatten(1))
            terms[kind].append(torch.stack(rows, dim=1))
    provenance = build_provenance(
        method="attribution",
        rules=composite.to_json(),
        ig_steps=ig_steps,
        direction=direction,
        model=identify_model(model),
        task=task.provenance(),
    )
    sign = 1.0 if direction == "denoise" else -1.0
    effects = {}
    for kind, plan in plans.items():
        estimate = torch.stack(terms[kind]).unflatten(0, (ig_steps, -1)).mean(dim=0)  # drop batch layer cell
        combined = _combine_drops(estimate, kind) if composite.grad_drop else estimate[0]
        effects[kind] = plan.effect(sign * combined, task, baseline, direction, provenance, estimated=True)
    return narrow_effects(Effects(effects), named)


def _combine_drops(terms: Float[Tensor, "drop batch layer cell"], kind: str) -> Float[Tensor, "batch layer cell"]:
    """Mean magnitude over the dropped layers, with the sign of the sum; a place inside a layer is not judged without that layer."""
    n_layers = terms.shape[0]
    weights = torch.ones(n_layers, n_layers, dtype=terms.dtype, device=terms.device)
    if kind not in BETWEEN_LAYERS and n_layers > 1:
        weights.fill_diagonal_(0)
    weights = (weights / weights.sum(dim=0))[:, None, :, None]
    return (weights * terms).sum(dim=0).sign() * (weights * terms.abs()).sum(dim=0)


@dataclass(frozen=True, eq=False)
class Point:
    """One point of the path: the run there (in the graph), the coefficients per kind and layer, the bound rules."""

    run: Run
    coefficients: dict[str, list[Tensor]]
    binding: Binding


def coefficient_points(
    model: TransformerBridge,
    task: Task,
    pairs: PromptPairs,
    composite: Composite,
    kinds: Sequence[str],
    donor: Run,
    host: Run,
    ig_steps: int,
    *,
    also_record: Sequence[str] = (),
    fractions: Sequence[float] | None = None,
    grad_drop: bool = False,
) -> Iterator[Point]:
    """Coefficients at each point of the path from the host's embeddings (0) to the donor's (1).

    One step is the host run itself; n steps are the midpoints (k + 1/2) / n. `fractions` overrides them. `pairs` has the
    host as its clean side. With `grad_drop`, every point comes once per layer, with that layer's writes left out of the
    backward pass (one layer alone: not). Cost per point: 1 forward + 1 backward, or n_layers backwards.
    """
    if ig_steps < 1:
        raise InputError(f"ig_steps counts points on the path and is at least 1; got {ig_steps}")
    if fractions is None:
        fractions = (0.0,) if ig_steps == 1 else tuple((k + 0.5) / ig_steps for k in range(ig_steps))
    if any(fractions) and not pairs.aligned:
        raise InputError(
            "integrated gradients need prompts of equal length in every pair; use ig_steps=1, or reword the prompts"
        )
    start, end = host.layers["resid_pre"][0], donor.layers["resid_pre"][0]
    for fraction in fractions:
        with (
            composite.context(model) as binding,
            droppable_layers(model) if grad_drop else nullcontext() as drop,
            _embedding_at(model, start + fraction * (end - start) if fraction else None),
        ):
            run = record_run(model, pairs, list(dict.fromkeys([*kinds, *also_record])), grad=True)
            value = task.measure(run.logits, pairs).sum()
        if drop is None:
            yield Point(run, find_coefficients(run, value, kinds), binding)
            continue
        n_layers = len(model.blocks)
        for layer in range(n_layers):
            drop.layer = layer if n_layers > 1 else None
            yield Point(run, find_coefficients(run, value, kinds, keep_graph=True), binding)


def find_coefficients(
    run: Run, value: Float[Tensor, ""], kinds: Sequence[str], *, keep_graph: bool = False
) -> dict[str, list[Tensor]]:
    """d value / d activation for every recorded activation of `kinds`; zero where the rules cut every path.

    Raises `MetricError` for a metric without gradient, and for coefficients that are not finite, naming the first place.
    """
    if not value.requires_grad:
        raise MetricError(
            "the metric has no gradient with respect to the logits (it detaches them, or is a count). Use a differentiable metric."
        )
    nodes = [node for kind in kinds for node in run.layers[kind]]
    reachable = [node for node in nodes if node.requires_grad]
    found = torch.autograd.grad(value, reachable, allow_unused=True, retain_graph=keep_graph)
    by_node = {id(node): grad for node, grad in zip(reachable, found, strict=True)}
    coefficients: dict[str, list[Tensor]] = {}
    for kind in kinds:
        grads = [by_node.get(id(node)) for node in run.layers[kind]]
        coefficients[kind] = [
            torch.zeros_like(node) if grad is None else grad for node, grad in zip(run.layers[kind], grads, strict=True)
        ]
        for layer, grad in enumerate(coefficients[kind]):
            if not bool(torch.isfinite(grad).all()):
                raise MetricError(
                    f"coefficients at {kind} of layer {layer} are not finite in {grad.dtype}. Load the model in float32 (or bfloat16, "
                    "whose range is wider than float16's), or choose rules whose ratios stay bounded."
                )
    return coefficients


def _embedding_at(model: TransformerBridge, value: Tensor | None) -> Any:
    """A context in which the stream entering block 0 is `value` and the leaf of the graph (None: the model's own)."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        assert value is not None
        return value.detach().requires_grad_(True)

    return model.hooks(fwd_hooks=[] if value is None else [(hook_name(Site("resid_pre", 0)), put)])
