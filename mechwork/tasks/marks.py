"""Tokens that carry writes: so that a pair can be one prompt, without and with them.

A marked token is ``id + number * 2**32``. `number` names some writes (by their content), and the model applies them at
the marked positions (`interventions.steered_pairs` makes it do so). Since the mark is part of the token, whatever
cuts, repeats, aligns, hashes or sends prompts treats the two sides of such a pair as what they are: different.
Bottom of `tasks`: knows only tensors, and which models stand ready for which marks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

from jaxtyping import Int
from torch import Tensor

from ..errors import InputError

SHIFT = 32

READY: WeakKeyDictionary[Any, Collection[int]] = WeakKeyDictionary()
"""Models that read marked tokens at the moment, and the numbers that they know."""


def mark_tokens(tokens: Int[Tensor, "*shape"], number: int, where: Tensor) -> Int[Tensor, "*shape"]:
    """The tokens with the mark `number` (0: none) where `where` is True."""
    return plain_tokens(tokens) + where.to(tokens) * (number << SHIFT)


def plain_tokens(tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The ids, without marks."""
    return tokens & ((1 << SHIFT) - 1)


def marks_of(tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The numbers of the marks, 0 where there is none."""
    return tokens >> SHIFT


def is_marked(tokens: Int[Tensor, "*shape"]) -> bool:
    """Whether some token carries writes."""
    return bool(tokens.numel()) and int(tokens.max()) >> SHIFT > 0


def check_marks(model: Any, tokens: Int[Tensor, "*shape"]) -> None:
    """Raises `InputError` for marked tokens whose writes `model` does not have at the moment."""
    if not is_marked(tokens):
        return
    strange = set(marks_of(tokens).unique().tolist()) - {0, *READY.get(model, ())}
    if strange:
        raise InputError(
            "the pairs of this task are one prompt without and with writes, and this model does not have these writes "
            "now. Use the task inside the context that gave it, with the same model: "
            "with steered_pairs(model, task, writes) as pairs: ..."
        )
