"""A weight edit: what is added to which weights of one model. A value; the model has it only inside a context.

    W -> W + strength * change

The weights are read before and put back afterwards as they were, to the bit, also after an exception; the file a model
was loaded from is never opened. An edit knows the sha256 of the weights it was made for and refuses others (another
model, another dtype,
a model that is edited already: add edits up instead, ``one + other``). Cost of entering: one hash of all weights, and
copies of those that change.

    with intervene(model, [edit]):            # beside any other writes
        model.generate(prompt)
    edit.save("she")                          # she.safetensors: the delta alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..artefact import read_artefact, write_artefact
from ..display import Readable
from ..encoding import Decoder
from ..errors import InputError, MetricError
from ..files import reading
from ..interventions import Columns, intervene
from ..models.identity import weights_sha256
from ..provenance import Provenance, stable
from .weights import Weight, find_weight, parse_weight

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 1
WHAT = "mechwork weight edit"


@dataclass(frozen=True, eq=False)
class LowRankChange(Readable):
    """A matrix ``left @ right`` of low rank, kept as its factors."""

    left: Float[Tensor, "d_in rank"]
    right: Float[Tensor, "rank d_model"]

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def dense(self) -> Float[Tensor, "d_in d_model"]:
        """The matrix itself."""
        return self.left @ self.right


@dataclass(frozen=True, eq=False)
class WeightEdit(Readable):
    """`changes`: weight name (``"W_out.3"``) -> what is added, ``[d_in, d_model]``; `base_sha256`: of the weights it
    belongs to.

    Raises `InputError` for an edit of nothing, names that are no weights, or numbers that are not finite.
    """

    changes: Mapping[str, LowRankChange]
    base_sha256: str
    name: str = "edit"
    provenance: Provenance = field(default_factory=dict)
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.changes:
            raise InputError(f"{self.name!r} changes no weight")
        for name, change in self.changes.items():
            parse_weight(name)
            if not all(bool(part.isfinite().all()) for part in (change.left, change.right)):
                raise InputError(f"an edit is finite; {self.name!r} has NaN or infinity in {name}")

    def check(self, model: TransformerBridge) -> None:
        """Raises `InputError` for other weights than it was made for, or another shape."""
        theirs = weights_sha256(model)
        if theirs != self.base_sha256:
            raise InputError(
                f"{self.name!r} was made for weights with sha256 {self.base_sha256[:12]}..., this model has "
                f"{theirs[:12]}.... Load that "
                "model in its dtype, leave other edits first, or add edits of one base up (one + other)"
            )
        for name, change in self.changes.items():
            found, mine = find_weight(model, name).read().shape, (len(change.left), change.right.shape[1])
            if tuple(found) != mine:
                raise InputError(f"{name} of this model is {tuple(found)}; {self.name!r} changes a matrix of {mine}")

    @contextmanager
    def install(self, model: TransformerBridge, columns: Columns | None = None) -> Iterator[None]:
        """Inside, the model has the edited weights. `intervene` checks first and then calls this."""
        weights = {name: find_weight(model, name) for name in self.changes}
        edited = {name: self._edited(name, weight) for name, weight in weights.items()}
        before = {name: weight.parameter.detach().clone() for name, weight in weights.items()}
        try:
            _put(weights, edited)
            yield
        finally:
            _put(weights, before)

    def _edited(self, name: str, weight: Weight) -> Tensor:
        """Summed in at least float32, then rounded to the weight's dtype; raises `MetricError` when that overflows."""
        old = weight.parameter.detach()
        wide = torch.promote_types(old.dtype, torch.float32)
        change = self.changes[name].dense().to(old.device, wide) * self.strength
        new = (old.to(wide) + weight.as_host(change)).to(old.dtype)
        if not bool(new.isfinite().all()):
            dtype = str(old.dtype).removeprefix("torch.")
            raise MetricError(
                f"{self.name!r} at strength {self.strength} overflows {dtype} in {name}. Use a smaller strength, or a "
                "wider dtype"
            )
        return new

    def scaled(self, strength: float) -> WeightEdit:
        """The same edit, `strength` times as strong."""
        return replace(self, strength=self.strength * strength)

    def __add__(self, other: WeightEdit) -> WeightEdit:
        """Both edits of one base at once."""
        if self.base_sha256 != other.base_sha256:
            raise InputError(
                "only edits made for the same weights can be added up; load one model and make both for it"
            )
        changes = {name: _scaled(change, self.strength) for name, change in self.changes.items()}
        for name, change in other.changes.items():
            new = _scaled(change, other.strength)
            mine = changes.get(name)
            changes[name] = new if mine is None else LowRankChange(
                torch.cat([mine.left, new.left], dim=1), torch.cat([mine.right, new.right])
            )  # fmt: skip
        provenance = {"method": "sum of edits", "parts": [stable(self.provenance), stable(other.provenance)]}
        return WeightEdit(changes, self.base_sha256, f"{self.name} + {other.name}", provenance)

    def size(self, model: TransformerBridge) -> dict[str, float]:
        """Of every changed weight, the Frobenius norm of the change over that of the weight."""
        return {
            name: float(
                change.dense().double().norm() * abs(self.strength) / find_weight(model, name).read().double().norm()
            )
            for name, change in self.changes.items()
        }

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the delta as one safetensors file, everything else as JSON in its header. Returns the path."""
        facts = {
            "name": self.name, "base_sha256": self.base_sha256, "strength": self.strength,
            "provenance": stable(self.provenance),
        }  # fmt: skip
        tensors = {
            f"{name}|{side}": getattr(change, side)
            for name, change in self.changes.items()
            for side in ("left", "right")
        }
        return write_artefact(Path(path).with_suffix(".safetensors"), WHAT, facts, tensors, version=FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> WeightEdit:
        """Read what `save` wrote; raises `ArtefactError` for another kind of file, damaged or newer ones."""
        found = read_artefact(path, WHAT, version=FORMAT)
        names = sorted({name.partition("|")[0] for name in found.tensors})
        changes = {name: {side: f"{name}|{side}" for side in ("left", "right")} for name in names}
        with reading(path, WHAT):
            return Decoder(found.tensors).build(cls, {**found.facts, "changes": changes})

    def __str__(self) -> str:
        ranks = ", ".join(f"{name} (rank {change.rank})" for name, change in self.changes.items())
        return f"{self.name}: changes {ranks}, strength {self.strength:g}"


@contextmanager
def apply_edit(model: TransformerBridge, edit: WeightEdit) -> Iterator[None]:
    """Inside, the model has the edited weights; on exit, also after an exception, its own, to the bit.

    Raises `InputError` for an edit of other weights, `MetricError` when the edited weights overflow the model's dtype.

    >>> with apply_edit(model, WeightEdit.load(edit.save("she"))):
    ...     model.generate(prompt)
    """
    with intervene(model, [edit]):
        yield


@torch.no_grad()
def _put(weights: Mapping[str, Weight], values: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.parameter.copy_(values[name])


def _scaled(change: LowRankChange, strength: float) -> LowRankChange:
    return LowRankChange(change.left * strength, change.right)
