"""Propagation rules: how one kind of module sends a coefficient backwards. A rule is data and a surrogate.

A surrogate is a tensor whose *derivative* is the rule; its value is never used (`straight` keeps the module's own).

| rule | family | surrogate | other names, source |
|---|---|---|---|
| `LNRule` | norm | affine norm of x with the scale held constant, centring kept | LN-rule (Ali et al. 2022, eq. 11; RelP) |
| `IdentityRule` | activation | x * const(act(x) / x) | Identity-rule (RelP; AttnLRP, eq. 9) |
| `HalfRule` | product | (a * u) / 2: each factor of a gated product gets half | Half-rule (RelP); uniform rule (AttnLRP, eq. 14) |
| `AHRule` | attention | the pattern is a constant | AH-rule (Ali et al. 2022, eq. 10) |
| `RouterRule` | router | expert weights are constants | |
| `SoftcapRule` | softcap | l * const(cap(l) / l) at the final logits | |
| `GradientRule` | any | none: the module's own derivative | |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import Norm

Family = Literal["norm", "activation", "product", "attention", "router", "softcap"]
FAMILIES: tuple[Family, ...] = ("norm", "activation", "product", "attention", "router", "softcap")

NEAR_ZERO = 1e-6
"""Below this, act(x) / x is taken at this distance from 0, where it equals the limit to float precision."""


@dataclass(frozen=True)
class Rule:
    """Base of all rules. `family` says which kind of module it can be bound to."""

    family: ClassVar[Family]

    @property
    def name(self) -> str:
        return type(self).__name__

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON, for provenance."""
        return {"rule": self.name, "family": self.family}


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
            t = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
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

    def surrogate(
        self, pattern: Float[Tensor, "*batch query_pos key_pos"]
    ) -> Float[Tensor, "*batch query_pos key_pos"]:
        return pattern.detach()


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
class GradientRule(Rule):
    """The module's own derivative: put first, it exempts the modules it selects from later rules of that family."""

    of: Family = "norm"
    family: ClassVar[Family] = "norm"

    def __post_init__(self) -> None:
        if self.of not in FAMILIES:
            raise InputError(f"a GradientRule is of one family, {', '.join(FAMILIES)}; got {self.of!r}")

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.name, "family": self.of}


def family_of(rule: Rule) -> Family:
    """The family a rule is bound in."""
    return rule.of if isinstance(rule, GradientRule) else rule.family


def norm_pull_back(
    rule: Rule | None, norm: Norm, x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch reader d"]
) -> Float[Tensor, "*batch reader d"]:
    """The coefficient at a norm's input from coefficients `v` at its output, for many readers of one input at once.

    With `LNRule` the scale is a constant; without a rule, or with `GradientRule`, the derivative of the scale is kept:
    J^T v = P (w - xhat * mean(xhat * w)) / scale with w = gain * v, xhat = centre(x) / scale, P the centring (or 1).
    """
    scale = norm.scale(x).unsqueeze(-2)
    w = norm.gain * v
    if not isinstance(rule, LNRule):
        x_hat = norm.centre(x).unsqueeze(-2) / scale
        w = w - x_hat * (x_hat * w).mean(dim=-1, keepdim=True)
    return norm.centre(w) / scale
