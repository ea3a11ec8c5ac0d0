"""Ablations as they are defined: means by loops over prompts and positions, one hook written by hand per target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HOOKS = {
    "z": "blocks.{}.attn.hook_z",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "pattern": "blocks.{}.attn.hook_pattern",
    "resid_pre": "blocks.{}.hook_resid_pre",
}


def cache_of(model: Any, tokens: Tensor, kind: str, layer: int) -> Tensor:
    name = HOOKS[kind].format(layer)
    with torch.no_grad():
        return model.run_with_cache(tokens)[1][name]


def table(model: Any, task: Any, kind: str, layer: int, how: str, seed: int = 0) -> Tensor:
    """What replaces the activation at every prompt and position, ``[batch, pos, ...]``, worked out token by token."""
    pairs = task.pairs
    values = cache_of(model, pairs.clean_tokens, kind, layer)
    n, width = pairs.clean_tokens.shape
    out = torch.zeros_like(values)
    real = [[p for p in range(width) if p < int(pairs.lengths[b])] for b in range(n)]
    if how == "mean":
        tokens = [values[b, p] for b in range(n) for p in real[b]]
        out[:] = sum(tokens) / len(tokens)
    elif how == "mean_by_position":
        for p in range(width):
            here = [values[b, p] for b in range(n) if p in real[b]]
            out[:, p] = sum(here) / len(here)
    elif how == "mean_by_span":
        for mask in pairs.spans.values():
            here = [(b, p) for b in range(n) for p in real[b] if bool(mask[b, p])]
            mean = sum(values[b, p] for b, p in here) / len(here)
            for b, p in here:
                out[b, p] = mean
    elif how == "corrupt":
        out = cache_of(model, pairs.corrupt_tokens, kind, layer)
    elif how == "constant":
        out[:] = 0.7
    elif how != "zero":
        raise ValueError(how)
    return out


def deviation(model: Any, task: Any, kind: str, layer: int) -> Tensor:
    """Standard deviation over all tokens of prompts of one length."""
    values = cache_of(model, task.pairs.clean_tokens, kind, layer).flatten(0, 1)
    return (values - values.mean(dim=0)).pow(2).mean(dim=0).sqrt()


def run_with(model: Any, tokens: Tensor, kind: str, layer: int, edit: Callable[[Tensor], object]) -> Tensor:
    """Logits with `edit` done in place on a copy of one activation."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        new = activation.clone()
        edit(new)
        return new

    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(HOOKS[kind].format(layer), put)])


def without_expert(model: Any, tokens: Tensor, layer: int, expert: int, value: Tensor | None) -> Tensor:
    """Logits with one expert's weighted output worked out token by token and taken away (or replaced by `value`)."""
    block = model.blocks[layer].mlp.original_component

    def after(module: Any, args: Any, output: Tensor) -> Tensor:
        hidden, index, weights = args
        new = output.clone()
        for token in range(len(hidden)):
            for slot in range(index.shape[1]):
                if int(index[token, slot]) == expert:
                    gate, up = (module.gate_up_proj[expert] @ hidden[token]).chunk(2)
                    write = module.down_proj[expert] @ (module.act_fn(gate) * up) * weights[token, slot]
                    new[token] += (0 if value is None else value) - write
        return new

    handle = block.experts.register_forward_hook(after)
    try:
        with torch.no_grad():
            return model(tokens)
    finally:
        handle.remove()
