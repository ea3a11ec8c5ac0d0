"""Templates: sentences with named slots, and the place each slot takes in the finished text.

A template is a string like ``"When {IO} and {S1} went to the {place}, {S2} gave a {object} to"``. Filling it gives a
text and, for every slot, the half-open range of characters its value takes, from which a task derives token spans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ...errors import InputError

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Filled:
    """A finished text; ``spans[slot]`` is the half-open character range of the slot's value in it."""

    text: str
    spans: Mapping[str, tuple[int, int]]


@cache
def _pieces(template: str) -> tuple[str, ...]:
    """Literal, slot, literal, slot, ..., literal."""
    return tuple(_SLOT.split(template))


@cache
def slots(template: str) -> tuple[str, ...]:
    """Names of a template's slots in order of appearance."""
    return _pieces(template)[1::2]


def fill(template: str, values: Mapping[str, str]) -> Filled:
    """Put `values` into the slots of `template`.

    Raises:
        InputError: a slot has no value; the message names it.
    """
    text = ""
    spans: dict[str, tuple[int, int]] = {}
    for i, piece in enumerate(_pieces(template)):
        if i % 2 == 0:
            text += piece
            continue
        if piece not in values:
            raise InputError(f"slot {{{piece}}} of template {template!r} has no value; given: {sorted(values)}")
        spans[piece] = (len(text), len(text) + len(values[piece]))
        text += values[piece]
    return Filled(text, spans)


@cache
def exchange(template: str, first: str, second: str) -> str:
    """The template with two of its slots exchanged, so that either may come first."""
    return _SLOT.sub(lambda m: {first: f"{{{second}}}", second: f"{{{first}}}"}.get(m.group(1), m.group(0)), template)
