"""Put rules on a model and take them off: hooks that keep every value and replace its derivative.

Hooks are permanent in TransformerLens' sense, so that `model.reset_hooks()` inside a context does not silently turn
rules off; they are removed by their own handles. They act only while that context is the innermost one on the model,
which no other thread can use meanwhile (see `models.borrow`).

At one hook point what a rule makes comes first, then everybody else's hooks (recordings, interventions), and what a
rule
reads last: so recorded tensors have the coefficients of the rules, and rules follow interventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..models.borrow import borrow
from .bench import Bench, Rules
from .fittings import fit_all

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_stacks: dict[int, list[object]] = {}
"""Contexts entered per model; the last is the active one. Not per thread: one alone holds the model, and on a GPU the
backward pass, in which blocks may run again, has threads of torch's own."""


@contextmanager
def install(model: TransformerBridge, rules: Rules, *, probing: bool = False) -> Iterator[Bench]:
    """Install the rules on the model's modules; restores on exit. While `probing`, the bench notes which rules act."""
    key, token = id(model), object()

    def is_innermost() -> bool:
        mine = _stacks.get(key)
        return bool(mine) and mine[-1] is token and torch.is_grad_enabled()

    active = cast(Callable[[], bool], torch.compiler.disable(is_innermost))  # a compiled graph would keep its answer

    with borrow(model):  # first of all: another thread's rules must not stand above those of the one that holds it
        try:
            _stacks.setdefault(key, []).append(token)
            with ExitStack() as undo:
                bench = Bench(model, rules, active, undo, probing)
                bench.make(bench.point("embed"), _leaf)
                fit_all(bench)
                bench.before(model, lambda _: bench.order())
                yield bench
        finally:
            try:
                _leave(key, token)
            finally:  # also where an interrupt came in its middle
                _leave(key, token)


def _leave(key: int, token: object) -> None:
    stack = _stacks.get(key, [])
    if token in stack:
        stack.remove(token)
    if not stack:
        _stacks.pop(key, None)


def _leaf(embedding: Tensor) -> Tensor | None:
    """A frozen model's graph begins at the embedding, so that there is something to differentiate."""
    return None if embedding.requires_grad else embedding.detach().requires_grad_(True)
