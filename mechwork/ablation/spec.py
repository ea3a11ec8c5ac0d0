"""`AblationSpec`: one declarative value that says what is ablated, how and where; saved, hashed, compared, run again.

kind | what is put in place | needs:

- ``zero`` | nothing
- ``constant`` | `value` everywhere
- ``mean`` | the mean over the reference's real tokens (with `positions`: over the tokens there) | a reference
- ``mean_by_position`` | the mean at the same absolute position | a reference
- ``mean_by_span`` | the mean over the same span | a reference with spans
- ``resample`` | the value on another prompt of the reference, of the same length | a reference
- ``noise`` | the value plus normal noise of `strength` standard deviations over the reference (Meng et al. 2022) | a
  reference
- ``optimal`` | learned constants that hurt least (Li & Janson 2024) | a reference
- ``corrupt`` | the value in the paired corrupt prompt | pairs to run on

A spec holds no activations: `fit_ablation` makes them from a model and a reference set, and records the hash of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_fields
from ..artefact import read_artefact, write_artefact
from ..errors import ArtefactError, InputError, UnknownNameError, check_seed
from ..files import reading
from ..provenance import hash_json, hash_tensors
from .targets import Target, check_disjoint, parse_target

KINDS = ("zero", "mean", "mean_by_position", "mean_by_span", "resample", "corrupt", "noise", "constant", "optimal")
NEEDS_REFERENCE = ("mean", "mean_by_position", "mean_by_span", "resample", "noise", "optimal")
"""Kinds whose values come from a reference set."""
BY_PROMPT = ("mean_by_span", "resample", "corrupt")
"""Kinds whose values belong to particular prompts."""
FOR_EDGES = ("zero", "constant", "mean", "mean_by_position", "corrupt", "resample")
FOR_EXPERTS = ("zero", "constant", "mean", "noise", "optimal")
FORMAT = 1
WHAT = "ablation spec"


@dataclass(frozen=True, eq=False)
class AblationSpec:
    """What is ablated (`targets`, as text), how (`kind`), and at which `positions` (span names or absolute columns;
    None: all).

    `value` is what ``constant`` puts in, `strength` how many standard deviations ``noise`` adds, `seed` what ``noise``,
    ``resample``
    and ``optimal`` draw from. `renormalise`: attention edges that are ablated give their share to the query's other
    keys. `directions` maps names to vectors ``[d]`` or bases ``[k, d]``; rows need not be orthonormal, they are made
    so.

    Raises `InputError` for no targets, malformed or overlapping ones, an unknown kind, or a kind that a target cannot
    have.

    >>> spec = AblationSpec(["a1.h0", "m2"], kind="mean")
    >>> spec == AblationSpec.from_json(spec.to_json())
    True
    """

    targets: Sequence[str]
    kind: str = "mean"
    positions: Sequence[str | int] | None = None
    value: float = 0.0
    strength: float = 1.0
    seed: int = 0
    renormalise: bool = False
    directions: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.targets, str) or not isinstance(self.targets, Sequence) or not self.targets:
            raise InputError(f"targets is a list of at least one target, e.g. ['a1.h0', 'm2']; got {self.targets!r}")
        if self.kind not in KINDS:
            raise UnknownNameError("ablation", self.kind, KINDS)
        listed = isinstance(self.positions, Sequence) and not isinstance(self.positions, str) and self.positions
        if self.positions is not None and not listed:
            raise InputError(f"positions is a list of spans or columns, or None for all; got {self.positions!r}")
        check_fields(self)
        for position in self.positions or ():
            if not isinstance(position, str | int) or isinstance(position, bool):
                raise InputError(f"positions are names of spans or columns; got {position!r}")
            if isinstance(position, int) and position < 0:
                raise InputError(
                    f"positions are absolute, from 0 on; got {position}. The last token is the span 'END'."
                )
        for name in ("value", "strength"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise InputError(f"{name} is a finite number; got {number!r}")
        check_seed(self.seed)
        object.__setattr__(self, "targets", tuple(str(parse_target(text)) for text in self.targets))
        object.__setattr__(self, "positions", None if self.positions is None else tuple(self.positions))
        object.__setattr__(
            self, "directions", {name: _orthonormal(name, rows) for name, rows in self.directions.items()}
        )
        check_disjoint(self.parsed)
        self._check_kinds()

    def _check_kinds(self) -> None:
        for target in self.parsed:
            allowed = {"edge": FOR_EDGES, "expert": FOR_EXPERTS}.get(target.kind, KINDS)
            if self.kind not in allowed:
                raise InputError(f"{target} can be ablated by {', '.join(allowed)}; got {self.kind!r}")
            if target.kind == "direction" and target.name not in self.directions:
                raise InputError(
                    f"{target} names the direction {target.name!r}; directions has "
                    f"{', '.join(self.directions) or 'none'}"
                )
            if target.kind == "edge" and self.positions is not None:
                raise InputError(f"{target} says itself where it is; leave positions out")
        named = [target for target in self.parsed if target.kind == "direction"]
        for i, one in enumerate(named):
            for two in named[:i]:
                if (
                    one.place == two.place
                    and float((self.directions[one.name] @ self.directions[two.name].T).abs().max()) > 1e-6
                ):
                    raise InputError(
                        f"directions at one site must be orthogonal; {one} and {two} are not. Give them as one basis."
                    )

    @cached_property
    def parsed(self) -> tuple[Target, ...]:
        """The targets as values."""
        return tuple(parse_target(text) for text in self.targets)

    @property
    def sha256(self) -> str:
        """Hash of everything the spec says, directions included."""
        return hash_json([self.to_json(), hash_tensors(self.directions)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AblationSpec) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def only(self, *targets: str) -> AblationSpec:
        """The same ablation of other targets."""
        return replace(self, targets=targets)

    def to_json(self) -> dict[str, Any]:
        """Everything but the directions' numbers, which `save` writes beside it."""
        return {
            "format": FORMAT,
            "what": WHAT,
            "targets": list(self.targets),
            "kind": self.kind,
            "positions": None if self.positions is None else list(self.positions),
            "value": self.value,
            "strength": self.strength,
            "seed": self.seed,
            "renormalise": self.renormalise,
            "directions": {name: list(rows.shape) for name, rows in self.directions.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], directions: Mapping[str, Tensor] | None = None) -> AblationSpec:
        """The spec that `to_json` wrote; raises `ArtefactError` for another format or missing directions."""
        if data.get("what") != WHAT or data.get("format") != FORMAT:
            raise ArtefactError(
                f"not an ablation spec of format {FORMAT}: it says {data.get('what')}, {data.get('format')}"
            )
        given = dict(directions or {})
        if missing := sorted(set(data["directions"]) - set(given)):
            raise ArtefactError(f"the spec needs the directions {', '.join(missing)}, which were not given")
        names = ("targets", "kind", "positions", "value", "strength", "seed", "renormalise")
        return cls(**{name: data[name] for name in names}, directions=given)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: directions as tensors, the rest as JSON in its header. Returns the path."""
        tensors = {f"direction.{name}": rows for name, rows in self.directions.items()}
        return write_artefact(Path(path).with_suffix(".safetensors"), WHAT, self.to_json(), tensors, version=FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> AblationSpec:
        """Read what `save` wrote."""
        found = read_artefact(path, WHAT, version=FORMAT)
        with reading(path, WHAT):
            return cls.from_json({"what": WHAT, "format": FORMAT, **found.facts}, directions_of(found.tensors))

    def __str__(self) -> str:
        n = len(self.targets)
        shown = ", ".join(self.targets[:6]) + (f" and {n - 6} more" if n > 6 else "")
        where = "" if self.positions is None else f" at {', '.join(map(str, self.positions))}"
        return f"{self.kind} ablation of {shown}{where}"

    __repr__ = __str__


def directions_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The directions among the tensors of a file."""
    return {name.removeprefix("direction."): rows for name, rows in tensors.items() if name.startswith("direction.")}


def _orthonormal(name: str, rows: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, as rows; orthonormal rows are kept as they are."""
    if not isinstance(rows, Tensor):
        raise InputError(f"direction {name!r} is a tensor, a finite vector [d] or basis [k, d]; got {rows!r:.80}")
    rows = rows.detach().cpu()
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.is_floating_point() or not bool(rows.isfinite().all()):
        raise InputError(
            f"direction {name!r} is a finite vector [d] or basis [k, d]; got {tuple(rows.shape)} {rows.dtype}"
        )
    if not bool(rows.any(dim=1).all()):
        raise InputError(f"the rows of direction {name!r} must be linearly independent and not zero")
    gram = rows @ rows.T
    if float((gram - torch.eye(len(rows)).to(gram)).abs().max()) < 1e-6:
        return rows
    q, r = torch.linalg.qr(rows.T)
    if float(r.diagonal().abs().min()) < 1e-6 * float(r.diagonal().abs().max()):
        raise InputError(f"the rows of direction {name!r} must be linearly independent and not zero")
    return (q * r.diagonal().sign()).T.contiguous()
