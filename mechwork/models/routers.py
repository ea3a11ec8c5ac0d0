"""Routers of mixtures of experts: a hook point for what they say before they choose, and their choice written out.

    weights, experts = top k of softmax(logits), in float32; divided by their sum where the router does so

The host hooks a router's logits after the choice is made, where a write changes nothing. Here they get a point of
their own, ``[batch, pos, expert]``, that the choice is made from again whenever something is hooked there (equal to
the bit where nothing was changed); without hooks the router's own output passes untouched. Gradients go through the
weights of the experts that are chosen; the choice itself has none. Cost: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UnsupportedModelError
from ..sites import Site, hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def router_block(model: TransformerBridge, layer: int) -> Any:
    """The module that holds a layer's router and experts."""
    mlp: Any = model.blocks[layer].mlp
    return mlp.original_component


def find_router(model: TransformerBridge, layer: int) -> Any:
    """A layer's router, out of the bridge's wrappers; raises `UnsupportedModelError` for one that picks no top k."""
    gate = router_block(model, layer).gate
    while not hasattr(gate, "top_k") and isinstance(getattr(gate, "original_component", None), torch.nn.Module):
        gate = gate.original_component
    if not hasattr(gate, "top_k"):
        raise UnsupportedModelError(
            f"the router of layer {layer}, a {type(gate).__name__}, does not say how many experts it picks"
        )
    return gate


def choose_experts(
    gate: Any, logits: Float[Tensor, "token expert"]
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """(weights, experts) of a router for some logits: softmax in float32 as the router does it, top k, scaled to sum 1
    where it does so.
    """
    weights, index = torch.topk(logits.float().softmax(dim=-1), int(gate.top_k), dim=-1)
    if getattr(gate, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, index


def check_router(gate: Any, logits: Tensor, scores: Tensor, index: Tensor) -> None:
    """Raises `UnsupportedModelError` unless the router's own choice is `choose_experts` of its logits."""
    again = choose_experts(gate, logits)
    if not (torch.equal(again[1], index) and torch.allclose(again[0].to(scores), scores, rtol=1e-3, atol=1e-6)):
        raise UnsupportedModelError(
            f"{type(gate).__name__} does not route by softmax and top k of its logits; its choice is neither read nor "
            "changed"
        )


class _Opened:
    """The hooks of one layer by which its router's logits go through `point` (an object, so that copies have theirs).

    `shape` is that of the prompts in the forward that runs: routers see tokens without it.
    """

    def __init__(self, point: Any) -> None:
        self.point = point
        self.shape: tuple[int, ...] = ()

    def note(self, module: Any, args: tuple[Any, ...]) -> None:
        if args and args[0].ndim == 3:
            self.shape = tuple(args[0].shape[:2])

    def route(self, gate: Any, args: tuple[Any, ...], output: Any) -> Any:
        if not (self.point.fwd_hooks or self.point.bwd_hooks):
            return None
        logits, scores, index = output
        check_router(gate, logits, scores, index)
        given = logits.view(*self.shape, -1)
        new = self.point(given)
        if new is given:
            return None
        new = new.reshape(logits.shape).to(logits)
        weights, chosen = choose_experts(gate, new)
        return new, weights.to(scores), chosen


def open_routers(model: TransformerBridge) -> None:
    """Gives every router of a mixture of experts its hook point; nothing for other models, or a second time."""
    from transformer_lens.hook_points import HookPoint

    if not model.cfg.num_experts:
        return
    for layer in range(len(model.blocks)):
        name = hook_name(Site("router_logits", layer))
        if name in model.hook_dict or not hasattr(router_block(model, layer), "gate"):
            continue
        block, gate, point = router_block(model, layer), find_router(model, layer), HookPoint()
        opened, mlp, own = _Opened(point), cast(Any, model.blocks[layer].mlp), name.rpartition(".")[2]
        setattr(mlp, own, point)
        mlp._register_hook(own, point)  # so that the host finds it again whenever it makes its list anew
        point.name = name
        model._hook_registry[name] = point
        block.register_forward_pre_hook(opened.note)
        gate.register_forward_pre_hook(opened.note)
        gate.register_forward_hook(opened.route)
