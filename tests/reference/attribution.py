"""Direct logit attribution as it is defined: every write is made as a vector and read through the norm at a fixed
scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def literal_attribution(model: Any, tokens: Tensor, u: Tensor, pos: int) -> dict[str, Tensor]:
    """Term -> share per prompt, of the logits' inner product with `u` ``[d_vocab]``, with explicit vectors of every
    write.
    """
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    cfg = model.cfg
    writes: dict[str, Tensor] = {"embed": cache["hook_embed"][:, pos]}
    if float((cache["blocks.0.hook_resid_pre"] - cache["hook_embed"]).abs().max()) > 0:
        writes["pos_embed"] = cache["blocks.0.hook_resid_pre"][:, pos] - cache["hook_embed"][:, pos]
    for layer in range(cfg.n_layers):
        block = model.blocks[layer]
        z = cache[f"blocks.{layer}.attn.hook_z"][:, pos]
        parts = {f"a{layer}.h{h}": z[:, h] @ block.attn.W_O[h] for h in range(cfg.n_heads)}
        if block.attn.b_O is not None:
            parts[f"a{layer}.bias"] = block.attn.b_O.expand(len(tokens), -1)
        writes |= _through(block, "ln1_post", parts)
        if cfg.attn_only:
            continue
        name = f"blocks.{layer}.mlp.hook_post"
        if cfg.num_experts:
            writes[f"m{layer}"] = cache[f"blocks.{layer}.hook_mlp_out"][:, pos]
            continue
        act = cache[name][:, pos]
        parts = {f"m{layer}.n{n}": act[:, n : n + 1] * block.mlp.W_out[n] for n in range(act.shape[1])}
        if block.mlp.b_out is not None:
            parts[f"m{layer}.bias"] = block.mlp.b_out.expand(len(tokens), -1)
        writes |= _through(block, "ln2_post", parts)
    last = cache[f"blocks.{cfg.n_layers - 1}.hook_resid_post"][:, pos]
    read = _linear(model.ln_final, last)
    shares = {name: (read(write) @ model.W_U) @ u for name, write in writes.items()}
    bias = getattr(model.ln_final.original_component, "bias", None)
    if bias is not None:
        shares["norm bias"] = ((bias @ model.W_U) @ u).expand(len(tokens))
    if bool(model.b_U.any()):
        shares["unembed bias"] = (model.b_U @ u).expand(len(tokens))
    return shares


def _through(block: Any, name: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    if name not in block.submodules:
        return parts
    total: Any = sum(parts.values())
    read = _linear(getattr(block, name), total)
    return {key: read(part) for key, part in parts.items()}


def _linear(norm: Any, x: Tensor) -> Any:
    """The linear map that the norm is at x, without its bias."""
    original = norm.original_component
    if isinstance(original, torch.nn.Identity):
        return lambda w: w
    if isinstance(original, torch.nn.LayerNorm):
        scale = (x.var(dim=-1, correction=0, keepdim=True) + original.eps).sqrt()
        return lambda w: (w - w.mean(dim=-1, keepdim=True)) / scale * original.weight
    eps = getattr(original, "eps", None) or original.variance_epsilon
    gain = norm.weight + 1 if norm.uses_weight_offset else norm.weight
    scale = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return lambda w: w / scale * gain
