"""What turns an encoder's linear part into feature activations. Each kind is a value with its numbers.

With p = (x - b_in) W_enc and b = b_enc, entry by entry:

| kind | f | source |
|---|---|---|
| `Relu` | max(p + b, 0) | Cunningham et al. 2023; Bricken et al. 2023 |
| `JumpRelu` | (p + b) where p + b > threshold, else 0; never below 0 | Rajamanoharan et al. 2024b, eq. 5 |
| `TopK` | max(p + b, 0) of the k largest, else 0 | Gao et al. 2024, eq. 3 |
| `GatedRelu` | max(p exp(r) + b, 0) where p + b_gate > 0, else 0 | Rajamanoharan et al. 2024a, eq. 6 and 7 |

A BatchTopK autoencoder is, outside training, a `JumpRelu` with one threshold (Bussmann et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError, UnknownNameError


@runtime_checkable
class Activation(Protocol):
    """``(p, b) -> f``: from the projection without bias and the bias to the feature activations, all at least 0."""

    name: ClassVar[str]

    def __call__(
        self, projection: Float[Tensor, "*batch feature"], bias: Float[Tensor, " feature"]
    ) -> Float[Tensor, "*batch feature"]: ...

    def tensors(self) -> dict[str, Tensor]:
        """The numbers per feature, by name."""
        ...

    def settings(self) -> dict[str, Any]:
        """The other settings, as JSON values."""
        ...


@dataclass(frozen=True)
class Relu:
    """max(p + b, 0)."""

    name: ClassVar[str] = "relu"

    def __call__(
        self, projection: Float[Tensor, "*batch feature"], bias: Float[Tensor, " feature"]
    ) -> Float[Tensor, "*batch feature"]:
        return (projection + bias).relu()

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, eq=False)
class JumpRelu(Readable):
    """p + b above the feature's threshold, 0 below it."""

    threshold: Float[Tensor, " feature"]
    name: ClassVar[str] = "jumprelu"

    def __call__(
        self, projection: Float[Tensor, "*batch feature"], bias: Float[Tensor, " feature"]
    ) -> Float[Tensor, "*batch feature"]:
        value = projection + bias
        return value.relu() * (value > self.threshold.to(value))

    def tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    def settings(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class TopK:
    """The `k` largest of p + b, where they are above 0."""

    k: int
    name: ClassVar[str] = "topk"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"top-k keeps at least one feature; got k={self.k}")

    def __call__(
        self, projection: Float[Tensor, "*batch feature"], bias: Float[Tensor, " feature"]
    ) -> Float[Tensor, "*batch feature"]:
        value = (projection + bias).relu()
        top = value.topk(min(self.k, value.shape[-1]), dim=-1)
        return torch.zeros_like(value).scatter(-1, top.indices, top.values)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {"k": self.k}


@dataclass(frozen=True, eq=False)
class GatedRelu(Readable):
    """max(p exp(`log_scale`) + b, 0) where p + `gate_bias` > 0; b is the magnitude's bias."""

    log_scale: Float[Tensor, " feature"]
    gate_bias: Float[Tensor, " feature"]
    name: ClassVar[str] = "gated"

    def __call__(
        self, projection: Float[Tensor, "*batch feature"], bias: Float[Tensor, " feature"]
    ) -> Float[Tensor, "*batch feature"]:
        magnitude = (projection * self.log_scale.to(projection).exp() + bias).relu()
        return magnitude * (projection + self.gate_bias.to(projection) > 0)

    def tensors(self) -> dict[str, Tensor]:
        return {"log_scale": self.log_scale, "gate_bias": self.gate_bias}

    def settings(self) -> dict[str, Any]:
        return {}


KINDS = {kind.name: kind for kind in (Relu, JumpRelu, TopK, GatedRelu)}
"""Every kind by name."""


def build_activation(name: str, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Activation:
    """What `tensors()` and `settings()` of an activation came from; raises `UnknownNameError` for another kind."""
    if name not in KINDS:
        raise UnknownNameError("kind of feature activation", name, KINDS)
    return KINDS[name](**tensors, **settings)
