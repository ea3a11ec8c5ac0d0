"""Estimated effects: attribution patching, relevance patching, and their integrated-gradient forms, as one estimator.

    estimate = sum over the cell of (a_clean - a_corrupt) . coefficient,   coefficient = d m / d a

The *coefficient* comes from one backward pass under a composite of rules (`GRADIENT`: attribution patching, Nanda 2023;
`RELP`: relevance patching), at the corrupt run for the denoising effect and at the clean run for the noising effect, or
averaged over `ig_steps` midpoints of the path between the two runs' embeddings (Hanna et al. 2024; Sundararajan et al. 2017).
Positive = the clean value raises the metric. Cost: 2 forwards + 1 backward; with steps, 2 + n forwards + n backwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError
from ..models.anatomy import device_of
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..relevance import Binding, Composite, find_composite
from ..runs.record import Run, align_donor, check_task, record_run
from ..sites import Site, hook_name
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .plan import build_plan, check_patchable, host_pairs, record_both
from .result import Effects, check_direction

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def attribute(
    model: TransformerBridge,
    task: Task,
    sites: Sequence[str],
    *,
    rules: str | Composite = "relp",
    ig_steps: int = 1,
    direction: str = "denoise",
    positions: str | None = None,
) -> Effects:
    """Estimate what `mechwork.patch` measures, with the same axes and sign, from a few passes.

    `rules` is a `Composite` or a preset's name (``"gradient"``, ``"relp"``, ``"relp_ah"``, ``"cp_lrp"``); `ig_steps` = 1 is plain.

    >>> approx = attribute(model, task, sites=exact.sites, rules="relp")
    >>> print(approx.agreement(exact))
    """
    direction = check_direction(direction)
    composite = find_composite(rules)
    anatomy = check_task(model, task)
    check_patchable(anatomy, sites)
    donor, host, baseline = record_both(model, task, sites, direction)
    pairs = host_pairs(task.pairs, direction).to(device_of(model))
    index = pairs.alignment()
    sums: dict[str, list[Tensor]] = {}
    plans = {kind: build_plan(anatomy, task, pairs, kind, positions) for kind in sites}
    for point in coefficient_points(model, task, pairs, composite, sites, donor, host, ig_steps):
        for kind, plan in plans.items():
            for layer in range(anatomy.n_layers):
                delta = (
                    align_donor(donor.layers[kind][layer], host.layers[kind][layer], index) - host.layers[kind][layer]
                )
                product = (delta * point.coefficients[kind][layer]).sum(dim=-1)  # batch pos (head)
                cells = torch.einsum("bp...,cbp->bc...", product, plan.masks.to(product)).flatten(1)
                sums.setdefault(kind, []).append(cells)
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
        stacked = torch.stack(sums[kind], dim=1).unflatten(1, (ig_steps, anatomy.n_layers)).mean(dim=1)
        effects[kind] = plan.effect(sign * stacked, task, baseline, direction, provenance, estimated=True)
    return Effects(effects)


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
) -> Iterator[Point]:
    """Coefficients at each point of the path from the host's embeddings (0) to the donor's (1).

    One step is the host run itself; n steps are the midpoints (k + 1/2) / n. `fractions` overrides them. `pairs` has the
    host as its clean side. Cost per point: 1 forward + 1 backward.
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
            _embedding_at(model, start + fraction * (end - start) if fraction else None),
        ):
            run = record_run(model, pairs, list(dict.fromkeys([*kinds, *also_record])), grad=True)
            value = task.measure(run.logits, pairs).sum()
        yield Point(run, find_coefficients(run, value, kinds), binding)


def find_coefficients(run: Run, value: Float[Tensor, ""], kinds: Sequence[str]) -> dict[str, list[Tensor]]:
    """d value / d activation for every recorded activation of `kinds`; zero where the rules cut every path."""
    if not value.requires_grad:
        raise MetricError(
            "the metric has no gradient with respect to the logits (it detaches them, or is a count). Use a differentiable metric."
        )
    nodes = [node for kind in kinds for node in run.layers[kind]]
    reachable = [node for node in nodes if node.requires_grad]
    found = torch.autograd.grad(value, reachable, allow_unused=True)
    by_node = {id(node): grad for node, grad in zip(reachable, found, strict=True)}
    coefficients: dict[str, list[Tensor]] = {}
    for kind in kinds:
        grads = [by_node.get(id(node)) for node in run.layers[kind]]
        coefficients[kind] = [
            torch.zeros_like(node) if grad is None else grad for node, grad in zip(run.layers[kind], grads, strict=True)
        ]
    return coefficients


def _embedding_at(model: TransformerBridge, value: Tensor | None) -> Any:
    """A context in which the stream entering block 0 is `value` and the leaf of the graph (None: the model's own)."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        assert value is not None
        return value.detach().requires_grad_(True)

    return model.hooks(fwd_hooks=[] if value is None else [(hook_name(Site("resid_pre", 0)), put)])
