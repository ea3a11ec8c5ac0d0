"""Attention patterns of some heads on one prompt, and where heads look by span on many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import names
from ..errors import InputError, some_or_all
from ..models.anatomy import ModelAnatomy, read_anatomy
from ..models.borrow import borrows
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from ..tasks.encode import tokenise
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .record import check_task, record_run
from .room import prompts_that_fit

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class AttentionPatterns(Result):
    """Patterns ``[head, query_pos, key_pos]`` of named heads (``"a3.h1"``) on the clean prompt of one pair."""

    tokens: tuple[str, ...]
    heads: tuple[str, ...]
    patterns: Float[Tensor, "head query_pos key_pos"]
    task_name: str
    provenance: Provenance

    def _table(self) -> Table:
        """One row per head, query and key."""
        n = len(self.tokens)
        return [
            {"head": name, "query": i, "query_token": self.tokens[i], "key": j, "key_token": self.tokens[j],
            "attention": float(p[i, j])}
            for name, p in zip(self.heads, self.patterns, strict=True)
            for i in range(n)
            for j in range(i + 1)
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"attention of {', '.join(self.heads)} over {len(self.tokens)} tokens of {self.task_name}"


@borrows
def record_attention(
    model: TransformerBridge, task: Task | str, heads: Sequence[str] | None = None, *, row: int = 0
) -> AttentionPatterns:
    """Attention of `heads` (default: all) on the clean prompt of pair `row`, or on one prompt given as text. Cost: 1
    forward of one prompt.

    Raises `InputError` for heads that the model does not have or that are not written like ``"a3.h1"``.
    """
    anatomy = read_anatomy(model) if isinstance(task, str) else check_task(model, task)
    every = [names.head_name(i, j) for i in range(anatomy.n_layers) for j in range(anatomy.n_heads)]
    heads = some_or_all("heads", heads, every)
    places = [parse_head(anatomy, head) for head in heads]
    layers = sorted({layer for layer, _ in places})
    sites = [Site("pattern", layer) for layer in layers]
    if isinstance(task, str):
        run = record_run(model, task, sites, n_tail=1)
        found = dict(zip(layers, run.layers["pattern"], strict=True))
        patterns = torch.stack([found[layer][0, head] for layer, head in places])
        texts = tuple(model.tokenizer.decode([i]) for i in tokenise(model, task))
        facts = build_provenance(method="attention patterns", prompt=task)
        return AttentionPatterns(texts, tuple(heads), patterns.cpu(), "one prompt", facts)
    if not -len(task) <= row < len(task):
        raise InputError(f"task {task.name!r} has pairs 0 to {len(task) - 1}; got row {row}")
    one = task[[row % len(task)]]
    run = record_run(model, one.pairs, sites, n_tail=1)
    length = int(one.pairs.lengths[0])
    found = dict(zip(layers, run.layers["pattern"], strict=True))
    patterns = torch.stack([found[layer][0, head, :length, :length] for layer, head in places])
    provenance = build_provenance(method="attention patterns", task=task.provenance(), row=row)
    return AttentionPatterns(one.prompt_texts(0)[0], tuple(heads), patterns.cpu(), task.name, provenance)


def parse_head(anatomy: ModelAnatomy, name: str) -> tuple[int, int]:
    """Layer and head of ``"a3.h1"``; raises `InputError` for anything else and for heads that are not there."""
    layer, head = names.parse_head(name)
    if not (0 <= layer < anatomy.n_layers and 0 <= head < anatomy.n_heads):
        raise InputError(
            f"heads are written 'a<layer>.h<head>', here a0.h0 to a{anatomy.n_layers - 1}.h{anatomy.n_heads - 1}; got "
            f"{name!r}"
        )
    return layer, head


@borrows
def attention_between(
    model: TransformerBridge, task: Task, spans: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Float[Tensor, "layer head"]]:
    """Mean attention from the positions of one span to those of another, on clean prompts, for every head. Cost: 1
    forward; no pattern outlives its layer.

    A value is the probability mass that a query of the first span puts on all keys of the second, averaged over queries
    and over the pairs that have both spans; NaN when none has. Raises `InputError` for a span the task does not have.
    """
    anatomy = check_task(model, task)
    masks = task.pairs.spans
    if not len(spans):
        raise InputError("attention is measured between pairs of spans, e.g. [('END', 'S1')]; got none")
    for name in {name for pair in spans for name in pair}:
        if name not in masks:
            raise InputError(f"task {task.name!r} has the spans {', '.join(masks) or 'none'}; got {name!r}")
    sums = {pair: torch.zeros(anatomy.n_layers, anatomy.n_heads, dtype=torch.float64) for pair in spans}
    counts = dict.fromkeys(spans, 0)
    for pairs in task.pairs.batches(min(32, prompts_that_fit(model, task.pairs, sites=[Site("pattern", 0)]))):

        def masses(pattern: Tensor, pairs: PromptPairs = pairs) -> Float[Tensor, "span batch head"]:
            return torch.stack([_mass(pattern, *(pairs.spans[name].to(pattern.device) for name in s)) for s in spans])

        run = record_run(model, pairs, ["pattern"], n_tail=1, keep={"pattern": masses})
        for i, pair in enumerate(spans):
            query, key = (pairs.spans[name].cpu() for name in pair)
            both = query.any(dim=1) & key.any(dim=1)
            counts[pair] += int(both.sum())
            for layer, mass in enumerate(run.layers["pattern"]):
                sums[pair][layer] += mass[i].cpu()[both].sum(dim=0)
    return {
        pair: sums[pair] / counts[pair] if counts[pair] else torch.full_like(sums[pair], torch.nan) for pair in spans
    }


def _mass(
    pattern: Float[Tensor, "batch head query key"], query: Bool[Tensor, "batch query"], key: Bool[Tensor, "batch key"]
) -> Float[Tensor, "batch head"]:
    """Attention from `query` positions (their mean) to `key` positions (summed)."""
    weights = query.double() / query.sum(dim=1, keepdim=True).clamp(min=1)
    asked = query.any(dim=0)
    return torch.einsum("bhqk,bq,bk->bh", pattern[:, :, asked].double(), weights[:, asked], key.double())
