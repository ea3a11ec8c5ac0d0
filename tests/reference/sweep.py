"""Activation patching as it is defined: one whole forward per cell, hooks written by hand, nothing shared with
`patching`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HOOKS = {
    "embed": "hook_embed",
    "mlp_post": "blocks.{layer}.mlp.hook_post",
    **{kind: f"blocks.{{layer}}.attn.hook_{kind}" for kind in ("q", "k", "v", "z", "pattern", "attn_scores")},
}


def measure_cell(
    model: Any,
    task: Any,
    kind: str,
    direction: str,
    *,
    layer: int,
    pos: int | None = None,
    head: int | None = None,
    neurons: list[int] | None = None,
) -> Tensor:
    """The effect of one cell per pair (prompts of equal length): two plain forwards and a patched one."""
    pairs = task.pairs
    donor, host = pairs.clean_tokens, pairs.corrupt_tokens
    if direction == "noise":
        donor, host = host, donor
    with torch.no_grad():
        cache = model.run_with_cache(donor)[1]
        plain = task.metric(model(host), pairs)
        if kind == "result":
            logits = _with_head_write(model, host, cache, layer, pos, head)
        elif kind == "resid_mid":
            logits = _with_mid(model, host, cache, layer, pos)
        else:
            name = HOOKS.get(kind, f"blocks.{{layer}}.hook_{kind}").format(layer=layer)
            logits = model.run_with_hooks(host, fwd_hooks=[(name, _putter(kind, cache[name], pos, head, neurons))])
        patched = task.metric(logits, pairs)
    return patched - plain if direction == "denoise" else plain - patched


def _putter(kind: str, value: Tensor, pos: int | None, head: int | None, neurons: list[int] | None) -> Any:
    at: Any = slice(None) if pos is None else pos
    index: tuple[Any, ...]
    if kind in ("pattern", "attn_scores"):
        index = (slice(None), head, at)
    elif kind in ("q", "k", "v", "z"):
        index = (slice(None), at, head)
    elif neurons is not None:
        index = (slice(None), slice(None) if pos is None else [pos], neurons)
    else:
        index = (slice(None), at)

    def put(activation: Tensor, hook: Any) -> Tensor:
        new = activation.clone()
        new[index] = value[index]
        return new

    return put


def _with_head_write(model: Any, host: Tensor, cache: Any, layer: int, pos: int | None, head: int | None) -> Tensor:
    """The head's own write (z W_O) exchanged inside the sum over heads, before any norm that follows."""
    attn = model.blocks[layer].attn
    own: list[Tensor] = []
    name = f"blocks.{layer}.attn.hook_z"
    mask = torch.zeros(host.shape, dtype=torch.bool)
    mask[:, slice(None) if pos is None else pos] = True

    def note(z: Tensor, hook: Any) -> None:
        own[:] = [z]

    def put(out: Tensor, hook: Any) -> Tensor:
        change = (cache[name] - own[0])[:, :, head] @ attn.W_O[head]
        return out + change * mask[..., None]

    return model.run_with_hooks(host, fwd_hooks=[(name, note), (f"blocks.{layer}.attn.hook_out", put)])


def _with_mid(model: Any, host: Tensor, cache: Any, layer: int, pos: int | None) -> Tensor:
    """Both branches that read resid_mid: the MLP through its own input, and the stream through the block's output."""
    block = model.blocks[layer]
    value = cache[f"blocks.{layer}.hook_resid_pre"] + cache[f"blocks.{layer}.hook_attn_out"]
    at: Any = slice(None) if pos is None else pos
    old: list[Tensor] = []

    def branch(activation: Tensor, hook: Any) -> Tensor:
        old[:] = [activation]
        new = activation.clone()
        new[:, at] = value[:, at]
        return new

    def stream(activation: Tensor, hook: Any) -> Tensor:
        new = activation.clone()
        new[:, at] += (value - old[0])[:, at]
        return new

    reads = f"blocks.{layer}.{'ln2.hook_in' if 'ln2' in block.submodules else 'mlp.hook_in'}"
    return model.run_with_hooks(host, fwd_hooks=[(reads, branch), (f"blocks.{layer}.hook_resid_post", stream)])
