"""Writes of single experts of a mixture-of-experts block.

An expert's write on a token is its output times the router's weight, what it adds to the block's output; a token that
is not routed to it has none, and nothing is done there. The other experts and the router stay as they are: ablating an
expert takes its share away, it does not route its tokens elsewhere. Cost: the expert once more on the tokens routed to
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import check_ready
from .positions import track_columns
from .replacements import Positional, Replacement, replace_at

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Seen = Callable[[int, int, Tensor, Tensor], None]
"""``(layer, expert, writes [batch, pos, d_model], routed [batch, pos])``."""


@dataclass(frozen=True, eq=False)
class ExpertWrites:
    """Replacements of expert writes: layer -> expert -> what replaces its write where a token is routed to it.

    `routed` counts, for every (layer, expert), the tokens that went to it while the writes were installed.
    """

    by_layer: Mapping[int, Mapping[int, Replacement | Positional]]
    routed: dict[tuple[int, int], int] = field(default_factory=dict)


@contextmanager
def intervene_experts(model: TransformerBridge, writes: ExpertWrites) -> Iterator[None]:
    """Inside, the model runs with the experts' writes replaced; on exit they are gone."""
    for layer, experts in writes.by_layer.items():
        check_experts(model, layer, experts)
    writes.routed.update({(layer, e): 0 for layer, experts in writes.by_layer.items() for e in experts})
    with ExitStack() as stack:
        columns = stack.enter_context(track_columns(model))

        def change(layer: int, expert: int, write: Tensor, routed: Tensor) -> Tensor:
            writes.routed[layer, expert] += int(routed.sum())
            new = replace_at(writes.by_layer[layer][expert], write, columns.start)
            return torch.where(routed[..., None], new, write)

        for layer, experts in writes.by_layer.items():
            stack.enter_context(_at_experts(model, layer, list(experts), change))
        yield


@contextmanager
def watch_experts(model: TransformerBridge, layer: int, experts: list[int], seen: Seen) -> Iterator[None]:
    """Inside, `seen` is shown the writes of the experts of a layer in every forward."""
    check_experts(model, layer, experts)

    def show(layer: int, expert: int, write: Tensor, routed: Tensor) -> Tensor:
        seen(layer, expert, write, routed)
        return write

    with _at_experts(model, layer, experts, show):
        yield


def check_experts(model: TransformerBridge, layer: int, experts: Any) -> None:
    """Raises `InputError` for experts that the model does not have."""
    anatomy = check_ready(model)
    if anatomy.n_experts is None:
        raise InputError(f"{anatomy.architecture} has no experts; its MLP is one block. Ablate 'm{layer}' or neurons.")
    for expert in experts:
        if not (0 <= layer < anatomy.n_layers and 0 <= expert < anatomy.n_experts):
            raise InputError(
                f"experts of this model are m0.e0 to m{anatomy.n_layers - 1}.e{anatomy.n_experts - 1}; got "
                f"m{layer}.e{expert}"
            )


Change = Callable[[int, int, Float[Tensor, "batch pos d_model"], Bool[Tensor, "batch pos"]], Tensor]


@contextmanager
def _at_experts(model: TransformerBridge, layer: int, experts: list[int], change: Change) -> Iterator[None]:
    """The block's experts run; then each chosen expert's write is worked out alone, shown to `change`, and
    exchanged.
    """
    mlp: Any = model.blocks[layer].mlp
    block: Any = mlp.original_component
    shape: list[tuple[int, int]] = []

    def note(module: Any, args: tuple[Any, ...]) -> None:
        shape[:] = [tuple(args[0].shape[:2])]

    def after(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        hidden, index, weights = args
        for expert in experts:
            mine = index == expert
            write = module.forward(hidden, index, torch.where(mine, weights, torch.zeros_like(weights)))
            routed = mine.any(dim=-1).view(shape[0])
            write = write.view(*shape[0], -1)
            output = output + (change(layer, expert, write, routed) - write).view_as(output)
        return output

    handles = [block.register_forward_pre_hook(note), block.experts.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
