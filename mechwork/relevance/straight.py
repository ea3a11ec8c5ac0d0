"""The two primitives of every rule: both keep a value to the bit and change only what a backward pass does with it.

`Witness` is called whenever a backward pass really goes through the place, which is how a probe finds rules whose
output the model throws away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Witness = Callable[[], None]


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Tensor, witness: Witness | None) -> Tensor:
        ctx.witness = witness
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        if ctx.witness is not None:
            ctx.witness()
        return None, grads[0], None


def straight(value: Tensor, surrogate: Tensor, witness: Witness | None = None) -> Tensor:
    """`value`, to the bit, whose gradient flows to `surrogate` alone (which must have the same shape).

    A rule is a surrogate: some function with the layer's value but the wanted derivative.
    """
    return _Straight.apply(value.detach(), surrogate, witness)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Callable[[], float], witness: Witness | None) -> Tensor:
        ctx.factor, ctx.witness = factor, witness
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        if ctx.witness is not None:
            ctx.witness()
        factor = ctx.factor()
        return (grads[0] * factor if factor else None), None, None


def scale_gradient(value: Tensor, factor: float | Callable[[], float], witness: Witness | None = None) -> Tensor:
    """`value`, to the bit, whose gradient is multiplied by `factor` (0: it is a constant).

    A callable factor is asked during the backward pass, so that one forward pass serves several.
    """
    if factor == 0 and witness is None:
        return value.detach()
    return _Scaled.apply(value, factor if callable(factor) else lambda: factor, witness)
