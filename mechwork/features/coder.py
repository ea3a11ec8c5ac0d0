"""A sparse coder: features read at one place of a model and written to the same place or another.

    f = act((x - b_in) W_enc, b_enc)         features, never below 0, mostly 0
    y = f W_dec + b_dec (+ x W_skip)         what they reconstruct

A *sparse autoencoder* reads and writes one place; a *transcoder* reads what a module reads and reconstructs what it
writes. The *error* is the activation at the place written minus its reconstruction: with it, nothing is lost. Weights
of half precision are used in float32 at least; the result is in the coder's working type.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Direction
from ..display import Readable
from ..errors import InputError
from ..provenance import Provenance
from ..sites import SITE_KINDS, Site
from .activations import Activation


@runtime_checkable
class Coder(Protocol):
    """What the rest of this package asks of features: where they are read and written, and the two maps."""

    @property
    def reads(self) -> Site: ...
    @property
    def writes(self) -> Site: ...
    @property
    def n_features(self) -> int: ...

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Feature activations."""
        ...

    def decode(
        self, f: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction; `x` is what was read, for coders with a skip connection."""
        ...

    def write(self, f: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """The linear part of the decoder alone: what (changes of) features add."""
        ...

    def pull_back(self, coefficient: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch feature"]:
        """Coefficients of features from coefficients at the place written: the transpose of `write`."""
        ...


@dataclass(frozen=True, eq=False)
class SparseCoder(Readable):
    """An encoder and a decoder as tensors.

    Raises `InputError` for shapes that do not fit, weights that are not finite, or a site without a vector per
    position.
    """

    reads: Site
    writes: Site
    W_enc: Float[Tensor, "_d_in _feature"]  # checked by name below: these come from files
    b_enc: Float[Tensor, " _feature"]
    W_dec: Float[Tensor, "_feature _d_out"]
    b_dec: Float[Tensor, " _d_out"]
    activation: Activation
    b_in: Float[Tensor, " _d_in"] | None = None
    W_skip: Float[Tensor, "_d_in _d_out"] | None = None
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site in (self.reads, self.writes):
            check_feature_site(site)
        (d_in, n), (_, d_out) = self.W_enc.shape, self.W_dec.shape
        expected: dict[str, tuple[int, ...]] = {
            "b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,), "b_in": (d_in,), "W_skip": (d_in, d_out),
            **dict.fromkeys(self.activation.tensors(), (n,)),
        }  # fmt: skip
        for name, tensor in self.tensors().items():
            shape = expected.get(name, tuple(tensor.shape))
            if tuple(tensor.shape) != shape:
                raise InputError(
                    f"{name} of the features at {self.reads} has shape {tuple(tensor.shape)}; with {n} features "
                    f"reading {d_in} "
                    f"and writing {d_out} numbers it is {shape}"
                )
            if not bool(tensor.isfinite().all()):
                raise InputError(
                    f"{name} of the features at {self.reads} has NaN or infinite entries; the file is damaged or "
                    "training diverged"
                )
        if self.reads == self.writes and d_in != d_out:
            raise InputError(f"features that read and write {self.reads} have one width; got {d_in} and {d_out}")

    @property
    def n_features(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def is_transcoder(self) -> bool:
        return self.reads != self.writes

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; those that are not there are left out."""
        own = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "b_in", "W_skip")}
        return {**{name: value for name, value in own.items() if value is not None}, **self.activation.tensors()}

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Feature activations ``[*batch, feature]``, at least 0. Differentiable."""
        x = working(x)
        if self.b_in is not None:
            x = x - self.b_in.to(x)
        return self.activation(x @ self.W_enc.to(x), self.b_enc.to(x))

    def decode(
        self, f: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction. Raises `InputError` for a skip connection without `x`."""
        y = self.write(f)
        y = y + self.b_dec.to(y)
        if self.W_skip is None:
            return y
        if x is None:
            raise InputError(f"the transcoder at {self.reads} has a skip connection: decode(f, x) needs what was read")
        return y + x.to(y) @ self.W_skip.to(y)

    def write(self, f: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """f W_dec."""
        f = working(f)
        return f @ self.W_dec.to(f)

    def pull_back(self, coefficient: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch feature"]:
        """Coefficients W_dec^T."""
        g = working(coefficient)
        return g @ self.W_dec.to(g).T

    def direction(self, feature: int) -> Direction:
        """The feature's decoder vector as a `Direction` where it writes, with every way to steer along it.

        Adding it once adds one unit of the feature. Raises `InputError` for a feature that is not there, a feature that
        writes nothing, or heads taken together.
        """
        return Direction(
            self.W_dec[self.check_feature(feature)].float().clone(), self.writes, name=f"{self.reads}/f{feature}",
            provenance=self.provenance
        )  # fmt: skip

    def check_feature(self, feature: int) -> int:
        """The index, after checking it."""
        if not 0 <= feature < self.n_features:
            raise InputError(f"the features at {self.reads} are 0 to {self.n_features - 1}; got {feature}")
        return feature

    def to(self, device: torch.device | str) -> SparseCoder:
        """The same coder with its tensors on `device`."""
        own = {
            name: value.to(device) for name, value in self.tensors().items() if name not in self.activation.tensors()
        }
        inner = {name: value.to(device) for name, value in self.activation.tensors().items()}
        return replace(self, **own, activation=type(self.activation)(**inner, **self.activation.settings()))

    def __str__(self) -> str:
        place = f"{self.reads} -> {self.writes}" if self.is_transcoder else str(self.reads)
        return f"{self.n_features} {self.activation.name} features at {place}"


def check_feature_site(site: Site) -> None:
    """Raises `InputError` unless the site has one vector per position (heads of z taken together, or one of them)."""
    axes = SITE_KINDS[site.kind].axes
    if "pos" not in axes or "d_vocab" in axes:
        raise InputError(f"features live at a site with one vector per position; got {site}")


def working(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`x`, in float32 when it is half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def as_vectors(x: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch pos d"]:
    """One vector per position: heads side by side where there is a head axis."""
    return x.flatten(2)
