"""Where a mixture of experts sends its tokens: experts switched on or off, and offsets of the router's logits.

    l'_e = l_e + offset_e;   off: l'_e = -inf;   on: l'_e = max_j l_j + MARGIN;   then the block's own softmax, top k
    and weights

(Fayyaz et al. 2025, SteerMoE, with its margin.) Switching an expert off sends its tokens to the next ones, unlike
ablating its write (`ExpertWrites`), which leaves them with a part of their output missing. Cost: nothing.

    with intervene(model, [Routing(2, off=(0,)), Routing(1, offsets={3: 1.5})]):
        model(tokens)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.routers import check_router, choose_experts, find_router, router_block
from .experts import check_experts
from .positions import Columns

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MARGIN = 0.01
"""How far above the largest logit an expert that is switched on stands."""


@dataclass(frozen=True)
class Routing:
    """A change of one layer's router, from absolute column `first` on (up to `stop`).

    Raises `InputError` for offsets that are not finite, or an expert that is both on and off.
    """

    layer: int
    offsets: Mapping[int, float] = field(default_factory=dict)
    on: tuple[int, ...] = ()
    off: tuple[int, ...] = ()
    first: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(offset) for offset in self.offsets.values()):
            raise InputError(
                f"router offsets are finite; got {dict(self.offsets)}. Use `on` and `off` to force a choice"
            )
        if both := set(self.on) & set(self.off):
            raise InputError(f"an expert is switched on or off, not both; got {sorted(both)} in both")

    def check(self, model: TransformerBridge) -> None:
        """Raises `InputError` for experts that are not there, or when the block cannot choose as many as it must."""
        experts = [*self.offsets, *self.on, *self.off]
        check_experts(model, self.layer, experts or [0])
        gate = find_router(model, self.layer)
        n, k = int(gate.num_experts), int(gate.top_k)
        if n - len(set(self.off)) < k or len(set(self.on)) > k:
            raise InputError(
                f"every token goes to {k} of {n} experts, so at most {n - k} are off and {k} are on; got {self.off} "
                f"off, {self.on} on"
            )

    @contextmanager
    def install(self, model: TransformerBridge, columns: Columns) -> Iterator[None]:
        """Inside, the layer's tokens go where this says."""
        gate, block = find_router(model, self.layer), router_block(model, self.layer)
        shape: list[tuple[int, int]] = []

        def note(module: Any, args: tuple[Any, ...]) -> None:
            shape[:] = [tuple(args[0].shape[:2])]

        def route(module: Any, args: tuple[Any, ...], output: Any) -> Any:
            logits, scores, index = output
            check_router(gate, logits, scores, index)
            weights, chosen = choose_experts(gate, self.changed(logits))
            inside = self._inside(shape[0], columns.start).to(index.device)
            return logits, torch.where(inside, weights.to(scores), scores), torch.where(inside, chosen, index)

        handles = [block.register_forward_pre_hook(note), gate.register_forward_hook(route)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def changed(self, logits: Float[Tensor, "token expert"]) -> Float[Tensor, "token expert"]:
        """The router's logits with this change."""
        new = logits.clone()
        for expert, offset in self.offsets.items():
            new[:, expert] += offset
        if self.on:
            new[:, list(self.on)] = new.max(dim=-1, keepdim=True).values + MARGIN
        if self.off:
            new[:, list(self.off)] = -torch.inf
        return new

    def _inside(self, shape: tuple[int, int], start: int) -> Tensor:
        column = torch.arange(start, start + shape[1]).repeat(shape[0])
        inside = column >= self.first
        return (inside if self.stop is None else inside & (column < self.stop))[:, None]


@contextmanager
def change_routers(model: TransformerBridge, offsets: Float[Tensor, "layer expert"]) -> Iterator[None]:
    """Inside, every layer's router has its row of `offsets` added, in the autograd graph: the weights of the experts
    that are chosen have gradients, the choice has none.
    """
    handles = []

    def changed(layer: int, gate: Any) -> Any:
        def route(module: Any, args: tuple[Any, ...], output: Any) -> Any:
            logits, scores, index = output
            check_router(gate, logits, scores, index)
            weights, chosen = choose_experts(gate, logits + offsets[layer].to(logits))
            return logits, weights.to(scores), chosen

        return route

    try:
        for layer in range(len(offsets)):
            gate = find_router(model, layer)
            handles.append(gate.register_forward_hook(changed(layer, gate)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def expert_writes(
    model: TransformerBridge, layer: int, mlp_in: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "expert batch pos d_model"]:
    """What every expert of a layer adds to the block's output for some inputs: its output times the router's weight,
    zeros where a token is not routed to it. They add up to the block's output. Cost: the block once.
    """
    gate, experts = find_router(model, layer), router_block(model, layer).experts
    x = mlp_in.reshape(-1, mlp_in.shape[-1])
    _, weights, index = gate(mlp_in)
    rows = []
    for expert in range(int(gate.num_experts)):
        mine = index == expert
        token = mine.any(dim=-1).nonzero().flatten()
        own = torch.where(mine, weights, torch.zeros_like(weights)).sum(dim=-1, keepdim=True)[token]
        said = experts.forward(x[token], torch.full_like(index[token, :1], expert), own)
        rows.append(torch.zeros_like(x).index_copy(0, token, said))
    return torch.stack(rows).view(len(rows), *mlp_in.shape)


def read_router(model: TransformerBridge, layer: int, keep: Callable[[Tensor, Tensor], None]) -> Any:
    """A handle while which `keep` gets a layer's router logits ``[token, expert]`` and choice ``[token, k]``."""
    check_experts(model, layer, [0])
    gate = find_router(model, layer)

    def show(module: Any, args: tuple[Any, ...], output: Any) -> None:
        logits, scores, index = output
        check_router(gate, logits, scores, index)
        keep(logits, index)

    return gate.register_forward_hook(show)
