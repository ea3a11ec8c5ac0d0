"""What can take a rule in a model: every (module, family), and the places where a rule would silently do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models.anatomy import check_ready, norm_modules
from ..sites import UNEMBED, block_module
from .rules import Family

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Target = tuple[str, Family]
"""A module's name and the family in which it can take a rule."""

ATTENTION_LINEAR = ("q", "k", "v", "o")
MLP_LINEAR = ("in", "gate", "out")


def find_targets(model: TransformerBridge) -> tuple[Target, ...]:
    """Every (module, family) of the model that can take a rule."""
    anatomy = check_ready(model)
    targets: list[Target] = [(name, "norm") for name, _ in norm_modules(model)]
    for layer in range(anatomy.n_layers):
        attn, mlp = block_module(layer, "attn"), block_module(layer, "mlp")
        targets += [(attn, "attention"), (attn, "softmax")]
        targets += [(block_module(layer, "attn", part), "linear") for part in ATTENTION_LINEAR]
        if anatomy.attn_only:
            continue
        targets.append((mlp, "activation"))
        if anatomy.gated:
            targets.append((mlp, "product"))
        if anatomy.n_experts is not None:
            targets.append((mlp, "router"))
        else:
            parts = MLP_LINEAR if anatomy.gated else ("in", "out")
            targets += [(block_module(layer, "mlp", part), "linear") for part in parts]
    targets.append((UNEMBED, "linear"))
    if anatomy.final_soft_cap is not None:
        targets.append((UNEMBED, "softcap"))
    return tuple(targets)


def closed_targets(model: TransformerBridge) -> dict[Target, str]:
    """Places that exist in the model but where a rule of the family could not act, with the reason."""
    anatomy = check_ready(model)
    if anatomy.n_experts is None:
        return {}
    why = "the linear maps inside experts cannot be reached; select attention's with 'blocks.*.attn.*'"
    return {(block_module(layer, "mlp"), "linear"): why for layer in range(anatomy.n_layers)}
