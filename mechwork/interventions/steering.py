"""Ways to move coordinates, and gates: with `Along` and `Add`, the writes of the steering literature.

`Along(basis, move)` applies a move to the coordinates c = x B^T along the orthonormal rows of B and leaves the rest:

| write | move | source |
|---|---|---|
| project out | `Zero()` | Arditi et al. 2024 |
| project to a target value t | `Constant(t)` | |
| mirror at a boundary b | `Reflect(b)`: c -> 2 b - c | |
| scale | `Scale(f)`: c -> f c | |
| clamp | `Limit(low, high)` | |
| rotate in a plane (B has two rows), keeping the norm | `Turn(angle)`, `TurnTo(angle)` | Vu & Nguyen 2025 |
| per dimension or per neuron | `Stretch(scale, shift)` without `Along` | |

`Gated(inner, Boundary(u, b, side))` applies any write only where x . u is on one side of b: "steer to the target (or
mirror) only where the decision boundary says so" leaves states alone that are right already.

    put = Gated(Along(u[None], Reflect(b)), Boundary(u, b, "below"))
    with intervene(model, [Write(Site("resid_post", 3), put)]):
        ...
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from .replacements import Positional, Replacement, replace_at

SIDES = ("below", "above")


@dataclass(frozen=True)
class Scale:
    """Everything times a factor."""

    factor: float

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return activation * self.factor


@dataclass(frozen=True)
class Reflect:
    """The mirror image at `boundary`; twice is nothing."""

    boundary: float = 0.0

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return 2 * self.boundary - activation


@dataclass(frozen=True)
class Limit:
    """Nothing below `low` or above `high`; raises `InputError` when no value fits."""

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InputError(f"the lower limit is at most the upper one; got {self.low} and {self.high}")

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return activation.clamp(self.low, self.high)


@dataclass(frozen=True)
class Turn:
    """Two coordinates turned by `angle` radians, from the first axis towards the second; their norm stays."""

    angle: float

    def __call__(self, activation: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return activation @ activation.new_tensor([[cos, sin], [-sin, cos]])


@dataclass(frozen=True)
class TurnTo:
    """Two coordinates turned to stand at `angle` radians from the first axis, wherever they were; their norm stays."""

    angle: float

    def __call__(self, activation: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        return activation.norm(dim=-1, keepdim=True) * activation.new_tensor(
            [math.cos(self.angle), math.sin(self.angle)]
        )


@dataclass(frozen=True, eq=False)
class Stretch(Readable):
    """x * `scale` + `shift`, per entry of the last axis: fine-grained steering of dimensions or neurons."""

    scale: Float[Tensor, " d"]
    shift: Float[Tensor, " d"]

    def __call__(self, activation: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return activation * self.scale.to(activation) + self.shift.to(activation)


@dataclass(frozen=True, eq=False)
class Boundary(Readable):
    """The half space where x . `unit` is below or above `at`; raises `InputError` for a direction that is not of length
    1.
    """

    unit: Float[Tensor, " d"]
    at: float
    side: str = "below"

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise InputError(f"a boundary has the sides {SIDES}; got {self.side!r}")
        if abs(float(self.unit.double().norm()) - 1) > 1e-3:
            raise InputError(f"a boundary's direction has length 1; got {float(self.unit.norm()):.4g}")

    def holds(self, activation: Float[Tensor, "*batch d"]) -> Bool[Tensor, "*batch"]:
        """Where the activation is on this side."""
        coordinate = activation @ self.unit.to(activation)
        return coordinate < self.at if self.side == "below" else coordinate > self.at


@dataclass(frozen=True, eq=False)
class Gated(Readable):
    """`inner` where the boundary holds, the activation itself elsewhere."""

    inner: Replacement | Positional
    boundary: Boundary

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        new = replace_at(self.inner, activation, start)
        return torch.where(self.boundary.holds(activation)[..., None], new, activation)


@dataclass(frozen=True, eq=False)
class Blend(Readable):
    """`inner` done to the degree `share`: x + share (inner(x) - x); 0 is nothing, 1 is `inner`, more is beyond it."""

    inner: Replacement | Positional
    share: float

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        return activation + self.share * (replace_at(self.inner, activation, start) - activation)


@dataclass(frozen=True, eq=False)
class From(Readable):
    """`inner` from absolute column `first` on (up to `stop`): a prompt only, or what is generated after it only.

    The prompts of a batch then have one length, since columns count from the start of the token matrix.
    """

    inner: Replacement | Positional
    first: int = 0
    stop: int | None = None

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        columns = torch.arange(start, start + activation.shape[1], device=activation.device)
        inside = columns >= self.first
        if self.stop is not None:
            inside = inside & (columns < self.stop)
        new = replace_at(self.inner, activation, start)
        return torch.where(inside.reshape(-1, *[1] * (activation.ndim - 2)), new, activation)


@dataclass(frozen=True, eq=False)
class KeepNorm(Readable):
    """`inner`, then as long as the activation was: y norm(x) / norm(y). Around a `Blend` a fractional dose keeps the
    norm too; where `inner` leaves nothing, the activation stays.
    """

    inner: Replacement | Positional

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        new = replace_at(self.inner, activation, start)
        before, after = (x.norm(dim=-1, keepdim=True) for x in (activation, new))
        return torch.where(after > 0, new * (before / after.clamp(min=torch.finfo(new.dtype).tiny)), activation)


@dataclass(frozen=True, eq=False)
class Choice(Readable):
    """x + `strength` v_k, where a probe chooses k at every position anew: k = argmax_k (w_k . x + b_k).

    Raises `InputError` when there is not one probe score per vector.
    """

    vectors: Float[Tensor, "n d"]
    weights: Float[Tensor, "n d"]
    biases: Float[Tensor, " n"]
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.vectors.shape != self.weights.shape or len(self.biases) != len(self.vectors):
            raise InputError(
                f"every vector has a row of weights and a bias; got vectors {tuple(self.vectors.shape)}, weights "
                f"{tuple(self.weights.shape)} and {len(self.biases)} biases"
            )

    def chosen(self, activation: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """Which vector each activation gets."""
        return (activation @ self.weights.to(activation).T + self.biases.to(activation)).argmax(dim=-1)

    def __call__(self, activation: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return activation + self.strength * self.vectors.to(activation)[self.chosen(activation)]
