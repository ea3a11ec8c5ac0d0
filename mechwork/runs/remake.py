"""Graphs of long prompts: a block keeps its input alone, and runs again when the backward pass comes to it.

The graph of a pass grows with every layer: of each block a dozen tensors as wide as the stream, and several patterns
``[head, query_pos, key_pos]``. Where that does not fit, only the streams between blocks are kept, and the insides of
one block at a time are made again (Chen et al. 2016, arXiv 1604.06174). The same operations run on the same numbers:
coefficients are equal to the bit. Cost: one more forward per backward.

    with composite.context(model), remade_blocks(model):
        run = record_run(model, pairs, ["z"], grad=True)
        torch.autograd.grad(metric(run.logits, pairs).sum(), run.layers["z"])     # inside, or it is refused
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from ..models.borrow import borrow, replace_forward

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def remade_blocks(model: TransformerBridge, *, when: bool = True) -> Iterator[None]:
    """Inside, graphs keep the streams between blocks and what is recorded; backward passes run each block again.

    Forward and backward belong inside, and in the contexts of rules and interventions that the forward ran in, since
    these act again; a backward pass after the end raises `RuntimeError`. Nothing happens unless `when`.
    """
    if not when:
        yield
        return
    is_open = True

    def remade(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)

            def again(*args: Any) -> Any:
                if not is_open:
                    raise RuntimeError("a graph of remade blocks is differentiated inside `remade_blocks`, not after")
                named = {name: _fresh(value) for name, value in kwargs.items()}
                return forward(*map(_fresh, args), **named)

            return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False)

        return run

    with borrow(model), ExitStack() as undo:
        for block in model.blocks:
            replace_forward(undo, block, remade(block.forward))
        try:
            yield
        finally:
            is_open = False


def _fresh(value: Any) -> Any:
    """A copy of a cache of keys and values, which takes those of every run (as new tensors); anything else as it is."""
    if not (hasattr(value, "layers") and hasattr(value, "update")):
        return value
    cache = copy.copy(value)
    cache.layers = [copy.copy(layer) for layer in value.layers]
    return cache
