"""Rules for linear modules, y = x W + b. Without one a linear module keeps its gradient, which is the 0-rule.

In LRP a rule divides the relevance R = y * coefficient of an output among the inputs by their shares; here each is a
surrogate s with s = y whose gradient gives those shares, bias included as one more input (whose share stays with it).

rule | share of input i in output k | source:

- `EpsilonRule` | x_i w_ik / (y_k + eps sign(y_k)) | Bach et al. 2015, eq. 58
- `GammaRule` | the same with weights favoured by gamma where they help the sign of y_k | Montavon et al. 2019; for
  inputs of both signs Andéol et al. 2021
- `AlphaBetaRule` | alpha of the positive shares minus beta of the negative ones | Bach et al. 2015, eq. 60

The w²- and flat rules are left out: their shares ignore x, so a coefficient (share / x) has no limit at x = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .rules import Family, Rule, at_least_float32


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear module as numbers, its parameters live: ``y = x @ weight + bias``."""

    weight: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, " d_out"] | None

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias

    def part(self, sign: int) -> Linear:
        """Only the positive (1) or negative (-1) weights and biases, the others 0."""
        return Linear(
            (sign * self.weight).relu() * sign, None if self.bias is None else (sign * self.bias).relu() * sign
        )

    def without_bias(self) -> Linear:
        return Linear(self.weight, None)


def read_linear(module: Any) -> Linear:
    """The numbers of a Hugging Face linear module."""
    from transformers.pytorch_utils import Conv1D  # half of the time that importing mechwork would take

    weight = module.weight if isinstance(module, Conv1D) else module.weight.T
    return Linear(weight, getattr(module, "bias", None))


class LinearRule(Rule):
    """Base of the rules of this file."""

    family: ClassVar[Family] = "linear"

    def surrogate(
        self, linear: Linear, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        """A tensor with the value of `y`, the module's own output (still in the graph), and the derivative of
        the rule.
        """
        raise TypeError(f"{self.name} has no surrogate")


@dataclass(frozen=True)
class EpsilonRule(LinearRule):
    """Small outputs are damped: the coefficient is multiplied by y / (y + eps sign(y)). `eps` = 0 is the gradient."""

    eps: float = 0.0

    def __post_init__(self) -> None:
        if not self.eps >= 0:
            raise InputError(f"the eps of an EpsilonRule is at least 0; got {self.eps}")

    @property
    def leak(self) -> str:
        return f"linear modules lose the part of eps = {self.eps:g} (epsilon rule)" if self.eps else ""

    def surrogate(
        self, linear: Linear, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        return y * _ratio(y, y + torch.full_like(y, self.eps).copysign(y)) if self.eps else y


@dataclass(frozen=True)
class GammaRule(LinearRule):
    """Contributions of the output's own sign count (1 + gamma) times."""

    gamma: float = 0.25

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise InputError(f"the gamma of a GammaRule is at least 0; got {self.gamma}")

    def surrogate(
        self, linear: Linear, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        positive, negative = _contributions(linear, x)
        plain = linear(x)
        z = plain + self.gamma * torch.where(y < 0, negative, positive)
        return z * _ratio(y, z)


@dataclass(frozen=True)
class AlphaBetaRule(LinearRule):
    """Positive and negative contributions are normalised apart: alpha of the first minus beta = alpha - 1 of the
    second.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        if not self.alpha >= 1:
            raise InputError(f"the alpha of an AlphaBetaRule is at least 1 (beta is alpha - 1); got {self.alpha}")

    @property
    def leak(self) -> str:
        return "outputs without contributions of one sign lose that sign's part (alpha-beta rule)"

    def surrogate(
        self, linear: Linear, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        positive, negative = _contributions(linear, x)
        return self.alpha * positive * _ratio(y, positive) - (self.alpha - 1) * negative * _ratio(y, negative)


def _contributions(
    linear: Linear, x: Float[Tensor, "*batch d_in"]
) -> tuple[Float[Tensor, "*batch d_out"], Float[Tensor, "*batch d_out"]]:
    """The sums of the positive and of the negative contributions x_i w_ik and b_k."""
    plus, minus = linear.part(1), linear.part(-1)
    x_plus, x_minus = x.relu(), -(-x).relu()
    return plus(x_plus) + minus.without_bias()(x_minus), minus(x_plus) + plus.without_bias()(x_minus)


def _ratio(y: Float[Tensor, "*batch d_out"], z: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
    """y / z as a constant; 0 where z is 0, since there is nothing to divide the relevance among."""
    with torch.no_grad():
        over = at_least_float32(z)
        return torch.where(over == 0, 0.0, at_least_float32(y) / torch.where(over == 0, 1.0, over)).to(y.dtype)
