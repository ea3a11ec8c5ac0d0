"""Rows of a user's pairs, as dictionaries, to pairs of text.

| column | holds |
|---|---|
| ``clean`` ``corrupt`` | the prompts; in a chat the user's turn, or a list of messages |
| ``correct`` ``incorrect`` | an answer, or a list of answers (in CSV: written as JSON, ``["Lima", "lima"]``) |
| ``split`` | ``train`` or ``test``; drawn where no row says |
| ``spans`` ``corrupt_spans`` | parts of the prompts: ``{"COUNTRY": "Peru"}``, or ``[start, end]`` in characters |
| ``system`` ``assistant`` | in a chat: the system turn, and the beginning of the answer |
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .chat import read_messages, render

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Ranges = Mapping[str, tuple[int, int]]
COLUMNS = ("clean", "corrupt", "correct", "incorrect", "split", "spans", "corrupt_spans", "system", "assistant")
LEAST = 4
"""Pairs below which none are held out."""


@dataclass(frozen=True)
class TextPair:
    """One pair as text. Spans are character ranges ``(start, end)`` of the clean / corrupt prompt. `complete`: the text
    has its special tokens in it (a chat's), so that none is put before it.
    """

    clean: str
    corrupt: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    spans: Ranges = field(default_factory=dict)
    corrupt_spans: Ranges = field(default_factory=dict)
    template: str = ""
    split: str = ""
    complete: bool = False


def text_pairs(
    rows: Sequence[Mapping[str, Any]], model: TransformerBridge | None = None, *, system: str | None = None
) -> list[TextPair]:
    """The pairs of some rows; with `model`, of its chat. Raises `InputError` naming the pair."""
    pairs = []
    for i, row in enumerate(rows):
        correct, incorrect = (_answers(row.get(column), column, i) for column in ("correct", "incorrect"))
        common: dict[str, Any] = {"correct": correct, "incorrect": incorrect, "split": str(row.get("split") or "")}
        if model is None:
            if row.get("system") or row.get("assistant"):
                raise InputError(f"pair {i} has turns of a chat (columns system, assistant): pass chat=True")
            clean, corrupt = (_cell(row, column, i) for column in ("clean", "corrupt"))
            spans = _spans(row, i, clean, corrupt, {}, {})
            pairs.append(TextPair(clean, corrupt, spans=spans[0], corrupt_spans=spans[1], **common))
            continue
        sides = []
        for column in ("clean", "corrupt"):
            where, side = f"pair {i}, {column}", row.get(column)
            turns = (row.get("system") or (system if isinstance(side, str) else None)), row.get("assistant") or None
            side = _cell(row, column, i) if side is None or isinstance(side, str) else side
            messages = read_messages(side, where, system=turns[0], assistant=turns[1])
            sides.append(render(model, messages, (*correct, *incorrect), where))
        clean, corrupt = sides
        spans = _spans(row, i, clean.text, corrupt.text, clean.turns, corrupt.turns)
        pairs.append(
            TextPair(clean.text, corrupt.text, spans=spans[0], corrupt_spans=spans[1], complete=True, **common)
        )
    return pairs


def draw_split(pairs: Sequence[TextPair], name: str) -> tuple[list[TextPair], str]:
    """The pairs with a split, drawn where no pair has one, and a sentence that says so."""
    if any(pair.split for pair in pairs):
        if empty := [i for i, pair in enumerate(pairs) if not pair.split]:
            raise InputError(
                f"every pair says its split, or none does (then one is drawn); {len(empty)} of {len(pairs)} do not, "
                f"e.g. pair {empty[0]}"
            )
        return list(pairs), ""
    prompts = sorted({pair.clean for pair in pairs})
    if len(prompts) < LEAST:
        return list(pairs), f"{len(prompts)} prompts, too few to hold any out: test pairs are the train pairs"
    random.Random(f"{name}/split").shuffle(prompts)
    held_out = set(prompts[: len(prompts) // 2])
    split = [replace(pair, split="test" if pair.clean in held_out else "train") for pair in pairs]
    n = sum(pair.split == "test" for pair in split)
    return split, f"split drawn by prompt: {len(pairs) - n} to find, {n} held out to test (no column split)"


def _cell(row: Mapping[str, Any], column: str, index: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise InputError(f"pair {index} needs a text in column {column!r}; its columns are {', '.join(map(str, row))}")
    return value


def _answers(value: Any, column: str, index: int) -> tuple[str, ...]:
    if isinstance(value, str) and value.startswith('["') and value.endswith("]"):
        value = _json(value, column, index)
    values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not values or not all(isinstance(v, str) and v for v in values):
        raise InputError(
            f"pair {index} needs text, or a list of texts (in CSV: as JSON), in column {column!r}; got {value!r}"
        )
    return values


def _json(text: str, column: str, index: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"pair {index}: column {column!r} is written as JSON; {text!r:.80} is not: {error}") from None


def _spans(
    row: Mapping[str, Any], index: int, clean: str, corrupt: str, turns: Ranges, corrupt_turns: Ranges
) -> tuple[Ranges, Ranges]:
    named = _named(row.get("spans"), "spans", index, clean)
    other = row.get("corrupt_spans")
    others = _named(other or row.get("spans"), "corrupt_spans" if other else "spans", index, corrupt)
    return _around(turns, named), _around(corrupt_turns, others)


def _named(value: Any, column: str, index: int, text: str) -> dict[str, tuple[int, int]]:
    """The character ranges of a row's named parts."""
    if not value:
        return {}
    value = _json(value, column, index) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise InputError(f"pair {index}: {column} is an object, name to text; got {value!r:.80}")
    found = {}
    for name, part in value.items():
        if isinstance(part, str) and part and text.count(part) == 1:
            found[name] = (text.index(part), text.index(part) + len(part))
        elif (
            isinstance(part, list | tuple) and len(part) == 2 and all(type(x) is int for x in part)
            and 0 <= part[0] < part[1] <= len(text)
        ):  # fmt: skip
            found[name] = (part[0], part[1])
        else:
            times = f"stands {text.count(part)} times in" if isinstance(part, str) and part else "is no part of"
            raise InputError(
                f"pair {index}: span {name!r} is a text that stands once in the prompt, or [start, end] in characters; "
                f"{part!r:.60} {times} {text!r:.120}"
            )
    return found


def _around(turns: Ranges, named: Ranges) -> Ranges:
    """Turns and named parts; a turn with named parts in it is the span before the first of them."""
    cut = {}
    for turn, (start, end) in turns.items():
        inside = [a for a, _ in named.values() if start <= a < end]
        end = min([end, *inside])
        if start < end:
            cut[turn] = (start, end)
    return {**cut, **named}
