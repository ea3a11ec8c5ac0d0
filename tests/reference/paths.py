"""Path patching as it is defined, by whole forwards of the model: freeze, read, set. Shares nothing with
`patching.path`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor


def head_writes(model: Any, cache: Any, layer: int) -> list[Tensor]:
    """What each head adds to the stream in a cached run; with a norm after attention, its share of the normed sum."""
    block = model.blocks[layer]
    z = cache[f"blocks.{layer}.attn.hook_z"]
    parts = [z[:, :, h] @ block.attn.W_O[h] for h in range(z.shape[2])]
    if "ln1_post" in block.submodules:
        total: Any = sum(parts)
        norm = block.ln1_post
        original = norm.original_component
        eps = getattr(original, "eps", None) or original.variance_epsilon
        rms = (total.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        gain = norm.weight + 1 if norm.uses_weight_offset else norm.weight
        parts = [gain * part / rms for part in parts]
    return parts


def write_of(model: Any, cache: Any, name: str) -> tuple[float, Tensor]:
    """(when it is written, what): heads of layer l at l, MLPs at l + 0.5, the input at -1."""
    if name == "input":
        return -1.0, cache["blocks.0.hook_resid_pre"]
    layer = int(re.findall(r"\d+", name)[0])
    if name.startswith("m"):
        return layer + 0.5, cache[f"blocks.{layer}.hook_mlp_out"]
    return float(layer), head_writes(model, cache, layer)[int(re.findall(r"\d+", name)[1])]


def patch_path(model: Any, task: Any, direction: str, writers: list[str], readers: list[str]) -> Tensor:
    """The effect per pair of the writers through the readers' direct paths alone."""
    pairs = task.pairs
    donor, host = (pairs.clean_tokens, pairs.corrupt_tokens)
    if direction == "noise":
        donor, host = host, donor
    parallel = bool(model.cfg.parallel_attn_mlp)
    with torch.no_grad():
        given, own = model.run_with_cache(donor)[1], model.run_with_cache(host)[1]
        changes = [
            (write_of(model, given, w)[0], write_of(model, given, w)[1] - write_of(model, own, w)[1]) for w in writers
        ]
        hooks = []
        for name in readers:
            layer = model.cfg.n_layers if name == "logits" else int(re.findall(r"\d+", name)[0])
            when = layer + 0.25 if name.startswith("m") and not parallel else layer
            before: Any = [change for time, change in changes if time < when]
            if before:
                total: Any = sum(before)
                hooks += _set_reader(model, host, name, layer, total)
        plain = task.metric(model(host), pairs)
        patched = task.metric(model.run_with_hooks(host, fwd_hooks=hooks), pairs)
    return patched - plain if direction == "denoise" else plain - patched


def _set_reader(model: Any, host: Tensor, name: str, layer: int, delta: Tensor) -> list[tuple[str, Any]]:
    """One forward with delta at the reader's input alone, and the hook that sets what it then computes."""
    if name == "logits":
        return [(f"blocks.{layer - 1}.hook_resid_post", lambda activation, hook: activation + delta)]
    if name.startswith("m"):
        block = model.blocks[layer]
        norm = next((f"{name}.hook_in" for name in ("ln2", "ln1") if name in block.submodules), "mlp.hook_in")
        entry = f"blocks.{layer}.{norm}"  # attention reads a shared ln1 too, but only the MLP's output is taken
        out, head = f"blocks.{layer}.hook_mlp_out", None
    else:
        entry, out = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.attn.hook_{name[-2]}"
        head = int(re.findall(r"\d+", name)[1])
    seen: list[Tensor] = []
    model.run_with_hooks(
        host,
        fwd_hooks=[
            (entry, lambda activation, hook: activation + delta),
            (out, lambda activation, hook: seen.append(activation)),
        ],
    )

    def put(activation: Tensor, hook: Any) -> Tensor:
        if head is None:
            return seen[0]
        new = activation.clone()
        new[:, :, head] = seen[0][:, :, head]
        return new

    return [(out, put)]
