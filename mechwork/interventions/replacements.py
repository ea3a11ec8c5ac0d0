"""Replacements: how an activation becomes another one. Values, not hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError


@runtime_checkable
class Replacement(Protocol):
    """Anything that turns an activation ``[batch, pos, ...]`` into one of the same shape."""

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]: ...


@dataclass(frozen=True)
class Zero:
    """Zeros."""

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.zeros_like(activation)


@dataclass(frozen=True, eq=False)
class Value:
    """A given activation: another run's, a mean, a constant. It must broadcast to the activation it replaces."""

    value: Float[Tensor, "..."]

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return _expand(self.value, activation)


@dataclass(frozen=True, eq=False)
class Where:
    """A given activation where `mask` is True, the activation itself elsewhere; both broadcast to the activation."""

    mask: Bool[Tensor, "..."]
    value: Float[Tensor, "..."]

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.where(self.mask.to(activation.device), _expand(self.value, activation), activation)


@dataclass(frozen=True, eq=False)
class Add:
    """The activation plus `strength` times a vector (steering)."""

    vector: Float[Tensor, "..."]
    strength: float = 1.0

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return activation + self.strength * _expand(self.vector, activation)


def _expand(value: Tensor, activation: Tensor) -> Tensor:
    value = value.to(activation)
    try:
        return value.expand_as(activation)
    except RuntimeError:
        raise InputError(
            f"a value of shape {tuple(value.shape)} cannot replace an activation of shape {tuple(activation.shape)}"
        ) from None
