"""Optimal ablation: constants that make the ablation hurt least (Li & Janson 2024, arXiv:2409.09951).

    minimise over constants c:   mean over reference prompts of KL(model ‖ model with the targets set to c)   at the
    last token

Starts from the means; Adam, with steps relative to each constant's size. What is left of the loss is what the
component's
*variation* is worth, without the harm of putting an unusual value in its place. Cost: `n_steps` x (forward + backward).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.anatomy import device_of
from ..statistics import kl_nats
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .bind import bind
from .record import record_moments
from .spec import AblationSpec

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_STEPS, RATE, BATCH = 60, 0.1, 16


def learn_constants(
    model: TransformerBridge, spec: AblationSpec, reference: Task, *, n_steps: int = N_STEPS, rate: float = RATE
) -> dict[str, Tensor]:
    """Tables of learned constants for the spec's targets, all ablated together. Deterministic given the spec's seed."""
    start = {key: table.to(device_of(model)) for key, table in record_moments(model, spec, reference).items()}
    size = {
        key: table.pow(2).mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-3) if table.ndim else torch.ones_like(table)
        for key, table in start.items()
    }
    shift = {key: torch.zeros_like(table, requires_grad=True) for key, table in start.items()}
    optimiser = torch.optim.Adam(shift.values(), lr=rate)
    generator = torch.Generator().manual_seed(spec.seed)
    best, kept = float("inf"), start
    for step in range(n_steps + 1):
        rows = torch.randperm(len(reference), generator=generator)[:BATCH].sort().values.tolist()
        tables = {key: start[key] + shift[key] * size[key] for key in start}
        if step % 10 == 0:  # the last steps are not always the best ones
            whole = float(divergence(model, spec, {k: t.detach() for k, t in tables.items()}, reference.pairs))
            if whole < best:
                best, kept = whole, {key: table.detach() for key, table in tables.items()}
        if step == n_steps:
            break
        with torch.enable_grad():
            loss = divergence(model, spec, tables, reference.pairs[rows])
            grads = torch.autograd.grad(loss, list(shift.values()), allow_unused=True)
        for value, grad in zip(shift.values(), grads, strict=True):
            value.grad = torch.zeros_like(value) if grad is None else grad
        optimiser.step()
    return {key: table.cpu() for key, table in kept.items()}


def divergence(model: TransformerBridge, spec: AblationSpec, tables: dict[str, Tensor], pairs: PromptPairs) -> Tensor:
    """Mean KL(model ‖ ablated model) at the last token of the clean prompts, in nats. Cost: 2 forwards."""
    pairs = pairs.to(device_of(model))
    with torch.no_grad():
        reference = pairs.final(model(pairs.clean_tokens, logits_to_keep=pairs.n_tail)).log_softmax(dim=-1)
    with bind(model, spec, tables, pairs).installed(model):
        found = pairs.final(model(pairs.clean_tokens, logits_to_keep=pairs.n_tail)).log_softmax(dim=-1)
    return kl_nats(reference, found).mean()
