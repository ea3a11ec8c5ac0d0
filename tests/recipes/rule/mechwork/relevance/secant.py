"""`SecantRule` | activation | x * const(max(act(x) / x, floor)) | the Identity-rule with a floor (an example)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rules import NEAR_ZERO, IdentityRule


@dataclass(frozen=True)
class SecantRule(IdentityRule):
    """An activation is a multiplication by the constant act(x) / x, or by `floor` where that is smaller.

    Source: Identity-rule of RelP, bounded from below.
    """

    floor: float = 0.1

    def surrogate(self, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        """Its derivative is the bounded secant."""
        with torch.no_grad():
            safe = torch.where(x.abs() < NEAR_ZERO, NEAR_ZERO, x)
            ratio = (act(safe) / safe).clamp(min=self.floor)
        return x * ratio
