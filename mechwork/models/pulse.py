"""A sign of life in long passes: what was last said of progress is said again while blocks run.

Batches and units of a large model take seconds, and nobody hears of them before they end; a person then has no sign of
life and no way to stop. What the callback raises ends the pass where it is, forward or backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SECONDS = 0.05
"""How often, at most, progress is told again."""

_current: ContextVar[Pulse | None] = ContextVar("pulse", default=None)


def beat() -> None:
    """Between passes: long work on what they gave says that it is alive, where somebody listens."""
    if (pulse := _current.get()) is not None:
        pulse.beat()


class Pulse:
    """A progress callback that can be beaten: `beat` says the last thing again when that was some time ago."""

    def __init__(self, told: Callable[..., object], what: str) -> None:
        self.told, self.last, self.at = told, (0, 1, what), time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        self.last, self.at = (done, total, what), time.monotonic()
        self.told(done, total, what)

    def beat(self, *_: Any) -> None:
        """Takes what hooks are given."""
        if time.monotonic() - self.at >= SECONDS:
            self(*self.last)


@contextmanager
def pulsing(model: TransformerBridge, told: Any, what: str) -> Iterator[Any]:
    """Inside, `model` beats at each of its products forward and each block backward; gives the callback to hand on.

    One that beats already, and None, come back as they are.
    """
    if told is None or isinstance(told, Pulse) or not callable(told):
        yield told
        return
    pulse = Pulse(told, what)

    def ran(module: Any, given: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        if isinstance(stream, torch.Tensor) and stream.requires_grad:
            stream.register_hook(pulse.beat)

    handles: list[Any] = []
    before = _current.set(pulse)
    try:
        handles += [block.register_forward_hook(ran) for block in getattr(model, "blocks", ())]
        handles += [module.register_forward_hook(pulse.beat) for module in _products(model)]
        yield pulse
    finally:
        for handle in handles:
            handle.remove()
        _current.reset(before)


def _products(model: TransformerBridge) -> Iterator[torch.nn.Module]:
    """The modules that hold a matrix: projections, embedding and unembedding."""
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 2:
            yield module
