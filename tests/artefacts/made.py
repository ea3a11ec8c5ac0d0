"""An object of any result class, made from its annotations alone: so that a new class is tested without anybody thinking of it."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

import mechwork
from mechwork.ablation import AblationSpec
from mechwork.circuits import Circuit, EdgeScores, EdgeSpace
from mechwork.circuits.graph.graph_file import AttributionGraph
from mechwork.encoding import hints_of
from mechwork.patching import Effects
from mechwork.patching.screen import ScreenedEffects
from mechwork.result import _CLASSES, Result
from mechwork.sites import Site
from tests.render import synthetic

SPACE = EdgeSpace(2, 2, 1)
SIZES = {"writer": SPACE.n_writers, "reader": SPACE.n_readers}
Seed = list[int]


@cache
def result_classes() -> dict[str, type[Result]]:
    """Every result class of the package by the name its files have."""
    for module in pkgutil.walk_packages(mechwork.__path__, "mechwork."):
        if "_data" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return {what: cls for what, cls in _CLASSES.items() if cls.__module__.startswith("mechwork.")}


def _graph() -> AttributionGraph:
    from mechwork.circuits.graph.graph_file import graph_of

    return graph_of(synthetic.circuit(), synthetic.task())


def _screened() -> ScreenedEffects:
    one = synthetic.effects()
    masks = {kind: torch.arange(e.values.numel()).view_as(e.values) % 3 for kind, e in one.items()}
    return ScreenedEffects(one, one, {k: m == 0 for k, m in masks.items()}, {k: m == 1 for k, m in masks.items()})


def _effects() -> Effects:
    one = synthetic.effects()
    other = {kind: dataclasses.replace(effect, metric_name="other") for kind, effect in one.items()}
    return Effects(one.by_kind, {"other": Effects(other)})


def _evaluation(cls: Any) -> Any:
    from mechwork.lenses.evaluate import COLUMNS

    draw = torch.Generator().manual_seed(0)
    sums = {name: torch.rand(3, 2, generator=draw) for name in COLUMNS}
    return make(cls, sums=sums, n=torch.full((3,), 4.0), n_next=torch.full((3,), 3.0), places=("resid_pre.0", "resid_pre.1"))


SPECIAL: dict[str, Any] = {
    "EdgeSpace": lambda: SPACE,
    "Site": lambda: Site("z", 1, 0),
    "AblationSpec": lambda: AblationSpec(["a1.h0", "direction.x@resid_pre.1"], directions={"x": torch.ones(4)}),
    "Circuit": synthetic.circuit,
    "EdgeScores": synthetic.scores,
    "Effects": _effects,
    "Effect": lambda: synthetic.effects()["resid_pre"],
    "ScreenedEffects": _screened,
    "AttributionGraph": _graph,
    "FaithfulnessCurve": synthetic.curve,
    "CircuitEvaluation": synthetic.evaluation,
    "LensTable": synthetic.lens_table,
    "PositionScores": lambda: synthetic.by_position()[0],
    "TrajectoryComparison": synthetic.trajectories,
    "Trajectory": lambda: synthetic.trajectories().first,
    "LogitAttribution": synthetic.shares,
    "ComponentStudy": synthetic.components,
    "HeadStudy": synthetic.study,
}  # fmt: skip
"""Classes whose fields depend on each other by more than the sizes of axes."""


def make(cls: type, **given: Any) -> Any:
    """An object of a class: `given` fields, the rest from the annotations."""
    if not given and cls.__name__ in SPECIAL:
        return SPECIAL[cls.__name__]()
    if not given and cls.__name__ == "LensEvaluation":
        return _evaluation(cls)
    seed, hints = [0], hints_of(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init]
    return cls(**{f.name: given[f.name] if f.name in given else value_of(hints[f.name], f.name, seed) for f in fields})


def value_of(hint: Any, name: str, seed: Seed) -> Any:
    """Some value of an annotated type; texts and numbers all differ."""
    seed[0] += 1
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {"n": seed[0]}
    if origin is Literal:
        return args[0]
    if origin in (Union, types.UnionType):
        return value_of(next(one for one in args if one is not type(None)), name, seed)
    if origin is tuple:
        return tuple(value_of(one, name, seed) for one in ((args[0],) * 2 if args[-1] is Ellipsis else args))
    if origin is list:
        return [value_of(args[0], name, seed) for _ in range(2)]
    if origin in (dict, Mapping):
        return {_key(args[0], i): value_of(args[1], name, seed) for i in range(2)}
    if dataclasses.is_dataclass(hint):
        return make(hint)  # pyright: ignore[reportArgumentType]
    if hasattr(hint, "dim_str"):
        return tensor_of(hint, seed[0])
    return {str: f"{name} {seed[0]}", bool: True, int: seed[0] % 2, float: seed[0] / 8, Tensor: torch.ones(2)}[hint]


def _key(hint: Any, i: int) -> Any:
    return i if hint is int else f"x{i}" if hint is str else tuple(f"x{i}" for _ in get_args(hint))


def tensor_of(hint: Any, seed: int) -> Tensor:
    """Numbers of the annotated dtype and shape; every named axis has one size everywhere."""
    shape = [2 if axis[0] in ".*" else int(axis) if axis.isdigit() else SIZES.get(axis, 2) for axis in hint.dim_str.split()]
    draw = torch.Generator().manual_seed(seed)
    if "bool" in hint.dtypes:
        return torch.rand(shape, generator=draw) > 0.5
    if "float32" in hint.dtypes:
        return torch.rand(shape, generator=draw) + 0.1
    return torch.randint(0, 2, shape, generator=draw)


def same(one: Any, two: Any) -> bool:
    """Equality to the bit, through dataclasses and containers; JSON's lists and tuples are alike."""
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.dtype == two.dtype and one.shape == two.shape and bool(torch.equal(one.nan_to_num(7), two.nan_to_num(7)) if one.is_floating_point() else torch.equal(one, two))
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(two) and all(same(getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, Mapping):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two or (one != one and two != two)


