"""Does every bound rule really act? One small forward and backward pass, with a witness at every rule.

A hook can fire, return a new tensor, and be ignored: the model then trains on as if nothing had happened, and the
coefficients are silently those of another composite. A rule acts when the backward pass goes through what it made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import InputError
from ..models.anatomy import device_of
from .install import install
from .targets import Target

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from .composite import Binding

N_TOKENS = 8


def find_silent(model: TransformerBridge, binding: Binding) -> tuple[Target, ...]:
    """The bound (module, family) pairs whose rule no backward pass goes through. Cost: 1 forward + 1 backward of 8
    tokens.
    """
    tokens = torch.arange(N_TOKENS, device=device_of(model)).unsqueeze(0) % int(model.cfg.d_vocab)
    with torch.enable_grad(), install(model, binding.rules, probing=True) as bench:
        leaves: list[torch.Tensor] = []
        bench.make(bench.point("resid_pre", 0), leaves.append)
        logits = model(tokens)
        torch.autograd.grad(logits.float().pow(2).sum(), leaves[0])
    return tuple(target for target in binding.rules if target not in bench.acted)


def check_effect(model: TransformerBridge, binding: Binding) -> None:
    """Raises `InputError`, naming them, when bound rules have no effect on this model."""
    silent = find_silent(model, binding)
    if silent:
        names = ", ".join(f"{binding.rules[target]} on {target[0]}" for target in silent)
        raise InputError(
            f"these rules of {binding.composite.name!r} are bound but no gradient goes through them, so they do "
            f"nothing: {names}. "
            "Is the model in a mode (split queries, compatibility mode) that bypasses its modules? Turn it off, or "
            "leave the rules out."
        )
