"""Propagation rules: how one kind of module sends a coefficient backwards. A rule is data and a surrogate.

A surrogate is a tensor whose *derivative* is the rule; its value is never used (`straight` keeps the module's own).

rule | family | surrogate | other names, source:

- `LNRule` | norm | affine norm of x with the scale held constant, centring kept | LN-rule (Ali et al. 2022, eq. 11;
  RelP); "freeze norm" (GIM)
- `IdentityRule` | activation | x * const(act(x) / x) | Identity-rule (RelP; AttnLRP, eq. 9)
- `HalfRule` | product | (a * u) / 2: each factor of a gated product gets half | Half-rule (RelP); uniform rule
  (AttnLRP, eq. 14)
- `AHRule` | attention | the pattern is a constant | AH-rule (Ali et al. 2022, eq. 10)
- `BilinearRule` | attention | both products, q k^T and pattern v, give each factor half | AttnLRP, eq. 14; GIM's q/4,
  k/4, v/2
- `TemperatureRule` | softmax | T * softmax(scores / T) | temperature-adjusted softmax gradients (GIM, Edin et al. 2025)
- `RouterRule` | router | expert weights are constants
- `SoftcapRule` | softcap | l * const(cap(l) / l) at the final logits
- `PassRule` | norm, activation | x: the module is left out
- `GradientRule` | any | none: the module's own derivative | 0-rule on linear modules

The softmax rule of AttnLRP (eq. 13, a Taylor expansion without its bias term) is the softmax's own gradient once
relevance is written as activation times coefficient, so it needs no rule. Linear modules have their rules in `linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import Norm

Family = Literal["norm", "activation", "product", "attention", "softmax", "linear", "router", "softcap"]
FAMILIES: tuple[Family, ...] = ("norm", "activation", "product", "attention", "softmax", "linear", "router", "softcap")

NEAR_ZERO = 1e-6
"""Below this, act(x) / x is taken at this distance from 0, where it equals the limit to float precision."""


@dataclass(frozen=True)
class Rule:
    """Base of all rules. `family` says which kind of module it can be bound to.

    `leak` says in words why relevance is not conserved through a module under this rule; empty when it is.
    """

    family: ClassVar[Family]

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def leak(self) -> str:
        return ""

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON: its class, its family, its settings."""
        return {
            "rule": self.name,
            "family": family_of(self),
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "of"},
        }

    def __str__(self) -> str:
        settings = ", ".join(f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if f.name != "of")
        return f"{self.name}({settings})" if settings else self.name


@dataclass(frozen=True)
class LNRule(Rule):
    """The norm's scale is a constant; centring (LayerNorm) and gain stay linear."""

    family: ClassVar[Family] = "norm"

    def surrogate(self, norm: Norm, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        y = norm.linear(x, norm.scale(x).detach())
        return y if norm.bias is None else y + norm.bias


@dataclass(frozen=True)
class IdentityRule(Rule):
    """An element-wise non-linearity is a multiplication by the constant act(x) / x (its limit at 0)."""

    family: ClassVar[Family] = "activation"

    def surrogate(self, x: Float[Tensor, "*batch d"], act: Callable[[Tensor], Tensor]) -> Float[Tensor, "*batch d"]:
        with torch.no_grad():
            t = at_least_float32(x)
            t = torch.where(t.abs() < NEAR_ZERO, NEAR_ZERO, t)
            ratio = (act(t) / t).to(x.dtype)
        return x * ratio


@dataclass(frozen=True)
class HalfRule(Rule):
    """A product of two activations gives each factor half of the coefficient."""

    family: ClassVar[Family] = "product"

    def surrogate(self, product: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return 0.5 * product


@dataclass(frozen=True)
class AHRule(Rule):
    """The attention pattern is a constant: coefficients flow through values only."""

    family: ClassVar[Family] = "attention"


@dataclass(frozen=True)
class BilinearRule(Rule):
    """Both products of attention give each factor half: the coefficient of v is halved, those of q and k quartered."""

    family: ClassVar[Family] = "attention"

    @property
    def leak(self) -> str:
        return "the softmax's own share of the relevance is dropped (bilinear rule)"


@dataclass(frozen=True)
class TemperatureRule(Rule):
    """The softmax sends coefficients as at a higher temperature, where saturated patterns still respond.

    Jacobian diag(s) - s s^T with s = softmax(scores / temperature), without the factor 1 / temperature.
    """

    family: ClassVar[Family] = "softmax"
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"a softmax temperature is positive and finite; got {self.temperature}")

    def surrogate(self, scores: Float[Tensor, "*batch key_pos"]) -> Float[Tensor, "*batch key_pos"]:
        return self.temperature * torch.softmax(scores / self.temperature, dim=-1)


@dataclass(frozen=True)
class RouterRule(Rule):
    """The weights with which a mixture of experts adds its experts are constants."""

    family: ClassVar[Family] = "router"


@dataclass(frozen=True)
class SoftcapRule(Rule):
    """The final soft cap is a multiplication by the constant cap(l) / l."""

    family: ClassVar[Family] = "softcap"

    def surrogate(self, logits: Float[Tensor, "*batch d_vocab"], cap: float) -> Float[Tensor, "*batch d_vocab"]:
        def capped(t: Tensor) -> Tensor:
            return cap * torch.tanh(t / cap)

        return IdentityRule().surrogate(logits, capped)


@dataclass(frozen=True)
class _OfFamily(Rule):
    """A rule that says itself which family it is bound in."""

    of: Family = "norm"
    families: ClassVar[tuple[Family, ...]] = FAMILIES
    family: ClassVar[Family] = "norm"

    def __post_init__(self) -> None:
        if self.of not in self.families:
            raise InputError(f"a {self.name} is of one family, {', '.join(self.families)}; got {self.of!r}")

    def __str__(self) -> str:
        return f"{self.name}({self.of})"


@dataclass(frozen=True)
class PassRule(_OfFamily):
    """The module is left out: its output's coefficient is its input's (norms and element-wise non-linearities)."""

    families: ClassVar[tuple[Family, ...]] = ("norm", "activation")

    @property
    def leak(self) -> str:
        return f"a {self.of} is passed over (pass rule)"


@dataclass(frozen=True)
class GradientRule(_OfFamily):
    """The module's own derivative: put first, it exempts the modules it selects from later rules of that family."""


def family_of(rule: Rule) -> Family:
    """The family a rule is bound in."""
    return rule.of if isinstance(rule, _OfFamily) else rule.family


def at_least_float32(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """`x`, in float32 when it is half precision: ratios and squares overflow or vanish there."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def norm_pull_back(
    rule: Rule | None, norm: Norm, x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch reader d"]
) -> Float[Tensor, "*batch reader d"]:
    """The coefficient at a norm's input from coefficients `v` at its output, for many readers of one input at once.

    With `LNRule` the scale is a constant, with `PassRule` there is no norm; without a rule the derivative of the scale
    is kept: J^T v = P (w - xhat * mean(xhat * w)) / scale with w = gain * v, xhat = centre(x) / scale, P the centring
    (or 1).
    """
    if isinstance(rule, PassRule):
        return v
    x, v = x.to(norm.gain.device), v.to(norm.gain.device)
    scale = norm.scale(x).unsqueeze(-2)
    w = norm.gain * v
    if not isinstance(rule, LNRule):
        x_hat = norm.centre(x).unsqueeze(-2) / scale
        w = w - x_hat * (x_hat * w).mean(dim=-1, keepdim=True)
    return norm.centre(w) / scale
