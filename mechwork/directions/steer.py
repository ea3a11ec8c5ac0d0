"""Ways to steer along a direction, each a function of one strength: 0 changes nothing, 1 is the method as it is
published.

method | at strength s | source:

- ``add`` | x + s v, everywhere | Turner et al. 2023; Rimsky et al. 2024
- ``project_to`` | the coordinate moved by s of the way to the positive class's mean
- ``project_to_below`` | the same, only where the coordinate is below the boundary
- ``mirror_below`` | the coordinate moved by s of the way to its mirror image at the boundary, only where it is below
- ``project_out`` | the coordinate times 1 - s | Arditi et al. 2024
- ``clamp`` | the coordinate at least s of the way from the boundary to the positive mean
- ``scale`` | the coordinate times 1 + s
- ``rotate`` | turned, in the plane of the direction and the examples' mean, by s times the angle between the class
  means; norms stay | Vu & Nguyen 2025
- ``rotate_below`` | the same, only where the coordinate is below the boundary

`transport_write` is the tenth: an affine map of every dimension that takes the negative class's mean and spread to the
positive class's (Rodriguez et al. 2024), fitted from the examples themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError, UnknownNameError
from ..interventions import (
    Add,
    Along,
    Blend,
    Boundary,
    Constant,
    Gated,
    Limit,
    Positional,
    Reflect,
    Replacement,
    Scale,
    Steering,
    Stretch,
    Turn,
    Zero,
    replace_at,
)
from ..models.borrow import borrows
from ..sites import Site
from .direction import Direction
from .examples import Examples, record_examples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Steer = Callable[[Direction, float], Replacement | Positional]
Strengths = Callable[[float], Replacement | Positional]
"""From a strength to what is written."""
Ways = Callable[[float], Steering]
"""The same, also for interventions with places of their own: writes at many layers, edits of the weights."""


@dataclass(frozen=True, eq=False)
class AsFar(Readable):
    """Every state moved along `unit` as far as `inner` would move it: the control that is matched state by state."""

    inner: Replacement | Positional
    unit: Float[Tensor, " d"]

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        far = (replace_at(self.inner, activation, start) - activation).norm(dim=-1, keepdim=True)
        return activation + far * self.unit.to(activation)


def _below(inner: Replacement | Positional, direction: Direction) -> Gated:
    return Gated(inner, Boundary(direction.unit, direction.boundary))


def _project_to(direction: Direction, s: float) -> Blend:
    return Blend(Along(direction.unit[None], Constant(direction.high)), s)


def _mirror(direction: Direction, s: float) -> Blend:
    return Blend(Along(direction.unit[None], Reflect(direction.boundary)), s)


def _clamp(direction: Direction, s: float) -> Along:
    if s == 0:
        return Along(direction.unit[None], Scale(1.0))
    return Along(direction.unit[None], Limit(low=direction.boundary + s * (direction.high - direction.boundary)))


def _rotate(direction: Direction, s: float) -> Along:
    plane = rotation_plane(direction)
    across = float(plane[0].double() @ _centre(direction).double())
    angle = math.atan2(direction.high, across) - math.atan2(direction.low, across)
    return Along(plane, Turn(s * angle))


def rotation_plane(direction: Direction) -> Float[Tensor, "2 d"]:
    """Orthonormal rows: what is left of the examples' mean across the direction, and the direction's unit vector."""
    unit, centre = direction.unit.double(), _centre(direction).double()
    rest = centre - (centre @ unit) * unit
    if not float(rest.norm()) > 1e-9 * float(centre.norm()):
        raise InputError(f"the examples' mean lies along {direction.name!r}, so that they span no plane to turn in")
    return torch.stack([rest / rest.norm(), unit]).to(direction.vector)


def _centre(direction: Direction) -> Float[Tensor, " d"]:
    if direction.centre is None:
        raise InputError(
            f"rotations need the mean of the examples, which {direction.name!r} does not know; use fit_direction"
        )
    return direction.centre


METHODS: dict[str, Steer] = {
    "add": lambda direction, s: Add(direction.vector, s),
    "project_to": _project_to,
    "project_to_below": lambda direction, s: _below(_project_to(direction, s), direction),
    "mirror_below": lambda direction, s: _below(_mirror(direction, s), direction),
    "project_out": lambda direction, s: Blend(Along(direction.unit[None], Zero()), s),
    "clamp": _clamp,
    "scale": lambda direction, s: Along(direction.unit[None], Scale(1 + s)),
    "rotate": _rotate,
    "rotate_below": lambda direction, s: _below(_rotate(direction, s), direction),
}
"""Name -> (direction, strength) -> what is written."""


def steering_write(direction: Direction, method: str, strength: float = 1.0) -> Replacement | Positional:
    """What `method` writes at the direction's site; raises `UnknownNameError` for an unknown method.

    >>> with intervene(model, [Write(direction.site, steering_write(direction, "mirror_below"))]):
    ...     model.generate(prompt)
    """
    if method not in METHODS:
        raise UnknownNameError("way to steer", method, METHODS)
    if not math.isfinite(strength):
        raise InputError(f"a strength is a finite number; got {strength}")
    return METHODS[method](direction, strength)


@borrows
def transport_write(model: TransformerBridge, examples: Examples, site: Site) -> Strengths:
    """Per dimension, (x - mean of the negatives) * spread ratio + mean of the positives, blended in by the strength.

    The optimal transport between two normal distributions with independent dimensions (Rodriguez et al. 2024,
    Linear-AcT).
    Cost: 1 forward of all prompts. Raises `InputError` for fewer than two prompts of a class.
    """
    x, labels = record_examples(model, examples, [site])[0].double(), examples.labels
    if min(int(labels.sum()), int((~labels).sum())) < 2:
        raise InputError("a spread needs at least two prompts of each class")
    (low, narrow), (high, wide) = ((x[side].mean(dim=0), x[side].std(dim=0)) for side in (~labels, labels))
    scale = wide / narrow.clamp(min=1e-6 * float(narrow.max()))
    move = Stretch(scale.float(), (high - scale * low).float())
    return lambda strength: Blend(move, strength)
