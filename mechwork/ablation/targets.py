"""Targets: what is ablated, as values with a text form.

| text | what | where it is written |
|---|---|---|
| ``a3.h1`` | a head | `z` of that head |
| ``a3`` | a layer's attention, output bias included | `attn_out` |
| ``m3`` | an MLP | `mlp_out` |
| ``m3.n17``, ``m3.n17+20`` | a neuron, a set of them | `mlp_post` |
| ``m3.e2`` | an expert of a mixture-of-experts block | its share of the block's output |
| ``l3`` | a whole layer: attention and MLP write nothing of their own | `attn_out` and `mlp_out` |
| ``a3.h1[END->S1]``, ``a3.h1[5->2]`` | what queries of a span or position have of its keys | `pattern` |
| ``resid_pre.3@truth``, ``z.3.1@x`` | a named direction (or basis) at a site | the part along it |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError
from ..models.anatomy import ModelAnatomy
from ..names import PARTS, Place, head_name, mlp_name, parse_place, per_head
from ..sites import SITE_KINDS, Site

Kind = str
FORMS = "a3.h1, a3, m3, m3.n17+20, m3.e2, l3, a3.h1[END->S1], resid_pre.3@name"


@dataclass(frozen=True, order=True)
class Target:
    """One target: `kind` is head, attn, mlp, neurons, expert, layer, edge or direction; `index` its head, neurons or
    expert.

    `query` and `key` are spans or positions of an edge; `site` and `name` say where a direction is and what it is
    called.
    """

    kind: str
    layer: int
    index: tuple[int, ...] = ()
    query: str = ""
    key: str = ""
    site: str = ""
    name: str = ""

    def __str__(self) -> str:
        if self.kind == "direction":
            return str(Place(self.site, self.layer, self.index, at=self.name))
        what = "head" if self.kind == "edge" else self.kind
        return str(Place(what, self.layer, self.index, query=self.query, key=self.key))

    @property
    def place(self) -> Site:
        """The site that the target is written at (of a whole layer: its attention's)."""
        if self.kind == "direction":
            return Site(self.site, self.layer, self.index[0] if self.index else None)
        return Site(SITES[self.kind], self.layer)

    @property
    def parts(self) -> tuple[tuple[str, tuple[int, ...] | None], ...]:
        """(kind of site, entries of it or None for all) of a target that is a part of site activations."""
        if self.kind == "layer":
            return ("attn_out", None), ("mlp_out", None)
        return ((SITES[self.kind], self.index or None),)

    def check(self, anatomy: ModelAnatomy, d_mlp: int) -> None:
        """Raises `InputError` when the model does not have this target, or could not be written there."""
        layers = f"layers of this model are 0 to {anatomy.n_layers - 1}; got {self}"
        if not 0 <= self.layer < anatomy.n_layers:
            raise InputError(layers)
        if self.kind in ("head", "edge") and not self.index[0] < anatomy.n_heads:
            raise InputError(
                f"heads of this model are a0.h0 to a{anatomy.n_layers - 1}.h{anatomy.n_heads - 1}; got {self}"
            )
        if self.kind == "expert":
            if anatomy.n_experts is None:
                raise InputError(
                    f"{anatomy.architecture} has no experts; got {self}. Ablate 'm{self.layer}' or its neurons."
                )
            if not self.index[0] < anatomy.n_experts:
                raise InputError(f"experts of a block of this model are 0 to {anatomy.n_experts - 1}; got {self}")
            return
        for kind, _ in self.parts if self.kind != "direction" else ((self.site, None),):
            anatomy.check_writable(Site(kind, self.layer, self.place.head))
        if self.kind == "neurons" and not all(neuron < d_mlp for neuron in self.index):
            raise InputError(f"neurons of this model are 0 to {d_mlp - 1}; got {self}")


SITES = {**PARTS, "edge": "pattern"}
"""Kind of target -> kind of site it is written at."""


def parse_target(text: str) -> Target:
    """The target written as `text` (see the module's table); raises `InputError` for anything else."""
    try:
        place = parse_place(text)
    except InputError as error:
        raise InputError(f"targets are written like {FORMS}; got {text!r} ({error})") from error
    if place.what in PARTS and place.layer is not None and not (place.side or place.at):
        return Target("edge" if place.query else place.what, place.layer, place.index, place.query, place.key)
    if place.what in SITE_KINDS and place.layer is not None and place.at and not re.search(r"\s", place.at):
        if "pos" not in SITE_KINDS[place.what].axes:
            raise InputError(f"a direction lies at a site with positions, like 'resid_pre.3@name'; got {text!r}")
        if per_head(place.what) != (place.head is not None):
            needs = "needs a" if per_head(place.what) else "has no"
            raise InputError(f"{place.what!r} {needs} head; got {text!r}")
        return Target("direction", place.layer, place.index, site=place.what, name=place.at)
    raise InputError(f"targets are written like {FORMS}; got {text!r}")


def check_disjoint(targets: Iterable[Target]) -> None:
    """Raises `InputError` when two targets claim the same activation, so that which of them holds would depend on their
    order.
    """
    seen: list[Target] = []
    for target in targets:
        for other in seen:
            if _overlap(target, other) or _overlap(other, target):
                raise InputError(
                    f"targets must not overlap: {other} and {target} claim the same activation. Leave one of them out."
                )
        seen.append(target)


def _overlap(a: Target, b: Target) -> bool:
    """Whether `a` holds (a part of) `b`."""
    if a == b:
        return True
    if a.layer != b.layer or a.kind == "direction":
        return False
    if b.kind == "direction":
        parts = a.parts if a.kind not in ("edge", "expert") else ()
        return any(kind == b.site and (entries is None or kind != "z" or b.index == entries) for kind, entries in parts)
    inside = {
        "layer": ("attn", "mlp", "head", "edge", "neurons", "expert"),
        "attn": ("head", "edge"),
        "mlp": ("neurons", "expert"),
    }
    if b.kind in inside.get(a.kind, ()):
        return True
    if a.kind == "head" and b.kind == "edge":
        return a.index == b.index
    return a.kind == b.kind == "neurons" and bool(set(a.index) & set(b.index))


def all_heads(anatomy: ModelAnatomy) -> tuple[str, ...]:
    """Every head's text, layer by layer."""
    return tuple(head_name(layer, head) for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads))


def all_mlps(anatomy: ModelAnatomy) -> tuple[str, ...]:
    """Every MLP's text; none in attention-only models."""
    return () if anatomy.attn_only else tuple(mlp_name(layer) for layer in range(anatomy.n_layers))


def outside(anatomy: ModelAnatomy, nodes: Iterable[str]) -> tuple[str, ...]:
    """The heads and MLPs that are not among `nodes` (names as in circuits): what a circuit of nodes leaves out.

    Raises `InputError` for names that this model does not have; ``input`` and ``logits`` may be among them.
    """
    kept, known = set(nodes), (*all_heads(anatomy), *all_mlps(anatomy))
    if strange := sorted(kept - set(known) - {"input", "logits"}):
        raise InputError(
            f"nodes are heads 'a0.h0', MLPs 'm0', 'input' and 'logits' of this model; got {', '.join(strange)}"
        )
    return tuple(name for name in known if name not in kept)
