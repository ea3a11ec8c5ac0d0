"""Record what a reference set of prompts has at the places of a spec: moments, or whole activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..execute.memory import MemoryBudget
from ..interventions import Moments, watch_experts
from ..models.anatomy import device_of, read_anatomy
from ..runs.record import Run, check_task, record_run
from ..runs.room import DEFAULT_BUDGET, prompts_that_fit
from ..sites import Site
from ..tasks.pairs import END, PromptPairs
from ..tasks.task import Task
from .spec import AblationSpec
from .targets import Target

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Values = dict[str, tuple[Float[Tensor, "batch pos ..."], Bool[Tensor, "batch pos"]]]
"""Per table: activations, and which of their positions count."""


def table_key(target: Target, kind: str) -> str:
    """The name of a target's table at a kind of site: shared by targets that are parts of one activation."""
    return str(target) if target.kind in ("direction", "edge", "expert") else f"{kind}.{target.layer}"


def position_mask(name: str | int, pairs: PromptPairs | None, width: int) -> Bool[Tensor, "batch pos"]:
    """The positions called `name`: a span of the clean prompts of `pairs`, or an absolute column of all prompts.

    ``END`` is the last token also where the task has no spans. Raises `InputError` for a span without pairs or an
    unknown one.
    """
    text = str(name)
    if text.isdecimal():
        column = int(text)
        return (torch.arange(max(width, column + 1)) == column)[None]
    if pairs is None:
        raise InputError(f"{text!r} is a span of prompts: pass the pairs that are run, or give positions as numbers")
    if text in pairs.spans:
        return pairs.spans[text].cpu()
    if text == END:
        return torch.arange(pairs.clean_tokens.shape[1]) == (pairs.lengths.cpu() - 1)[:, None]
    raise InputError(f"positions are spans ({', '.join(pairs.spans) or 'none here'}), 'END' or columns; got {text!r}")


def positions_mask(spec: AblationSpec, pairs: PromptPairs | None, width: int) -> Bool[Tensor, "batch pos"] | None:
    """All positions of the spec together; None when it has no limit."""
    if spec.positions is None:
        return None
    masks = [position_mask(name, pairs, width) for name in spec.positions]
    wide = max(mask.shape[1] for mask in masks)
    rows = max(mask.shape[0] for mask in masks)
    padded = [torch.nn.functional.pad(mask, (0, wide - mask.shape[1])).expand(rows, wide) for mask in masks]
    return torch.stack(padded).any(dim=0)


def cells_of(
    target: Target, pairs: PromptPairs | None, width: int, *, causal: bool
) -> Bool[Tensor, "batch query_pos key_pos"]:
    """The (query, key) cells of an attention edge that attention can use; raises `InputError` when there are none."""
    query, key = position_mask(target.query, pairs, width), position_mask(target.key, pairs, width)
    n = max(query.shape[1], key.shape[1])
    query, key = (torch.nn.functional.pad(mask, (0, n - mask.shape[1])) for mask in (query, key))
    cells = query[:, :, None] & key[:, None, :]
    cells = cells.tril() if causal else cells
    if not bool(cells.any()):
        raise InputError(
            f"queries at {target.query} never see keys at {target.key}, which stand after them; got {target}"
        )
    return cells


def sites_needed(spec: AblationSpec) -> list[Site]:
    """Every site whose activations the spec replaces a part of (experts have none), in the order in which a forward
    meets them.
    """
    sites = []
    for target in spec.parsed:
        if target.kind == "direction":
            sites.append(Site(target.site, target.layer))
        elif target.kind != "expert":
            sites += [Site(kind, target.layer) for kind, _ in target.parts]
    return sorted(set(sites), key=lambda site: (site.layer or 0, site.kind))


def values_in(spec: AblationSpec, run: Run, order: list[Site], pairs: PromptPairs) -> Iterator[tuple[str, Tensor]]:
    """(table, activation ``[batch, pos, ...]``) of every target of a recorded run; patterns as ``[batch, query_pos,
    key_pos]``.
    """
    found = {site: run.layers[site.kind][[s for s in order if s.kind == site.kind].index(site)] for site in order}
    seen: set[str] = set()
    for target in spec.parsed:
        if target.kind == "expert":
            continue
        parts = ((target.site, None),) if target.kind == "direction" else target.parts
        for kind, _ in parts:
            key = table_key(target, kind)
            if key in seen:
                continue
            seen.add(key)
            value = found[Site(kind, target.layer)]
            if target.kind == "edge":
                value = value[:, target.index[0]]
            elif target.kind == "direction":
                value = value[:, :, target.index[0]] if target.index else value
                value = value @ spec.directions[target.name].to(value).T
            yield key, value


def _each_batch(
    model: TransformerBridge, spec: AblationSpec, reference: Task, take: Callable[[PromptPairs, Values], None],
    memory_budget: MemoryBudget,
) -> None:  # fmt: skip
    """Run the reference's clean prompts and hand the activations of each batch to `take`. Cost: 1 forward per batch."""
    check_task(model, reference)
    order = sites_needed(spec)
    experts: dict[int, list[int]] = {}
    for target in spec.parsed:
        if target.kind == "expert":
            experts.setdefault(target.layer, []).append(target.index[0])
    for pairs in reference.pairs.batches(prompts_that_fit(model, reference.pairs, memory_budget, sites=order)):
        pairs = pairs.to(device_of(model))
        values: Values = {}

        def see(layer: int, expert: int, write: Tensor, routed: Tensor, values: Values = values) -> None:
            values[f"m{layer}.e{expert}"] = (write.detach(), routed)

        with ExitStack() as stack:
            for layer, chosen in experts.items():
                stack.enter_context(watch_experts(model, layer, chosen, see))
            run = record_run(model, pairs, order, n_tail=1)
        for key, value in values_in(spec, run, order, pairs):
            values[key] = (value, pairs.mask)
        for key, (value, mask) in values.items():
            values[key] = (value, mask & pairs.mask)
        take(pairs, values)


def record_moments(
    model: TransformerBridge, spec: AblationSpec, reference: Task, memory_budget: MemoryBudget = DEFAULT_BUDGET
) -> dict[str, Tensor]:
    """Means (or, for ``noise``, standard deviations) over the reference, as the kind of the spec wants them."""
    columns = reference.pairs.clean_tokens.shape[1] if spec.kind == "mean_by_position" else 1
    edges = {str(target): target for target in spec.parsed if target.kind == "edge"}
    moments: dict[str, Moments] = {}
    causal = read_anatomy(model).causal

    def take(pairs: PromptPairs, values: Values) -> None:
        width = pairs.clean_tokens.shape[1]
        limit = positions_mask(spec, pairs, width) if spec.kind in ("mean", "noise", "optimal") else None
        for key, (value, mask) in values.items():
            if key in edges and columns == 1:
                value, mask = _edge_weights(value, cells_of(edges[key], pairs, width, causal=causal))
            elif limit is not None:
                mask = mask & limit[:, :width].to(mask.device)
            if spec.kind == "mean_by_span":
                for name, span in pairs.spans.items():
                    moments.setdefault(f"{key}|{name}", Moments()).add(value, mask & span.to(mask.device))
            else:
                moments.setdefault(key, Moments(columns)).add(value, mask)

    _each_batch(model, spec, reference, take, memory_budget)
    tables = {}
    for key, found in moments.items():
        if key.split("|")[0] in {str(t) for t in spec.parsed if t.kind == "expert"} and not float(found.count.sum()):
            raise InputError(
                f"no token of the reference is routed to {key}, so its write has no mean. Use kind 'zero', or other "
                "prompts."
            )
        if not float(found.count.sum()):
            raise InputError(
                f"no token of the reference is at the positions {list(spec.positions or ())}, so {key} has no mean "
                "there"
            )
        table = found.deviation() if spec.kind == "noise" else found.mean()
        tables[key] = (table if columns > 1 else table[0]).cpu()
    return tables


def _edge_weights(
    pattern: Float[Tensor, "batch query_pos key_pos"], cells: Bool[Tensor, "batch2 query_pos2 key_pos2"]
) -> tuple[Tensor, Tensor]:
    """The weights at the cells of an edge as ``[batch, pos]``, so that their mean is taken over cells."""
    n = pattern.shape[1]
    cells = cells[:, :n, :n].expand(len(pattern), n, n).to(pattern.device)
    return pattern.flatten(1), cells.flatten(1)


def record_examples(
    model: TransformerBridge, spec: AblationSpec, reference: Task, memory_budget: MemoryBudget = DEFAULT_BUDGET
) -> dict[str, Tensor]:
    """Activations of every reference prompt, ``[prompt, pos, ...]``, zeros beyond each prompt."""
    width = reference.pairs.clean_tokens.shape[1]
    rows: dict[str, list[Tensor]] = {}

    def take(pairs: PromptPairs, values: Values) -> None:
        for key, (value, _) in values.items():
            missing = width - value.shape[1]
            sides = [0, 0] * (value.ndim - 2) + [0, missing]
            if key in edges:
                sides = [0, missing, 0, missing]
            rows.setdefault(key, []).append(torch.nn.functional.pad(value, sides).cpu())

    edges = {str(target) for target in spec.parsed if target.kind == "edge"}
    _each_batch(model, spec, reference, take, memory_budget)
    return {key: torch.cat(parts) for key, parts in rows.items()}
