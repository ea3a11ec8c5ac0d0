"""Which heads to steer by where they look: the profile that attention steering starts from (PASTA: Zhang et al. 2024,
model profiling).

    gain(head) = m(model with this head alone highlighting a span) - m(model), mean over pairs

PASTA takes the heads that gain most on several tasks at once; here it is one task, and the result says the gain of
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import InputError
from ..interventions import intervene, reweigh_attention
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..names import head_name
from ..runs.record import check_task, metric_of
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class HeadGain:
    """One head, and what highlighting in it alone adds to the mean metric."""

    head: str
    gain: float


@borrows
def rank_attention_heads(
    model: TransformerBridge,
    task: Task,
    span: str,
    *,
    factor: float = 100.0,
    heads: Sequence[str] | None = None,
    corrupt: bool = True,
) -> list[HeadGain]:
    """Heads by what it gains to look `factor` times more at `span`, on the corrupt (or clean) prompts; most first.

    Cost: 1 forward, and 1 per head (default: all heads). Raises `InputError` for a span that the prompts do not have,
    or a model whose attention cannot be written.

    >>> best = [row.head for row in rank_attention_heads(model, task.train, "IO")[:4]]
    """
    anatomy = check_task(model, task)
    pairs = (task.pairs.corrupt_as_host() if corrupt else task.pairs).to(device_of(model))
    if span not in pairs.spans:
        raise InputError(f"task {task.name!r} has the spans {', '.join(pairs.spans) or '(none)'}; got {span!r}")
    every = [head_name(layer, head) for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads)]
    with torch.no_grad():
        plain = float(metric_of(model, task, pairs).mean())
        found = []
        for head in heads if heads is not None else every:
            with intervene(model, reweigh_attention([head], pairs.spans[span], factor=factor)):
                found.append(HeadGain(head, float(metric_of(model, task, pairs).mean()) - plain))
    return sorted(found, key=lambda row: -row.gain)
