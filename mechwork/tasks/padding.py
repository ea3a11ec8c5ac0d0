"""A user's prompts as lists of token ids: whatever they come in, padding goes.

| given | read as |
|---|---|
| lists of ids, of any lengths | themselves; no pad token is needed |
| a tensor ``[batch, pos]`` | prompts of one length |
| what a tokenizer returns, ``{"input_ids": ..., "attention_mask": ...}`` | the ids where the mask is 1 |

Padding may stand on either side, of each row its own: it is taken off, so that the first real token of every prompt is
at position 0, for absolute and for rotary positions, and *spans count from there*. Batches are padded on the right
again, where causal attention never sees it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

TokenBatch = Tensor | Sequence[Sequence[int]] | Mapping[str, Any]
"""Prompts as token ids: lists, a tensor, or a tokenizer's ``input_ids`` with their ``attention_mask``."""


def token_rows(prompts: TokenBatch) -> list[list[int]]:
    """A user's prompts as lists of ids, without padding; raises `InputError` for what are no token ids, and for a mask
    with holes or of another shape.

    >>> token_rows({"input_ids": [[0, 0, 5, 6], [1, 2, 3, 4]], "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 1]]})
    [[5, 6], [1, 2, 3, 4]]
    """
    if isinstance(prompts, Mapping):
        if "input_ids" not in prompts:
            raise InputError(
                f"prompts of a tokenizer have 'input_ids' (and 'attention_mask'); got {', '.join(map(str, prompts))}"
            )
        rows = token_rows(prompts["input_ids"])
        mask = prompts.get("attention_mask")
        return rows if mask is None else _real(rows, mask)
    if isinstance(prompts, Tensor):
        if prompts.ndim != 2 or prompts.is_floating_point():
            raise InputError(
                f"prompts must be integer token ids [batch, pos]; got {prompts.dtype} {tuple(prompts.shape)}"
            )
        if prompts.numel() and int(prompts.min()) < 0:
            raise InputError(f"token ids are whole numbers from 0; prompts have {int(prompts.min())}")
        return prompts.tolist()
    return [[token_id(token, f"prompt {number}") for token in row] for number, row in enumerate(prompts)]


def token_id(token: Any, where: str, least: int = 0) -> int:
    """`token` as an id; raises `InputError` for what is not a whole number from `least`."""
    try:
        value = operator.index(token)
    except TypeError:
        value = least - 1
    if value < least or isinstance(token, bool):
        raise InputError(f"token ids are whole numbers from 0; {where} has {token!r}")
    return value


def _real(rows: list[list[int]], mask: Any) -> list[list[int]]:
    """The tokens where the mask is 1: one run per row."""
    marks: list[list[int]] = mask.tolist() if isinstance(mask, Tensor) else [_numbers(row) for row in mask]
    sizes, given = [len(row) for row in rows], [len(row) for row in marks]
    if sizes != given:
        raise InputError(
            f"attention_mask has a number for every token; input_ids have rows of {_said(sizes)}, the mask of "
            f"{_said(given)}"
        )
    real = []
    for number, (row, here) in enumerate(zip(rows, marks, strict=True)):
        ones = [i for i, mark in enumerate(here) if mark == 1]
        if any(mark not in (0, 1) for mark in here) or not ones or ones[-1] - ones[0] + 1 != len(ones):
            raise InputError(
                "attention_mask is 1 at the tokens of a prompt, which follow one another, and 0 at padding before or "
                f"after them; that of prompt {number} is {here}"
            )
        real.append(row[ones[0] : ones[-1] + 1])
    return real


def _numbers(row: Any) -> list[Any]:
    return list(row) if isinstance(row, Sequence | Tensor) else []


def _said(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, torch.tensor(sizes).unique().tolist())) or "none"
