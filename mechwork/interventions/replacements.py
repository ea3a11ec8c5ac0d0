"""Replacements: how an activation becomes another one. Values, not hooks.

A replacement that depends on the position is a `Positional`: it is told at which absolute column the activation starts,
so that it means the same in one forward over a prompt and in generation with a key-value cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError


@runtime_checkable
class Replacement(Protocol):
    """Anything that turns an activation ``[batch, pos, ...]`` into one of the same shape."""

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]: ...


@runtime_checkable
class Positional(Protocol):
    """A replacement for activations whose axis 1 is the position; the first one stands at absolute column `start`."""

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]: ...


def replace_at(
    replacement: Replacement | Positional, activation: Float[Tensor, "..."], start: int
) -> Float[Tensor, "..."]:
    """What `replacement` makes of an activation whose first column is the prompt's column `start`."""
    if isinstance(replacement, Positional):
        return replacement.place(activation, start)
    return replacement(activation)


@dataclass(frozen=True)
class Zero:
    """Zeros."""

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.zeros_like(activation)


@dataclass(frozen=True)
class Constant:
    """One number everywhere."""

    value: float

    def __post_init__(self) -> None:
        if not isinstance(self.value, int | float):
            kind = type(self.value).__name__
            raise InputError(f"Constant takes one number; got a {kind}. Value(tensor) puts a tensor in place")

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.full_like(activation, self.value)


@dataclass(frozen=True, eq=False)
class Value(Readable):
    """A given activation: another run's, a mean, a constant. It must broadcast to the activation it replaces."""

    value: Float[Tensor, "..."]

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return _expand(self.value, activation)


@dataclass(frozen=True, eq=False)
class Where(Readable):
    """A given activation where `mask` is True, the activation itself elsewhere; both broadcast to the activation."""

    mask: Bool[Tensor, "..."]
    value: Float[Tensor, "..."]

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.where(self.mask.to(activation.device), _expand(self.value, activation), activation)


@dataclass(frozen=True, eq=False)
class Add(Readable):
    """The activation plus `strength` times a vector (steering)."""

    vector: Float[Tensor, "..."]
    strength: float = 1.0

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return activation + self.strength * _expand(self.vector, activation)


@dataclass(frozen=True, eq=False)
class ByPosition(Readable):
    """A value per position, the same for all prompts (batch axis of 1) or for each; kept as it is where `known` is
    False.

    Raises `InputError` at a position beyond the table: nothing is known there, and leaving it alone would be silent.
    """

    value: Float[Tensor, "batch pos ..."]
    known: Bool[Tensor, "batch pos"] | None = None

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        stop = start + activation.shape[1]
        if stop > self.value.shape[1]:
            raise InputError(
                f"this ablation has values for positions 0 to {self.value.shape[1] - 1}; a forward reaches position "
                f"{stop - 1}. "
                "Limit its positions to the prompt's, or use a kind that needs no positions ('mean', 'zero', "
                "'constant')."
            )
        _check_rows(self.value, activation)
        new = _expand(self.value[:, start:stop], activation)
        if self.known is None:
            return new
        known = self.known[:, start:stop].to(activation.device)
        return torch.where(known.reshape(*known.shape, *[1] * (activation.ndim - 2)), new, activation)


@dataclass(frozen=True, eq=False)
class Noise(Readable):
    """The activation plus normal noise of standard deviation `scale`, a pure function of seed, row and absolute
    position.

    The noise is drawn column by column, so that a prompt's noise does not depend on how much of it is run at once.
    """

    scale: Float[Tensor, "..."]
    seed: int
    first_row: int = 0

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        shape = (self.first_row + len(activation), *activation.shape[2:])
        columns = []
        for column in range(start, start + activation.shape[1]):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + column) % 2**63)
            columns.append(torch.randn(shape, generator=generator, dtype=torch.float64)[self.first_row :])
        return activation + self.scale.to(activation) * torch.stack(columns, dim=1).to(activation)


@dataclass(frozen=True, eq=False)
class Chosen(Readable):
    """`inner` at some absolute positions, the activation itself elsewhere and beyond.

    `where` has a batch axis of 1 when the positions are the same for all prompts.
    """

    inner: Replacement | Positional
    where: Bool[Tensor, "batch pos"]

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        mask = columns_of(self.where, activation, start)
        if not bool(mask.any()):
            return activation
        if isinstance(self.inner, Positional):
            new = _place_where_chosen(self.inner, activation, start, mask)
        else:
            new = self.inner(activation)
        return torch.where(mask.reshape(*mask.shape, *[1] * (activation.ndim - 2)), new, activation)


@dataclass(frozen=True, eq=False)
class Entries(Readable):
    """`inner` at some entries of the axis after the position: heads of ``[batch, pos, head, d_head]``, neurons of
    ``[batch, pos, d_mlp]``.
    """

    inner: Replacement | Positional
    index: tuple[int, ...]

    def place(
        self, activation: Float[Tensor, "batch pos entry ..."], start: int
    ) -> Float[Tensor, "batch pos entry ..."]:
        mask = torch.zeros(activation.shape[2], dtype=torch.bool, device=activation.device)
        mask[list(self.index)] = True
        mask = mask.reshape(-1, *[1] * (activation.ndim - 3))
        return torch.where(mask, replace_at(self.inner, activation, start), activation)


@dataclass(frozen=True, eq=False)
class ByCell(Readable):
    """A table ``[#batch, query_pos, key_pos]`` for a head's pattern; cells beyond it are left alone (see `OnEdges`)."""

    value: Float[Tensor, "batch query_pos key_pos"]

    def place(self, activation: Float[Tensor, "batch pos key"], start: int) -> Float[Tensor, "batch pos key"]:
        _check_rows(self.value, activation)
        first_key = start + activation.shape[1] - activation.shape[2]
        part = self.value[:, start : start + activation.shape[1], first_key : first_key + activation.shape[2]]
        new = activation.clone()
        new[:, : part.shape[1], : part.shape[2]] = part.to(activation)
        return new


def _check_rows(value: Tensor, activation: Tensor) -> None:
    """Raises `InputError` when a table of some prompts meets a forward of others."""
    if value.shape[0] not in (1, len(activation)):
        raise InputError(
            f"values are given for {value.shape[0]} prompts; a forward has {len(activation)}. "
            "Run the prompts they belong to, all of them and in their order."
        )


def _place_where_chosen(inner: Positional, activation: Tensor, start: int, mask: Tensor) -> Tensor:
    """Asks `inner` only for the columns up to the last chosen one: a table need not know positions that are
    left alone.
    """
    last = int(mask.any(dim=0).nonzero().max()) + 1
    return torch.cat([inner.place(activation[:, :last], start), activation[:, last:]], dim=1)


@dataclass(frozen=True, eq=False)
class Along(Readable):
    """`inner` on the coordinates along the orthonormal rows of `basis`; everything across them stays.

    ``x - (x B^T) B + inner(x B^T) B``.
    """

    basis: Float[Tensor, "k d"]
    inner: Replacement | Positional

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        basis = self.basis.to(activation)
        coordinates = activation @ basis.T
        return activation + (replace_at(self.inner, coordinates, start) - coordinates) @ basis


@dataclass(frozen=True, eq=False)
class OnEdges(Readable):
    """`inner` at some (query, key) cells of one head's pattern ``[batch, query_pos, key_pos]``; absolute positions.

    Cells beyond `cells` are left alone. With `renormalise`, what the other keys of a changed query have is scaled so
    that the query's pattern sums to what it summed to before; a query with nothing else to look at gets nothing.
    """

    cells: Bool[Tensor, "batch query_pos key_pos"]
    inner: Replacement | Positional
    renormalise: bool = False

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        n_keys = activation.shape[2]
        first_key = start + activation.shape[1] - n_keys  # sliding windows keep the last keys only
        padded = columns_of(self.cells, activation, start)
        mask = columns_of(padded.transpose(1, 2), activation.transpose(1, 2), first_key).transpose(1, 2)
        if not bool(mask.any()):
            return activation
        new = torch.where(mask, replace_at(self.inner, activation, start), activation)
        if not self.renormalise:
            return new
        total, put = activation.sum(dim=-1, keepdim=True), torch.where(mask, new, 0).sum(dim=-1, keepdim=True)
        rest = torch.where(mask, 0, activation)
        left = rest.sum(dim=-1, keepdim=True)
        scaled = rest * torch.where(left > 0, (total - put) / left.clamp(min=1e-30), torch.zeros_like(left))
        return torch.where(mask, new, torch.where(mask.any(dim=-1, keepdim=True), scaled, activation))


def columns_of(
    where: Bool[Tensor, "batch pos ..."], activation: Float[Tensor, "batch2 column ..."], start: int
) -> Bool[Tensor, "batch column ..."]:
    """The columns ``start ..`` of an absolute mask, as many as the activation has; False beyond the mask."""
    n = activation.shape[1]
    if where.shape[0] not in (1, len(activation)):
        raise InputError(
            f"positions are given for {where.shape[0]} prompts; a forward has {len(activation)}. Run the prompts they "
            "belong to."
        )
    known = where[:, start : start + n].to(activation.device)
    missing = n - known.shape[1]
    return torch.cat([known, known.new_zeros(len(known), missing, *known.shape[2:])], dim=1) if missing else known


def _expand(value: Tensor, activation: Tensor) -> Tensor:
    value = value.to(activation)
    try:
        return value.expand_as(activation)
    except RuntimeError:
        raise InputError(
            f"a value of shape {tuple(value.shape)} cannot replace an activation of shape {tuple(activation.shape)}"
        ) from None
