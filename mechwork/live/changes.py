"""Changes: what a gesture does to the model's run, as values that say themselves in Python and in the shell.

| change | puts in place | control beside it |
|---|---|---|
| `AblateAt` | zeros, or the mean over the task's clean prompts | the same at random other places of the kind |
| `PatchAt` | what the other prompt of the pair has there | the same |
| `ScaleAt` | a multiple of what is there | the same |
| `SteerAfter` | the stream plus s times the task's fitted direction | random directions as long |
| `FeatureAt` | a multiple of one sparse feature | the same to random other active features |

A place is written as everywhere (`mechwork.names`), with ``@END`` or ``@5`` for one position. The change of the metric
is m(with it) - m(without it): negative when what was taken away had raised the metric.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..ablation import AblationSpec
from ..ablation.record import position_mask
from ..ablation.targets import parse_target
from ..directions import METHODS
from ..directions.steer import steering_write
from ..errors import InputError, UnknownNameError, check_whole
from ..interventions import ByPosition, Entries, Scale, Write, Zero, intervene
from ..models.anatomy import ModelAnatomy, device_of
from ..names import Place, parse_place
from ..runs.record import align_donor
from ..runs.room import d_mlp_of
from ..sites import Site
from ..tasks.pairs import ABSENT
from ..tasks.task import Task
from .desk import Desk, Install
from .feature_change import FeatureAt
from .parts import PrintedCode, check_number

STREAM = ("resid_pre", "resid_post")
"""Kinds of site that a change may name by themselves; all others are components."""

COMPONENTS = ("head", "attn", "mlp", "layer", "neurons", "expert")


def read_place(text: str, anatomy: ModelAnatomy, d_mlp: int) -> Place:
    """The place, if the model has it and a change can be made there; raises `InputError` otherwise."""
    place = parse_place(text)
    if place.what in COMPONENTS and not (place.side or place.query):
        parse_target(str(replace(place, at=""))).check(anatomy, d_mlp)
    elif place.what in STREAM and place.layer is not None:
        anatomy.check_writable(Site(place.what, place.layer))
    else:
        raise InputError(
            f"changes are made at a head, an attention, an MLP, neurons, a layer or the stream, like a3.h1, a3, m3, "
            f"m3.n17, l3, resid_pre.5, with @END or @5 for one position; got {text!r}"
        )
    return place


@dataclass(frozen=True)
class _AtPlace:
    """What changes at a place share."""

    place: str

    name: ClassVar[str] = ""

    @property
    def where(self) -> Place:
        return parse_place(self.place)

    @property
    def key(self) -> str:
        return f"{self.name} {self}"

    @property
    def first_layer(self) -> int:
        return self.where.layer or 0

    def check(self, desk: Desk, pair: Task) -> None:
        """Raises `InputError` for a place that the model or the prompt does not have."""
        place = read_place(self.place, desk.anatomy, d_mlp_of(desk.model))
        if place.at:
            n = int(pair.pairs.lengths[0])
            if place.at.isdecimal() and int(place.at) >= n:
                raise InputError(f"this prompt has positions 0 to {n - 1}; got {self.place}")
            position_mask(place.at, pair.pairs, n)

    def controls(self, desk: Desk, pair: Task, n: int) -> list[Any]:
        """The same change at `n` random other places of the kind, the nearest kin first; a fixed draw per place."""
        rng = random.Random(f"{desk.seed}/{self.place}")
        others = _others(self.where, desk.anatomy, d_mlp_of(desk.model), int(pair.pairs.lengths[0]))
        found = []
        for group in others:
            rng.shuffle(group)
            found += [replace(self, place=str(place)) for place in group[: n - len(found)]]
        return found

    def _spec(self, kind: str) -> AblationSpec:
        at = self.where.at
        positions = None if not at else [int(at) if at.isdecimal() else at]
        return AblationSpec([str(replace(self.where, at=""))], kind=kind, positions=positions)


def say_spec(targets: list[str], kind: str, at: str) -> str:
    """An `AblationSpec` in Python."""
    positions = f", positions=[{int(at) if at.isdecimal() else at!r}]" if at else ""
    return f"mw.AblationSpec({targets!r}, kind={kind!r}{positions})"


@dataclass(frozen=True)
class AblateAt(_AtPlace):
    """Take away what the place says: ``zero`` puts zeros there, ``mean`` the mean over the task's clean prompts."""

    kind: str = "mean"

    name: ClassVar[str] = "ablate"

    def check(self, desk: Desk, pair: Task) -> None:
        super().check(desk, pair)
        if self.kind not in ("zero", "mean"):
            raise UnknownNameError("ablation of a gesture", self.kind, ("zero", "mean"))
        if self.where.what in STREAM and self.kind != "zero":
            raise InputError(f"the stream is ablated by zero, or patched; got {self.kind!r} of {self.place}")

    def bind(self, desk: Desk, pair: Task) -> Install:
        if self.where.what in STREAM:
            return _writing(desk, [Write(_site(self.where), Zero(), _mask(self.where, pair))])
        bound = desk.fitted(self._spec(self.kind)).bind(desk.model, pair.pairs.to(device_of(desk.model)))
        return lambda: bound.installed(desk.model)

    def code(self, suffix: str = "") -> PrintedCode:
        """The change as Python; `suffix` tells several apart."""
        if self.where.what in STREAM:
            return _write_code(self.where, f"Write({_site(self.where)!r}, Zero(), {_mask_code(self.where)})", "Zero")
        return _spec_code(self.where, self.kind, suffix)


@dataclass(frozen=True)
class PatchAt(_AtPlace):
    """Put in what the other prompt of the pair has there, at the corresponding positions."""

    name: ClassVar[str] = "patch"

    def bind(self, desk: Desk, pair: Task) -> Install:
        pair.pairs.require_corrupt()
        pairs = pair.pairs.to(device_of(desk.model))
        if self.where.what not in (*STREAM, "head", "attn", "mlp"):
            bound = desk.fitted(self._spec("corrupt")).bind(desk.model, pairs)
            return lambda: bound.installed(desk.model)
        site, index = _site(self.where), pairs.alignment()  # the other prompt runs as far as the place alone
        donor = desk.value_at(pairs.corrupt_tokens, site)
        put = ByPosition(align_donor(donor, donor, index), index != ABSENT)
        return _writing(desk, [Write(site, put, _mask(self.where, pair))])

    def code(self, suffix: str = "") -> PrintedCode:
        """The change as Python."""
        if self.where.what not in STREAM:
            return _spec_code(self.where, "corrupt", suffix)
        site = _site(self.where)
        lines = (
            f"donor{suffix} = record_states(model, pair.pairs.corrupt_tokens, [{site!r}])[0]",
            f"moved{suffix} = align_donor(donor{suffix}, donor{suffix}, pair.pairs.alignment())",
        )
        put = f"ByPosition(moved{suffix}, pair.pairs.alignment() != ABSENT)"
        found = _write_code(self.where, f"Write({site!r}, {put}, {_mask_code(self.where)})", "ByPosition")
        imports = (
            *found.imports,
            "from mechwork.lenses.states import record_states",
            "from mechwork.runs.record import align_donor",
            "from mechwork.tasks.pairs import ABSENT",
        )
        return PrintedCode(imports, lines, found.context)


@dataclass(frozen=True)
class ScaleAt(_AtPlace):
    """Multiply what is there: 0 takes it away, 1 leaves it, 2 doubles it."""

    factor: float = 2.0

    name: ClassVar[str] = "scale"

    def check(self, desk: Desk, pair: Task) -> None:
        super().check(desk, pair)
        check_number("a factor", self.factor)
        if self.where.what in ("expert", "layer"):
            raise InputError(f"a head, an attention, an MLP, neurons or the stream are scaled; got {self.place}")

    def bind(self, desk: Desk, pair: Task) -> Install:
        put: Any = Scale(self.factor)
        put = Entries(put, self.where.index) if self.where.what == "neurons" else put
        return _writing(desk, [Write(_site(self.where), put, _mask(self.where, pair))])

    def code(self, suffix: str = "") -> PrintedCode:
        """The change as Python."""
        put = f"Scale({self.factor!r})"
        entries = self.where.what == "neurons"
        put = f"Entries({put}, {self.where.index!r})" if entries else put
        write = f"Write({_site(self.where)!r}, {put}, {_mask_code(self.where)})"
        return _write_code(self.where, write, *(("Entries", "Scale") if entries else ("Scale",)))


@dataclass(frozen=True)
class SteerAfter:
    """Move the stream after block `layer` along the direction from the task's corrupt to its clean prompts."""

    layer: int
    strength: float = 1.0
    method: str = "add"
    control: int = -1

    name: ClassVar[str] = "steer"

    @property
    def place(self) -> str:
        return str(Place("resid_post", self.layer))

    @property
    def key(self) -> str:
        return f"{self.name} {self}"

    @property
    def first_layer(self) -> int:
        return self.layer

    def check(self, desk: Desk, pair: Task) -> None:
        """Raises `InputError` for a layer that is not there, an unknown method or a strength out of range."""
        desk.task.pairs.require_corrupt()
        check_whole("layer", self.layer, least=0)
        desk.anatomy.check_writable(Site("resid_post", self.layer))
        if self.method not in METHODS:
            raise UnknownNameError("way to steer", self.method, METHODS)
        check_number("a strength", self.strength)

    def controls(self, desk: Desk, pair: Task, n: int) -> list[Any]:
        """The same along random directions as long."""
        return [replace(self, control=desk.seed + i) for i in range(n)]

    def bind(self, desk: Desk, pair: Task) -> Install:
        direction = desk.direction(self.layer)
        direction = direction if self.control < 0 else direction.random_control(self.control)
        return _writing(desk, [Write(direction.site, steering_write(direction, self.method, self.strength))])

    def code(self, suffix: str = "") -> PrintedCode:
        """The change as Python."""
        site = Site("resid_post", self.layer)
        lines = [f"direction{suffix} = mw.fit_direction(model, Examples.of_task(task), {site!r})"]
        if self.control >= 0:
            lines.append(f"direction{suffix} = direction{suffix}.random_control({self.control})")
        imports = (
            "from mechwork.directions import Examples, steering_write",
            "from mechwork.interventions import Write, intervene",
            "from mechwork.sites import Site",
        )
        write = f"Write({site!r}, steering_write(direction{suffix}, {self.method!r}, {self.strength!r}))"
        return PrintedCode(imports, tuple(lines), f"intervene(model, [{write}])")


AnyChange = AblateAt | PatchAt | ScaleAt | SteerAfter | FeatureAt


def _site(place: Place) -> Site:
    return Site(place.kind, place.layer, place.head)


def _mask(place: Place, pair: Task) -> Any:
    """The positions of the place in the pair's clean prompt; None for all."""
    if not place.at:
        return None
    width = pair.pairs.clean_tokens.shape[1]
    return position_mask(place.at, pair.pairs, width).expand(len(pair.pairs), width)


def _mask_code(place: Place) -> str:
    if not place.at:
        return "None"
    width = "pair.pairs.clean_tokens.shape[1]"
    return f"position_mask({place.at!r}, pair.pairs, {width}).expand(len(pair), {width})"


def _writing(desk: Desk, writes: list[Write]) -> Install:
    @contextmanager
    def installed() -> Iterator[None]:
        with intervene(desk.model, writes):
            yield

    def install() -> AbstractContextManager[None]:
        return installed()

    return install


def _write_code(place: Place, write: str, *names: str) -> PrintedCode:
    listed = ", ".join(sorted({*names, "Write", "intervene"}))
    imports = [f"from mechwork.interventions import {listed}", "from mechwork.sites import Site"]
    if place.at:
        imports.append("from mechwork.ablation.record import position_mask")
    return PrintedCode(tuple(imports), (), f"intervene(model, [{write}])")


def _spec_code(place: Place, kind: str, suffix: str) -> PrintedCode:
    spec = say_spec([str(replace(place, at=""))], kind, place.at)
    return PrintedCode(
        ("from mechwork.ablation import fit_ablation",),
        (f"ablation{suffix} = fit_ablation(model, {spec}, task).bind(model, pair.pairs)",),
        f"ablation{suffix}.installed(model)",
    )


def _others(place: Place, anatomy: ModelAnatomy, d_mlp: int, n_pos: int) -> list[list[Place]]:
    """Other places of the kind, in groups: those of the same layer, then those of other layers."""
    layers = [layer for layer in range(anatomy.n_layers) if layer != place.layer]
    if place.what in ("head", "neurons", "expert"):
        n = {"head": anatomy.n_heads, "neurons": d_mlp, "expert": anatomy.n_experts or 1}[place.what]
        if place.what == "neurons":
            rng = random.Random(str(place))
            sets = [tuple(sorted(rng.sample(range(n), min(n, len(place.index))))) for _ in range(8)]
            return [[replace(place, index=index) for index in dict.fromkeys(sets) if index != place.index]]
        here = [replace(place, index=(i,)) for i in range(n) if (i,) != place.index]
        return [here, [replace(place, layer=layer, index=(i,)) for layer in layers for i in range(n)]]
    elsewhere = [replace(place, layer=layer) for layer in layers]
    if place.what in STREAM and place.at.isdecimal():
        return [[replace(place, at=str(i)) for i in range(n_pos) if str(i) != place.at], elsewhere]
    return [elsewhere]
