"""A direction: a vector at a site, with the boundary between two classes along it, and where it comes from.

Coordinates are along the unit vector u = v / |v|: c(x) = x . u. `low` and `high` are the mean coordinates of the
negative and of the positive class where it was fitted, the boundary lies between them, and v is high - low long when it
is the difference of means, so that adding v once moves the mean of the one class to that of the other along u.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import check_fields
from ..artefact import read_artefact, write_artefact
from ..display import Readable
from ..encoding import Decoder
from ..errors import InputError
from ..files import reading
from ..models.anatomy import check_ready
from ..models.identity import identify_model
from ..provenance import Provenance, stable
from ..sites import SITE_KINDS, Site
from .examples import check_vector_site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 1
WHAT = "mechwork direction"


@dataclass(frozen=True, eq=False)
class Direction(Readable):
    """`vector` ``[d]`` at `site`, towards the positive class; `boundary`, `low`, `high` are coordinates along its unit
    vector.

    `centre` is the mean of the examples, where it was fitted from examples: rotations turn in the plane of the two.

    Raises `InputError` for a vector that is not finite or has no length, or a site without vectors.
    """

    vector: Float[Tensor, " d"]
    site: Site
    boundary: float = 0.0
    low: float = 0.0
    high: float = 0.0
    name: str = "direction"
    provenance: Provenance = field(default_factory=dict)
    centre: Float[Tensor, " d"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_vector_site(self.site)
        if self.vector.ndim != 1 or (self.centre is not None and self.centre.shape != self.vector.shape):
            shape = tuple(self.vector.shape)
            raise InputError(
                f"a direction is one vector [d], as is its centre; {self.name!r} has the shape {shape}. Take one row "
                "of it."
            )
        if not bool(self.vector.isfinite().all()) or not float(self.vector.double().norm()) > 0:
            raise InputError(
                f"a direction must be finite and of positive length; {self.name!r} has zeros, NaN or infinity"
            )

    @property
    def norm(self) -> float:
        return float(self.vector.double().norm())

    @property
    def unit(self) -> Float[Tensor, " d"]:
        """The vector, of length 1."""
        return (self.vector.double() / self.norm).to(self.vector)

    def coordinate(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """c(x) = x . u."""
        return x @ self.unit.to(x)

    def scaled(self, factor: float) -> Direction:
        """The same direction with its vector times `factor` (above 0)."""
        if not factor > 0:
            raise InputError(f"a direction is scaled by a factor above 0; got {factor}. Its opposite is `reversed()`")
        return replace(self, vector=self.vector * factor)

    def reversed(self) -> Direction:
        """Towards the other class."""
        return replace(
            self,
            vector=-self.vector,
            boundary=-self.boundary,
            low=-self.high,
            high=-self.low,
            name=f"reversed {self.name}",
        )

    def random_control(self, seed: int = 0) -> Direction:
        """A random vector of the same length at the same site, with the same coordinates: the norm-matched control."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(len(self.vector), generator=generator, dtype=torch.float64)
        return replace(
            self, vector=(draw / draw.norm() * self.norm).to(self.vector), name=f"random {seed}, as long as {self.name}"
        )

    def check(self, model: TransformerBridge) -> None:
        """Raises `InputError` when the direction belongs to other weights, another layer count or another width."""
        anatomy = check_ready(model)
        anatomy.check_site(self.site)
        axis = SITE_KINDS[self.site.kind].axes[-1]
        width = (
            int(model.blocks[int(self.site.layer or 0)].mlp.W_out.shape[0])
            if axis == "d_mlp"
            else {"d_model": anatomy.d_model, "d_head": anatomy.d_head}.get(axis, len(self.vector))
        )
        if len(self.vector) != width:
            raise InputError(
                f"vectors at {self.site} have {width} numbers in this model; {self.name!r} has {len(self.vector)} "
                "numbers. "
                "Carry it over with a map between the two streams (fit_stream_map)"
            )
        mine = self.provenance.get("model", {}).get("weights_sha256")
        theirs = identify_model(model)["weights_sha256"]
        if mine is not None and mine != theirs:
            raise InputError(
                f"{self.name!r} was fitted in another model: weights sha256 {mine[:12]}..., this model has "
                f"{theirs[:12]}.... "
                "Fit it here, or say that it is transferred with `transferred()`"
            )

    def transferred(self) -> Direction:
        """The same numbers for use in another model of this width: nothing says any more where they were fitted."""
        origin = self.provenance.get("model")
        return replace(self, provenance={**self.provenance, "model": {}, "transferred_from": origin})

    def cosine(self, other: Direction) -> float:
        """Of the angle between two directions; raises `InputError` for different widths."""
        if len(self.vector) != len(other.vector):
            raise InputError(
                f"only directions of one width can be compared; got {len(self.vector)} and {len(other.vector)}"
            )
        return float(self.unit.double() @ other.unit.double())

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, everything but the vector in its header. Returns the path."""
        facts = {
            "site": [self.site.kind, self.site.layer, self.site.head], "boundary": self.boundary, "low": self.low,
            "high": self.high, "name": self.name, "provenance": stable(self.provenance),
        }  # fmt: skip
        tensors = {"vector": self.vector} | ({} if self.centre is None else {"centre": self.centre})
        return write_artefact(Path(path).with_suffix(".safetensors"), WHAT, facts, tensors, version=FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read what `save` wrote; raises `ArtefactError` for another kind of file, damaged or newer ones."""
        found = read_artefact(path, WHAT, version=FORMAT)
        with reading(path, WHAT):
            facts = {**found.facts, "site": dict(zip(("kind", "layer", "head"), found.facts["site"], strict=True))}
            return Decoder(found.tensors).build(cls, facts | {name: name for name in found.tensors})

    def __str__(self) -> str:
        return (
            f"{self.name} at {self.site}: length {self.norm:.4g}, boundary {self.boundary:.4g} between "
            f"{self.low:.4g} and {self.high:.4g}"
        )
