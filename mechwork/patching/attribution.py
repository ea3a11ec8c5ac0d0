"""Estimated effects: attribution patching, relevance patching, and their integrated-gradient forms, as one estimator.

    estimate = sum over the cell of (a_clean - a_corrupt) . coefficient,   coefficient = d m / d a

The *coefficient* comes from one backward pass under a composite of rules (`GRADIENT`: attribution patching, Nanda 2023;
`RELP`: relevance patching), at the corrupt run for the denoising effect and at the clean run for the noising effect, or
averaged over `ig_steps` midpoints of the path between the two runs' embeddings (Hanna et al. 2024; Sundararajan et al.
2017). Positive = the clean value raises the metric. Cost: 2 forwards + 1 backward (the gradient run is the host's run);
with steps, 2 + n forwards + n backwards. Only the columns that the metric reads are unembedded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError, check_whole
from ..execute import MemoryBudget, ModelRef, Progress, Unit, Work
from ..execute.drive import run_units
from ..execute.memory import cut
from ..execute.task import pack_task, unpack_task, why_not_sent
from ..execute.unit import Run as RunUnit
from ..execute.unit import Tensors
from ..interventions.pairs import between_sides
from ..models.anatomy import device_of, read_anatomy
from ..models.borrow import borrows, hooked
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..relevance import Binding, Composite, Rule, find_composite
from ..relevance.drop import droppable_layers
from ..runs.record import Baseline, Run, align_donor, check_task, join_baselines, record_run
from ..runs.remake import remade_blocks
from ..sites import Site, hook_name
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .grids import Masks, build_grid, check_patchable, effect_of
from .memory import tail_of
from .passes import plan_passes
from .queries_keys import QUERY_KEY, check_open, fixed_cells, patched_scores
from .result import Direction, Effects, check_direction
from .sides import host_pairs
from .words import find_named, narrow_effects

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "attribute.batch"
BETWEEN_LAYERS = ("embed", "resid_pre", "resid_mid", "resid_post")
"""Kinds of the stream itself, which belong to no layer that GradDrop could leave out."""


@borrows
def attribute(
    model: TransformerBridge,
    task: Task,
    sites: Sequence[str | Site],
    *,
    rules: str | Composite | Sequence[str | Rule] = "relp",
    ig_steps: int = 1,
    direction: str = "denoise",
    positions: str | None = None,
    memory_budget: MemoryBudget | None = None,
    progress: Progress | None = None,
) -> Effects:
    """Estimate what `mechwork.patch` measures, with the same axes and sign, from a few passes.

    `sites`: kinds, or places in words, as in `mechwork.patch`.

    `rules` is a `Composite`, a preset's name (``"gradient"``, ``"relp"``, ``"relp_ah"``, ``"cp_lrp"``, ``"attnlrp"``,
    ``"gim"``, ``"atp_star"``) or a list of rules; `ig_steps` = 1 is plain. With ``"atp_star"`` estimates are magnitudes
    averaged over backward passes that skip a layer each, with the sign of their sum, and q and k go through the softmax
    exactly (n_layers backward passes, and one forward per layer for each of q and k).

    Pairs run in micro-batches that fit `memory_budget` beside the weights (bytes or ``"2GB"``; default: 1 GiB, and one
    pair where that is too little). `progress` hears of every batch, and again while
    blocks run.

    In pairs of unequal length the path of `ig_steps` ends at the donor's embeddings at the corresponding tokens.

    Raises `InputError` for an unknown site or rule, rules that do not fit the model and a budget too small for one
    pair; `MetricError` for a metric without gradient, or coefficients that overflow.

    >>> approx = attribute(model, task, sites=exact.sites, rules="relp")
    >>> print(approx.agreement(exact))
    """
    direction = check_direction(direction)
    task.pairs.require_corrupt()
    composite = find_composite(rules)
    anatomy = check_task(model, task)
    named = find_named(sites)
    if named.neurons is not None:
        raise InputError("neurons are measured, not estimated; use mechwork.patch, or 'mlp_post' for a layer's neurons")
    sites = named.kinds
    check_patchable(anatomy, sites)
    check_points(ig_steps)
    exactly = tuple(kind for kind in sites if composite.query_key_fix and kind in QUERY_KEY)
    if exactly:
        check_open(model)
    pairs = host_pairs(task.pairs, direction).to(device_of(model))
    grids = {kind: build_grid(anatomy, task, pairs, kind, named.positions(kind, positions)) for kind in sites}
    masks = {kind: mask for kind, (_, mask) in grids.items()}
    plan = plan_passes(model, task, sites, memory_budget, through_softmax=bool(exactly), whole=composite.grad_drop)
    facts, tensors = pack_task(task)
    settings = {
        "task": facts, "rules": composite.to_json(), "ig_steps": ig_steps, "direction": direction,
        "exactly": list(exactly), "remade": plan.remade,
    }  # fmt: skip
    work = Work(OPERATION, ModelRef.of(model), settings, {"task": tensors, "masks": masks}, why_not_sent([task.metric]))
    run = Batches(model, task, composite, direction, masks, exactly, ig_steps, plan.remade).run
    found: list[Tensors] = []
    batches = cut(len(task), task.pairs.whole(plan.n_pairs))
    for unit, values in run_units(work, (work.unit(rows) for rows in batches), run):
        found.append(values)
        if progress is not None:
            progress(unit.rows[1], len(task), "attributing")
    provenance = build_provenance(
        method="attribution",
        rules=composite.to_json(),
        ig_steps=ig_steps,
        direction=direction,
        model=identify_model(model),
        task=task.provenance(),
    )
    baseline = join_baselines([Baseline(values["clean"], values["corrupt"]) for values in found])
    baseline = baseline.by(pairs.per_question)
    sign = 1.0 if direction == "denoise" else -1.0
    effects = {
        kind: effect_of(
            grid,
            sign * pairs.per_question(torch.cat([values[f"of.{kind}"] for values in found])),
            baseline,
            direction,
            task.metric.name,
            provenance,
            estimated=True,
        )
        for kind, (grid, _) in grids.items()
    }
    return narrow_effects(Effects(effects), named)


@dataclass(frozen=True, eq=False)
class Batches:
    """Estimates of a task's pairs, batch by batch: what runs the units of the work."""

    model: TransformerBridge
    task: Task
    composite: Composite
    direction: Direction
    masks: Masks
    exactly: tuple[str, ...]
    ig_steps: int
    remade: bool

    def run(self, unit: Unit) -> Tensors:
        """Estimates ``[batch, layer, cell]`` by kind, and the metric at both ends."""
        rows, estimates = slice(*unit.rows), {kind: list[Tensor]() for kind in self.masks}
        batch = Batch(
            self.model, self.task[rows], self.composite, self.direction, self.masks, rows, self.exactly, self.remade
        )
        ends = batch.run(self.ig_steps, estimates)
        found = {f"of.{kind}": torch.cat(parts) for kind, parts in estimates.items()}
        return {**found, "clean": ends.clean_per_example, "corrupt": ends.corrupt_per_example}


def build(model: TransformerBridge, work: Work) -> RunUnit:
    """What runs the batches in a process that has the work's data and the model alone."""
    says, task = work.settings, unpack_task(work.settings["task"], work.data["task"])
    composite, masks = Composite.from_json(says["rules"]), dict(work.data["masks"])
    return Batches(
        model, task, composite, says["direction"], masks, tuple(says["exactly"]), says["ig_steps"], says["remade"]
    ).run


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch of pairs, `rows` of the task; `masks` of positions by kind.

    `exactly`: kinds whose cells go through the softmax exactly; `remade`: blocks run again in backward passes.
    """

    model: TransformerBridge
    task: Task
    composite: Composite
    direction: Direction
    masks: Masks
    rows: slice
    exactly: tuple[str, ...]
    remade: bool

    def run(self, ig_steps: int, estimates: dict[str, list[Tensor]]) -> Baseline:
        """Adds the estimates ``[batch, layer, cell]`` of every kind. Cost: 2 forwards + 1 backward; see the module."""
        pairs = host_pairs(self.task.pairs, self.direction).to(device_of(self.model))
        n_tail = tail_of(pairs, [self.task.metric], sparing=True)
        kinds = list(self.masks)
        also = ["attn_scores"] if self.exactly else []
        embeds = ["resid_pre"] if ig_steps > 1 or self.exactly else []
        wanted = list(dict.fromkeys([*kinds, *embeds, *also]))
        donor = record_run(self.model, pairs, wanted, corrupt=True, n_tail=n_tail)
        host = record_run(self.model, pairs, wanted, n_tail=n_tail) if ig_steps > 1 else None
        ends = None if host is None else (host.layers["resid_pre"][0], donor.layers["resid_pre"][0])
        if ends is not None and not pairs.aligned:
            ends = ends[0], align_donor(ends[1], ends[0], pairs.alignment())
        donor_value = self.task.measure(donor.logits, pairs.corrupt_as_host())
        terms: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        cells: Cells | None = None
        for point in coefficient_points(
            self.model, self.task, pairs, self.composite, [*kinds, *(["pattern"] if self.exactly else [])],
            path_fractions(ig_steps), ends, also_record=[*embeds, *also] if host is None else [],
            grad_drop=self.composite.grad_drop, n_tail=n_tail, remade=self.remade,
        ):  # fmt: skip
            host = host or detached(point.run)  # the gradient run at the host's own embeddings is the host's run
            cells = cells or Cells.of(self, pairs, donor, host)
            for kind in kinds:
                terms[kind].append(cells.estimate(kind, point.coefficients))
        assert host is not None
        for kind in kinds:
            estimate = torch.stack(terms[kind]).unflatten(0, (ig_steps, -1)).mean(dim=0)  # drop batch layer cell
            estimates[kind].append(_combine_drops(estimate, kind) if self.composite.grad_drop else estimate[0])
        host_value = self.task.measure(host.logits, pairs)
        clean, corrupt = (donor_value, host_value) if self.direction == "denoise" else (host_value, donor_value)
        return Baseline(clean.detach().cpu(), corrupt.detach().cpu())


@dataclass(frozen=True, eq=False)
class Cells:
    """What is multiplied with the coefficients: how the donor's activations differ from the host's, cell by cell."""

    group_size: int
    host: Run
    changes: dict[str, list[Tensor]]
    scores: dict[str, list[Tensor]]
    masks: Masks

    @classmethod
    def of(cls, batch: Batch, pairs: PromptPairs, donor: Run, host: Run) -> Cells:
        """The changes between the two runs; of `Batch.exactly` also the attention scores with the donor's q or k."""
        index, width = pairs.alignment(), pairs.clean_tokens.shape[1]
        changes = {
            kind: [
                align_donor(value, own, index) - own.to(value.device)
                for value, own in zip(donor.layers[kind], host.layers[kind], strict=True)
            ]
            for kind in batch.masks
        }
        scores = {
            kind: [
                patched_scores(batch.model, pairs, kind, layer, own + change, host.layers["resid_pre"][layer])
                for layer, (own, change) in enumerate(zip(host.layers[kind], changes[kind], strict=True))
            ]
            for kind in batch.exactly
        }
        masks = {kind: mask[:, batch.rows, :width] for kind, mask in batch.masks.items()}
        return cls(read_anatomy(batch.model).group_size, host, changes, scores, masks)

    def estimate(self, kind: str, coefficients: dict[str, list[Tensor]]) -> Float[Tensor, "batch layer cell"]:
        """The estimates of every cell of a kind under some coefficients."""
        rows = []
        for layer, change in enumerate(self.changes[kind]):
            if kind in self.scores:
                found = fixed_cells(
                    kind, self.host.layers["attn_scores"][layer], self.scores[kind][layer],
                    coefficients["pattern"][layer], self.masks[kind], self.group_size,
                )  # fmt: skip
            else:
                product = (change * coefficients[kind][layer].to(change.device)).sum(dim=-1)  # batch pos (head)
                found = torch.einsum("bp...,cbp->bc...", product, self.masks[kind].to(product))
            rows.append(found.flatten(1).to(rows[0].device if rows else found.device))
        return torch.stack(rows, dim=1)


def _combine_drops(terms: Float[Tensor, "drop batch layer cell"], kind: str) -> Float[Tensor, "batch layer cell"]:
    """Mean magnitude over the dropped layers, with the sign of the sum; a place inside a layer is not judged without
    that layer.
    """
    n_layers = terms.shape[0]
    weights = torch.ones(n_layers, n_layers, dtype=terms.dtype, device=terms.device)
    if kind not in BETWEEN_LAYERS and n_layers > 1:
        weights.fill_diagonal_(0)
    weights = (weights / weights.sum(dim=0))[:, None, :, None]
    return (weights * terms).sum(dim=0).sign() * (weights * terms.abs()).sum(dim=0)


@dataclass(frozen=True, eq=False)
class PathPoint:
    """One point of the path: the run there (in the graph), the coefficients per kind and layer, the bound rules."""

    run: Run
    coefficients: dict[str, list[Tensor]]
    binding: Binding


def path_fractions(ig_steps: int) -> tuple[float, ...]:
    """Points of the path from the host's embeddings (0) to the donor's (1): the host, or n midpoints (k + 1/2) / n."""
    return (0.0,) if ig_steps == 1 else tuple((k + 0.5) / ig_steps for k in range(ig_steps))


def check_points(ig_steps: int) -> None:
    """Raises `InputError` for no point at all."""
    if check_whole("ig_steps", ig_steps) < 1:
        raise InputError(f"ig_steps counts points on the path and is at least 1; got {ig_steps}")


def coefficient_points(
    model: TransformerBridge,
    task: Task,
    pairs: PromptPairs,
    composite: Composite,
    kinds: Sequence[str],
    fractions: Sequence[float] = (0.0,),
    ends: tuple[Tensor, Tensor] | None = None,
    *,
    also_record: Sequence[str] = (),
    grad_drop: bool = False,
    n_tail: int | None = None,
    remade: bool = False,
) -> Iterator[PathPoint]:
    """Coefficients at each point of the path between `ends`, the host's and the donor's embeddings.

    A fraction of 0 is the host run itself and needs no `ends`. `pairs` has the host as its clean side; `n_tail`: the
    last columns alone are unembedded. With `grad_drop`, every point comes once per layer, with that layer's writes left
    out of the backward pass (one layer alone: not). Cost per point: 1 forward + 1 backward, or n_layers backwards;
    where blocks are `remade` (not with `grad_drop`) 1 forward more.
    """
    for fraction in fractions:
        with (
            composite.context(model) as binding,
            droppable_layers(model) if grad_drop else nullcontext() as drop,
            between_sides(model, pairs.corrupt_tokens, fraction),
            _embedding_at(model, None if not fraction or ends is None else ends[0] + fraction * (ends[1] - ends[0])),
            remade_blocks(model, when=remade),
        ):
            run = record_run(model, pairs, list(dict.fromkeys([*kinds, *also_record])), grad=True, n_tail=n_tail)
            value = task.measure(run.logits, pairs).sum()
            found = find_coefficients(run, value, kinds) if drop is None else {}
        if drop is None:
            yield PathPoint(run, found, binding)
            continue
        n_layers = len(model.blocks)
        for layer in range(n_layers):
            drop.layer = layer if n_layers > 1 else None
            yield PathPoint(run, find_coefficients(run, value, kinds, keep_graph=True), binding)


def detached(run: Run) -> Run:
    """The same numbers outside the autograd graph."""
    layers = {kind: [activation.detach() for activation in found] for kind, found in run.layers.items()}
    return Run(run.logits.detach(), layers)


def find_coefficients(
    run: Run, value: Float[Tensor, ""], kinds: Sequence[str], *, keep_graph: bool = False
) -> dict[str, list[Tensor]]:
    """d value / d activation for every recorded activation of `kinds`; zero where the rules cut every path.

    Raises `MetricError` for a metric without gradient, and for coefficients that are not finite, naming the first
    place.
    """
    if not value.requires_grad:
        raise MetricError(
            "the metric has no gradient with respect to the logits (it detaches them, or is a count). Use a "
            "differentiable metric."
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
                    f"coefficients at {kind} of layer {layer} are not finite in {grad.dtype}. Load the model in "
                    "float32 (or bfloat16, "
                    "whose range is wider than float16's), or choose rules whose ratios stay bounded."
                )
    return coefficients


def _embedding_at(model: TransformerBridge, value: Tensor | None) -> Any:
    """A context in which the stream entering block 0 is `value` and the leaf of the graph (None: the model's own)."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        assert value is not None
        return value.detach().requires_grad_(True)

    return hooked(model, [] if value is None else [(hook_name(Site("resid_pre", 0)), put)])
