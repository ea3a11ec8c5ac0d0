"""Function vectors one head and one prompt at a time (Todd et al. 2024, equations 3 to 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.reference import literal


def answer_probability(model: Any, tokens: list[int], answer: int, hooks: list[Any]) -> float:
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=hooks)
    return float(logits[0, -1].softmax(dim=-1)[answer])


def mean_head_outputs(model: Any, prompts: list[list[int]], n_layers: int, n_heads: int) -> Tensor:
    """Mean z at the last token ``[layer, head, d_head]``."""
    total: Any = 0
    for prompt in prompts:
        cache = literal.cached(model, torch.tensor([prompt]))
        total = total + torch.stack([cache[literal.hook("z", i)][0, -1] for i in range(n_layers)])
    return total[:, :n_heads] / len(prompts)


def indirect_effects(model: Any, prompts: list[list[int]], answers: list[int], z: Tensor) -> Tensor:
    """Mean over uninformative prompts of p(answer) with one head's z put in at the last token, minus p(answer)."""
    effects = torch.zeros(z.shape[:2], dtype=torch.float64)
    for layer in range(z.shape[0]):
        for head in range(z.shape[1]):

            def put(activation: Tensor, hook: Any, layer: int = layer, head: int = head) -> Tensor:
                new = activation.clone()
                new[:, -1, head] = z[layer, head]
                return new

            for prompt, answer in zip(prompts, answers, strict=True):
                patched = answer_probability(model, prompt, answer, [(literal.hook("z", layer), put)])
                effects[layer, head] += (patched - answer_probability(model, prompt, answer, [])) / len(prompts)
    return effects
