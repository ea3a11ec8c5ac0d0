"""Translators: affine maps from a place's state to the last one, in residual form, of four sizes.

| form | h' = h + ... | numbers per place |
|---|---|---|
| `Full` | W h + b | d (d + 1) |
| `LowRank(r)` | up (down h) + b | d (2 r + 1) |
| `Diagonal` | s * h + b | 2 d |
| `BiasOnly` | b | d |

The residual form (A = I + W of Belrose et al. 2023, equation 6) makes zero the identity, so that a lens that has learnt
nothing is the logit lens. Every form has a closed-form start, the ridge regression of the last state on the place's
own:

    min  sum_t w_t |h'_t - h_L,t|^2 + penalty,      w_t = 1 / scale(h_L,t)^2 (the final norm divides by that scale
    anyway)

from running moments, one pass over some text. `LowRank` is the reduced-rank regression: the full solution cut to rank r
where the inputs vary (Izenman 1975).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, UnknownNameError

Parts = dict[str, Tensor]
"""A form's numbers, by name: of one place, or with a leading place axis."""


@dataclass(eq=False)
class PlaceMoments:
    """Weighted first and second moments of one place's states and of the way from them to the last state, in
    float64.
    """

    weight: float
    x: Float[Tensor, " d_model"]
    change: Float[Tensor, " d_model"]
    xx: Float[Tensor, "d_model d_model"]
    x_change: Float[Tensor, "d_model d_model"]

    @classmethod
    def zeros(cls, d: int, device: torch.device) -> PlaceMoments:
        zero = torch.zeros(d, dtype=torch.float64, device=device)
        square = torch.zeros(d, d, dtype=torch.float64, device=device)
        return cls(0.0, zero, zero.clone(), square, square.clone())

    def add(self, x: Float[Tensor, "n d_model"], last: Float[Tensor, "n d_model"], w: Float[Tensor, " n"]) -> None:
        """Take in some states with their weights."""
        x64, change, w64 = x.double(), last.double() - x.double(), w.double()
        weighted = x64 * w64[:, None]
        self.weight += float(w64.sum())
        self.x += weighted.sum(dim=0)
        self.change += w64 @ change
        self.xx += weighted.T @ x64
        self.x_change += weighted.T @ change

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of the state and the change, their covariance with the state."""
        x, change = self.x / self.weight, self.change / self.weight
        return (
            x,
            change,
            self.xx / self.weight - torch.outer(x, x),
            self.x_change / self.weight - torch.outer(x, change),
        )


@runtime_checkable
class Form(Protocol):
    """One size of translator."""

    @property
    def name(self) -> str: ...

    def shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        """Shape of each part of one place."""
        ...

    def change(self, parts: Parts, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The linear part of h' - h: of a state or a direction."""
        ...

    def fit(self, moments: PlaceMoments, ridge: float) -> Parts:
        """The closed-form start. `ridge`: penalty as a share of the states' mean variance per coordinate."""
        ...

    def still(self, parts: Parts) -> Parts:
        """The identity, from which training can go on."""
        ...


def _penalised(cov: Tensor, ridge: float) -> Tensor:
    return cov + (ridge * cov.diagonal().mean() + 1e-12) * torch.eye(len(cov), dtype=cov.dtype, device=cov.device)


@dataclass(frozen=True)
class Full:
    """A whole matrix and a bias."""

    name: str = "full"

    def shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (d, d), "bias": (d,)}

    def change(self, parts: Parts, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return x @ parts["weight"].T

    def fit(self, moments: PlaceMoments, ridge: float) -> Parts:
        x, change, xx, x_change = moments.centred()
        weight = torch.linalg.solve(_penalised(xx, ridge), x_change).T.contiguous()
        return {"weight": weight, "bias": change - weight @ x}

    def still(self, parts: Parts) -> Parts:
        return {name: torch.zeros_like(part) for name, part in parts.items()}


@dataclass(frozen=True)
class LowRank:
    """A matrix of rank `rank` and a bias."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"a rank is at least 1; got {self.rank}. For rank 0 use 'bias'.")

    @property
    def name(self) -> str:
        return f"low_rank_{self.rank}"

    def shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        if self.rank > d:
            raise InputError(f"the rank is at most d_model = {d}; got {self.rank}")
        return {"up": (d, self.rank), "down": (self.rank, d), "bias": (d,)}

    def change(self, parts: Parts, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return (x @ parts["down"].T) @ parts["up"].T

    def fit(self, moments: PlaceMoments, ridge: float) -> Parts:
        x, change, xx, x_change = moments.centred()
        values, vectors = torch.linalg.eigh(_penalised(xx, ridge))
        root, inverse = (vectors * values.clamp(min=1e-300) ** power @ vectors.T for power in (0.5, -0.5))
        u, s, vh = torch.linalg.svd(torch.linalg.solve(_penalised(xx, ridge), x_change).T @ root)
        size = s[: self.rank].sqrt()
        up, down = u[:, : self.rank] * size, size[:, None] * vh[: self.rank] @ inverse
        return {"up": up.contiguous(), "down": down.contiguous(), "bias": change - up @ (down @ x)}

    def still(self, parts: Parts) -> Parts:
        """Zero on the way up only: with both at zero, neither would ever have a gradient."""
        return {name: part.clone() if name == "down" else torch.zeros_like(part) for name, part in parts.items()}


@dataclass(frozen=True)
class Diagonal:
    """A scale per coordinate and a bias."""

    name: str = "diagonal"

    def shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"scale": (d,), "bias": (d,)}

    def change(self, parts: Parts, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return x * parts["scale"]

    def fit(self, moments: PlaceMoments, ridge: float) -> Parts:
        x, change, xx, x_change = moments.centred()
        scale = x_change.diagonal() / _penalised(xx, ridge).diagonal()
        return {"scale": scale, "bias": change - scale * x}

    def still(self, parts: Parts) -> Parts:
        return {name: torch.zeros_like(part) for name, part in parts.items()}


@dataclass(frozen=True)
class BiasOnly:
    """A bias."""

    name: str = "bias"

    def shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"bias": (d,)}

    def change(self, parts: Parts, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return torch.zeros_like(x)

    def fit(self, moments: PlaceMoments, ridge: float) -> Parts:
        return {"bias": moments.centred()[1]}

    def still(self, parts: Parts) -> Parts:
        return {name: torch.zeros_like(part) for name, part in parts.items()}


FORMS = ("full", "low_rank_R", "diagonal", "bias")


def find_form(form: str | Form) -> Form:
    """The form of that name (``"low_rank_16"`` for a rank); raises `UnknownNameError`."""
    if not isinstance(form, str):
        return form
    simple: dict[str, Form] = {"full": Full(), "diagonal": Diagonal(), "bias": BiasOnly()}
    rank = form.removeprefix("low_rank_")
    if form.startswith("low_rank_") and rank.isdecimal():
        return LowRank(int(rank))
    if form not in simple:
        raise UnknownNameError("form of translator", form, FORMS)
    return simple[form]


def translate(form: Form, parts: Parts, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """h' of some states."""
    return x + form.change(parts, x) + parts["bias"]
