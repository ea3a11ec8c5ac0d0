"""Restart a forward pass at a block: the blocks below do not run.

TransformerLens' own `start_at_layer` runs the lower blocks and throws their output away; here they pass their input
through, and the residual stream is put in where block `layer` begins. Exact: the same operations run on the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..models.anatomy import NATIVE, read_anatomy
from ..models.borrow import borrow, hooked, replace_forward
from ..sites import Site, hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class StopForward(Exception):  # noqa: N818 - not an error
    """Ends a forward whose rest nobody needs."""


@contextmanager
def restart_at(model: TransformerBridge, layer: int, resid_pre: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
    """Inside, forwards begin at block `layer` with `resid_pre` as its input, whatever the tokens (of the same
    shape).
    """

    def start(activation: Tensor, hook: Any) -> Tensor:
        return resid_pre

    skip = _pass_through_as_tuple if read_anatomy(model).architecture == NATIVE else _pass_through
    with borrow(model), ExitStack() as undo:
        for block in model.blocks[:layer]:
            replace_forward(undo, block, skip)
        with hooked(model, [(hook_name(Site("resid_pre", layer)), start)]):
            yield


def _pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _pass_through_as_tuple(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    return (hidden_states,)
