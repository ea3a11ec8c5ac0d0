"""Where heads look: the attention of chosen heads moved towards chosen keys (or away from them).

| write | at a query | site |
|---|---|---|
| `Highlight(keys, factor)` | a_k -> factor a_k at the keys, then the row scaled back to the sum it had | ``pattern`` |
| `LookOnly(keys)` | s_k -> 0 at the keys it may see, all others hidden: it looks at them evenly | ``attn_scores`` |
| `OffsetScores(keys, offset)` | s_k -> s_k + offset at the keys, before the softmax | ``attn_scores`` |

`Highlight` and `OffsetScores` are one: offset = ln(factor) (tested). PASTA (Zhang et al. 2024) leaves the keys and
multiplies all others by alpha < 1 before it renormalises, which is `Highlight` with factor = 1 / alpha. Keys and
queries are absolute columns, so that a span of the prompt stays highlighted while text is generated after it, with a
key-value cache or without. Cost: nothing.

    where = task.pairs.spans["NOUN"]
    with intervene(model, reweigh_attention(["a3.h1", "a4.h0"], where, factor=100.0)):
        model(task.pairs.clean_tokens)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..names import parse_head
from ..shapes import PositionMask
from ..sites import Site
from .replacements import columns_of
from .writes import Write


@dataclass(frozen=True, eq=False)
class Highlight(Readable):
    """One head's pattern with `keys` times `factor` and every changed row scaled back to its sum; 1 changes nothing.

    `keys` ``[batch, key_pos]`` and `queries` (None: all, also generated ones) have a batch axis of 1 when they are the
    same for all prompts. A query that looks at nothing but keys which get a factor of 0 is left looking at nothing.
    Raises `InputError` for a factor that is negative or not finite.
    """

    keys: PositionMask
    factor: float
    queries: PositionMask | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 0):
            raise InputError(f"attention is multiplied by a finite factor of 0 or more; got {self.factor}")

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        cells = _cells(self.keys, self.queries, activation, start)
        new = torch.where(cells, activation * self.factor, activation)
        total, left = (row.sum(dim=-1, keepdim=True) for row in (activation, new))
        scaled = new * torch.where(left > 0, total / left.clamp(min=torch.finfo(left.dtype).tiny), left)
        return torch.where(cells.any(dim=-1, keepdim=True), scaled, activation)


@dataclass(frozen=True, eq=False)
class LookOnly(Readable):
    """One head's scores so that it looks at `keys` alone, evenly, whatever they were; a query that may see none of them
    (they come later, or lie outside its window) keeps its row. Keys and queries as in `Highlight`.
    """

    keys: PositionMask
    queries: PositionMask | None = None

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        cells = _cells(self.keys, self.queries, activation, start) & ~_hidden(activation)
        only = torch.zeros_like(activation).masked_fill(~cells, torch.finfo(activation.dtype).min)
        return torch.where(cells.any(dim=-1, keepdim=True), only, activation)


@dataclass(frozen=True, eq=False)
class OffsetScores(Readable):
    """One head's scores plus `offset` at `keys`; what the mask hides stays hidden. Raises `InputError` for an infinite
    offset.
    """

    keys: PositionMask
    offset: float
    queries: PositionMask | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.offset):
            raise InputError(
                f"scores are offset by a finite number; got {self.offset}. `Highlight` with factor 0 hides keys"
            )

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        cells = _cells(self.keys, self.queries, activation, start)
        return torch.where(cells & ~_hidden(activation), activation + self.offset, activation)


def reweigh_attention(
    heads: Sequence[str],
    keys: PositionMask,
    *,
    factor: float,
    queries: PositionMask | None = None,
    before_softmax: bool = False,
) -> list[Write]:
    """One write per head (``"a3.h1"``): `Highlight`, or with `before_softmax` the same by `OffsetScores`.

    Raises `InputError` for names that are no heads, or a factor of 0 before the softmax.
    """
    if before_softmax and not factor > 0:
        raise InputError(f"before the softmax a factor is above 0 (its logarithm is added); got {factor}")
    made = OffsetScores(keys, math.log(factor), queries) if before_softmax else Highlight(keys, factor, queries)
    return [Write(Site("attn_scores" if before_softmax else "pattern", *parse_head(name)), made) for name in heads]


def aim_attention(heads: Sequence[str], keys: PositionMask, *, queries: PositionMask | None = None) -> list[Write]:
    """One `LookOnly` per head (``"a3.h1"``). Raises `InputError` for names that are no heads."""
    return [Write(Site("attn_scores", *parse_head(name)), LookOnly(keys, queries)) for name in heads]


def _hidden(scores: Float[Tensor, "batch query key"]) -> Bool[Tensor, "batch query key"]:
    """What the mask hides."""
    return scores <= torch.finfo(scores.dtype).min / 2


def _cells(
    keys: Bool[Tensor, "rows pos"],
    queries: Bool[Tensor, "rows2 pos2"] | None,
    activation: Float[Tensor, "batch query key"],
    start: int,
) -> Bool[Tensor, "batch query key"]:
    """The cells of a head's square that are changed; keys of a sliding window are its last ones."""
    first_key = start + activation.shape[1] - activation.shape[2]
    columns = columns_of(keys, activation.transpose(1, 2), first_key)[:, None, :]
    rows = torch.ones_like(activation[:1, :, :1], dtype=torch.bool)
    if queries is not None:
        rows = columns_of(queries, activation, start)[:, :, None]
    return (rows & columns).expand(len(activation), -1, -1)
