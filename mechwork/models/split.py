"""Grouped keys and values given to every query head: the same function, with a key and a value reader per head.

Under grouped-query attention several heads share one key and one value projection, so an edge into `k` or `v` is one
into all of them at once. Repeating the projections splits it: the logits stay the same, and every graph made from the
model has a key and a value reader for each head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModelError


def split_key_values(module: nn.Module) -> nn.Module:
    """A module whose heads have keys and values of their own; all other weights are shared with `module`.

    A module that has them already comes back as it is. Raises `UnsupportedModelError` where keys and values cannot be
    repeated exactly: one fused matrix, or a norm over all key heads together.
    """
    config: Any = module.config
    n_heads, n_kv = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or 0
    if n_kv == n_heads or not (n_kv or getattr(config, "multi_query", False)):
        return module
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    found: Any = copy.deepcopy(module, shared)
    attentions = [part for part in found.modules() if hasattr(part, "k_proj") and hasattr(part, "v_proj")]
    fused = [part for part in found.modules() if hasattr(part, "query_key_value") or hasattr(part, "qkv_proj")]
    if not attentions or fused:
        raise UnsupportedModelError(
            f"{type(module).__name__} keeps queries, keys and values in one matrix; split_kv repeats keys and values "
            "that stand apart. Leave split_kv out: an edge into k or v then is one into the whole group."
        )
    for attention in attentions:
        norm = getattr(attention, "k_norm", None)
        if norm is not None and norm.weight.numel() not in (1, attention.head_dim):
            raise UnsupportedModelError(
                f"{type(module).__name__} normalises the keys of all heads together, so repeated keys are not the same "
                "function. Leave split_kv out."
            )
        for name in ("k_proj", "v_proj"):
            setattr(attention, name, _repeat(getattr(attention, name), n_kv, n_heads // n_kv))
        attention.num_key_value_groups = 1
        if hasattr(attention, "num_key_value_heads"):
            attention.num_key_value_heads = n_heads
    found.config.num_key_value_heads = n_heads
    return found


def _repeat(projection: nn.Linear, n_groups: int, n_times: int) -> nn.Linear:
    """The rows of each group's head, `n_times` one after the other."""

    def repeated(tensor: torch.Tensor) -> nn.Parameter:
        heads = tensor.detach().unflatten(0, (n_groups, -1)).repeat_interleave(n_times, dim=0)
        return nn.Parameter(heads.flatten(0, 1), requires_grad=False)

    made = nn.Linear(1, 1, bias=False, device="meta")
    made.in_features, made.out_features = projection.in_features, projection.out_features * n_times
    made.weight = repeated(projection.weight)
    made.register_parameter("bias", None if projection.bias is None else repeated(projection.bias))
    return made
