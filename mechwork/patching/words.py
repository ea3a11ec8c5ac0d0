"""Places in words narrow what is patched: ``sites=["a3.h1", "resid_pre.5@END"]`` beside ``sites=["z"]``.

The result keeps the kind's axes; each axis has the entries that some word names, in the kind's own order. A cell of
that box that no word names is NaN and is not run. Words with ``@`` resolve their kind by position (``@5``) or span
(``@END``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InputError, nearest
from ..models.anatomy import ModelAnatomy
from ..names import Place, by_kind
from ..sites import Site
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .grids import Masks, Neurons, build_grids
from .result import Effect, Effects
from .sweep import Grid


@dataclass(frozen=True)
class Named:
    """The kinds that `sites` names; `places` of each (none: all), and the neurons that were named as such."""

    places: dict[str, tuple[Place, ...]]
    neurons: Neurons | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.places)

    @property
    def whole(self) -> bool:
        """Whether only whole kinds are named."""
        return self.neurons is None and not any(self.places.values())

    def positions(self, kind: str, given: str | None) -> str | None:
        """How the kind is resolved: `given`, unless its words have positions."""
        marks = {place.at for place in self.places[kind] if place.at}
        if not marks:
            return given
        numbers = {mark.isdecimal() for mark in marks}
        if len(numbers) > 1:
            raise InputError(f"places of one kind name spans or positions, not both; got @{', @'.join(sorted(marks))}")
        chosen = "each" if numbers == {True} else "spans"
        if given not in (None, chosen):
            raise InputError(f"@{min(marks)} is one of {chosen!r}; leave positions={given!r} out")
        return chosen


def find_named(sites: Sequence[str | Site]) -> Named:
    """What `sites` names; raises `InputError` for words that are no places (see `mechwork.names`)."""
    if not isinstance(sites, str) and not list(sites):
        raise InputError("sites is a list of places, e.g. ['resid_pre', 'a3.h1', 'resid_pre.5@END']; got none")
    places = by_kind(sites)
    neurons = [place for place in places.get("mlp_post", ()) if place.what == "neurons"]
    if not neurons:
        return Named(places)
    if len(neurons) != len(places["mlp_post"]) or any(place.at for place in neurons):
        raise InputError("neurons are named alone and without @ (pass positions=); not with other places of mlp_post")
    groups: dict[int, list[int | tuple[int, ...]]] = {}
    for place in neurons:
        assert place.layer is not None
        groups.setdefault(place.layer, []).append(place.index)
    return Named({**places, "mlp_post": ()}, groups)


def build_named(
    anatomy: ModelAnatomy,
    d_mlp: int,
    task: Task,
    pairs: PromptPairs,
    sites: Sequence[str | Site],
    positions: str | None,
    neurons: Neurons | None,
) -> tuple[tuple[Grid, ...], Masks, tuple[tuple[int, ...], ...]]:
    """The grids of what `sites` names, the position masks they refer to, and the cells to run (none: all)."""
    named = find_named(sites)
    if neurons is not None and named.neurons is not None:
        raise InputError("neurons are named in sites or in neurons=, not in both")
    neurons = named.neurons if neurons is None else neurons
    if named.whole or not any(named.places.values()):
        return *build_grids(anatomy, d_mlp, task, pairs, named.kinds, positions, neurons), ()
    build_grids(anatomy, d_mlp, task, pairs, named.kinds, None, neurons)  # what can be refused, for all kinds together
    grids: list[Grid] = []
    masks: Masks = {}
    cells: list[tuple[int, ...]] = []
    for kind, places in named.places.items():
        chosen = named.positions(kind, positions)
        own = neurons if kind == "mlp_post" else None
        (grid,), found = build_grids(anatomy, d_mlp, task, pairs, [kind], chosen, own)
        if places:
            kept, wanted = find_box(kind, dict(grid.labels), places)
            grid, found = _narrow(grid, found, kept)
        else:
            wanted = torch.ones(grid.shape, dtype=torch.bool)
        grids.append(grid)
        masks |= found
        cells.append(tuple(wanted.flatten().nonzero().flatten().tolist()))
    every = all(len(chosen) == grid.n_cells for chosen, grid in zip(cells, grids, strict=True))
    return tuple(grids), masks, () if every else tuple(cells)


def find_box(
    kind: str, labels: Mapping[str, tuple[str, ...]], places: Sequence[Place]
) -> tuple[dict[str, list[int]], Bool[Tensor, "..."]]:
    """Per axis the entries that some place names, and which cells of that box are named.

    Raises `InputError` for a layer, head, span or position that is not among the labels.
    """
    cells: list[dict[str, list[int]]] = []
    for place in places:
        wanted = {"layer": place.site.layer if place.layer is None and place.what == "input" else place.layer}
        expert = place.index[0] if place.what == "expert" else None
        wanted |= {"head": place.head, "expert": expert, "pos": place.at or None}
        cells.append({axis: _entries(kind, axis, names, wanted.get(axis), place) for axis, names in labels.items()})
    kept = {axis: sorted({i for cell in cells for i in cell[axis]}) for axis in labels}
    mask = torch.zeros(tuple(len(kept[axis]) for axis in labels), dtype=torch.bool)
    for cell in cells:
        rows = [torch.tensor([kept[axis].index(i) for i in cell[axis]]) for axis in labels]
        mask[torch.meshgrid(*rows, indexing="ij")] = True
    return kept, mask


def narrow_effects(effects: Effects, named: Named) -> Effects:
    """The effects at the named places only (see the module's docstring)."""
    if named.whole:
        return effects
    return Effects(
        {kind: _narrow_effect(effect, named.places[kind]) for kind, effect in effects.items()},
        {name: narrow_effects(other, named) for name, other in effects.others.items()},
    )


def _narrow_effect(effect: Effect, places: Sequence[Place]) -> Effect:
    if not places:
        return effect
    kept, mask = find_box(effect.kind, effect.labels, places)
    values = effect.per_example
    for axis, name in enumerate(effect.axes):
        values = values.index_select(axis + 1, torch.tensor(kept[name]))
    labels = {name: tuple(effect.labels[name][i] for i in kept[name]) for name in effect.axes}
    return replace(effect, per_example=torch.where(mask, values, torch.nan), labels=labels)


def _narrow(grid: Grid, masks: Masks, kept: Mapping[str, list[int]]) -> tuple[Grid, Masks]:
    labels = tuple((axis, tuple(names[i] for i in kept[axis])) for axis, names in grid.labels)
    rows = kept.get("pos", list(range(grid.n_places)))
    mask = masks[grid.positions]
    shown = grid.positions if len(rows) == len(mask) else f"{grid.positions} {','.join(map(str, rows))}"
    layers = tuple(grid.layers[i] for i in kept["layer"]) if "layer" in kept else grid.layers
    kept_heads = kept.get("head", kept.get("expert"))
    heads = grid.heads if kept_heads is None else tuple(grid.heads[i] for i in kept_heads)
    narrowed = replace(grid, positions=shown, layers=layers, n_places=len(rows), heads=heads, labels=labels)
    assert narrowed.n_cells == prod(len(kept[axis]) for axis in kept)
    return narrowed, {shown: mask[rows]}


def _entries(kind: str, axis: str, names: Sequence[str], wanted: int | str | None, place: Place) -> list[int]:
    """Indexes of the axis that a place names: one, or all."""
    if wanted is None:
        return list(range(len(names)))
    said = [name.split(" ", 1)[0] for name in names]  # positions are labelled "5 Mary"
    if str(wanted) not in said:
        close = nearest(str(wanted), said)
        many = ", ".join(said) if len(said) <= 12 else f"{said[0]} to {said[-1]}"
        raise InputError(f"{place}: {kind!r} has {axis} {many}; got {wanted}{close}")
    return [said.index(str(wanted))]
