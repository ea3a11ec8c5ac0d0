"""What is refused by name before any weight is read: other architectures, packed weights, code of the model's
author.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModelError
from .anatomy import CLAIMED

_LATENT = (
    "the host's queries, keys and values there are [batch, head, pos, d_head] after rotation, of two widths, and come "
    "from a latent without a weight per head, so that positions would be taken for heads and edges into heads have no "
    "weights; its router adds a bias and chooses among groups, and its first blocks have no experts"
)
_SHARED = "an expert that every token goes to stands beside the routed ones, and has no node among them"

REASONS = {
    "DeepseekV2ForCausalLM": _LATENT,
    "DeepseekV3ForCausalLM": _LATENT,
    "Qwen2MoeForCausalLM": _SHARED,
    "Glm4MoeForCausalLM": f"{_SHARED}; its router adds a bias and its first blocks have no experts",
}
"""Architectures that the host runs with the right logits and that are refused all the same -> why."""


def check_claimed(names: Iterable[str]) -> None:
    """Raises `UnsupportedModelError` when none of the architectures is claimed."""
    names = list(names)
    if names and not set(names) & set(CLAIMED):
        why = "".join(f". It is not claimed because {REASONS[name]}" for name in names if name in REASONS)
        raise UnsupportedModelError(f"mechwork claims {', '.join(CLAIMED)}; this model is {', '.join(names)}{why}")


def check_unpacked(quantization: Any, name: str) -> None:
    """Raises `UnsupportedModelError` for a `quantization_config`: packed weights have no gradients, and no numbers to
    read.
    """
    if not quantization:
        return
    facts = quantization if isinstance(quantization, dict) else vars(quantization)
    method = facts.get("quant_method") or "an unknown method"
    method = getattr(method, "value", method)
    bits = next((f"{n}-bit " for n in (4, 8) if facts.get(f"load_in_{n}bit") or facts.get("bits") == n), "")
    raise UnsupportedModelError(
        f"{name} has {bits}weights packed by {method}, which mechwork cannot differentiate or read. Load the unpacked "
        "model "
        "(same name without the suffix, dtype='bfloat16'), or a GGUF file of it: its weights are unpacked while "
        "loading."
    )


def unpack_gguf_module(module: nn.Module) -> None:
    """Forgets that transformers read a module from GGUF, where its weights are plain numbers: it can be saved and cast
    again.
    """
    config: Any = module.config
    packed = getattr(config, "quantization_config", None)
    if packed is None:
        return
    method = getattr(packed, "quant_method", None) or (packed.get("quant_method") if isinstance(packed, dict) else None)
    plain = all(parameter.dtype.is_floating_point for parameter in module.parameters())
    if str(getattr(method, "value", method)) != "gguf" or not plain:
        check_unpacked(packed, type(module).__name__)
    del config.quantization_config
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        module.__dict__.pop(attribute, None)


def check_plain(module: nn.Module) -> None:
    """Raises `UnsupportedModelError` for parameters that are not floating-point numbers."""
    for name, parameter in module.named_parameters():
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < torch.float16.itemsize:
            raise UnsupportedModelError(
                f"parameter {name} has dtype {str(parameter.dtype).removeprefix('torch.')}: packed weights cannot be "
                "differentiated or read. Load the unpacked model, or a GGUF file of it."
            )
