"""Progress inside a pass: a callback after every block that runs, forward and backward.

A pass over a large batch of a large model takes seconds, so counting batches alone would leave a person without a sign
of life, and without a way to stop: what the callback raises ends the pass where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..execute.progress import Progress
from ..models.anatomy import check_ready
from ..models.borrow import hooked
from ..sites import Site, hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def tell_blocks(model: TransformerBridge, progress: Progress | None, n_passes: int, what: str) -> Iterator[None]:
    """Inside, `progress` hears of every block, of `n_passes` passes through all of them; at the end, that all is done.

    Blocks beyond that number are told as the last but one, so that "done" is said once, when it is true.
    """
    if progress is None:
        yield
        return
    n_layers = check_ready(model).n_layers
    total, done = n_passes * n_layers, 0

    def tell(*_: Any) -> None:
        nonlocal done
        done = min(done + 1, total - 1)
        progress(done, total, what)

    def entered(activation: Tensor, hook: Any) -> None:
        tell()
        if activation.requires_grad:
            activation.register_hook(tell)

    hooks = [(hook_name(Site("resid_pre", layer)), entered) for layer in range(n_layers)]
    with hooked(model, hooks):
        yield
    progress(total, total, what)
