"""Can the shape of a model tell what will grow in it? Curves along training of several shapes, and their predictors.

For every course (a list of checkpoints of one shape, or one model alone) a quantity is measured, by default the largest
entry of a stream as a multiple of its layer's median (`record_telemetry`). Of a course:

    last, largest, step of the largest; and, with six checkpoints or more, the parameters and R^2 of `fit_growth`

Each is related to the shape: layers, width, heads, width of the MLPs, parameters (as logs).

    rank correlation     Spearman; p: share of orders of the courses by lot with one as far from 0, this one counted
    ridge                the property predicted for a course that the fit has not seen (all but one fitted, each in
                         turn): R^2 against the mean of the others, beside the mean R^2 with the property in orders by
                         lot

A handful of shapes says little: an R^2 below the one by lot, or below 0, is no prediction. Source: predictors of
massive activations across Pythia's sizes (arXiv:2508.03616). Cost: per checkpoint, that of the measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .. import bundled
from ..errors import InputError
from ..execute.progress import Progress
from ..models.anatomy import read_anatomy
from ..models.identity import identify_model
from ..models.load import load_model
from ..models.sources import Checkpoints, find_checkpoints
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..statistics import spearman
from .growth import CURVES, fit_growth
from .over_training import Sources

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHAPE = ("layers", "width", "heads", "mlp", "parameters")
RIDGE = 0.1
"""Penalty, of standardised logs."""
LEAST = 4
"""Courses from which a relation can be read at all."""


@dataclass(frozen=True)
class CourseOfShape:
    """One course: its shape, what was measured after every step, and what is said about it (`properties` by name)."""

    name: str
    layers: int
    width: int
    heads: int
    mlp: int
    parameters: int
    steps: tuple[int, ...]
    values: tuple[float, ...]
    properties: dict[str, float]


@dataclass(frozen=True)
class ShapeRelation:
    """One property: its rank correlation with every part of the shape with p-values, and the held-out R^2 of a ridge on
    all of them, beside that by lot.
    """

    property: str
    spearman: dict[str, float]
    p: dict[str, float]
    r2: float
    r2_by_lot: float


@dataclass(frozen=True, eq=False)
class ShapeStudy(Result):
    """All courses and relations; parts of the shape that are the same everywhere are in no relation."""

    courses: tuple[CourseOfShape, ...]
    relations: tuple[ShapeRelation, ...]
    provenance: Provenance

    def _table(self) -> Table:
        """One row per course."""
        return [{"name": c.name, **{part: getattr(c, part) for part in SHAPE}, **c.properties} for c in self.courses]

    def relation(self, name: str) -> ShapeRelation:
        """The relation of one property."""
        found = {one.property: one for one in self.relations}
        if name not in found:
            raise InputError(f"properties that vary are {', '.join(found)}; got {name!r}")
        return found[name]

    def __str__(self) -> str:
        names = list(self.courses[0].properties)
        wide = {name: max(11, len(name) + 2) for name in (*SHAPE, *names)}
        lines = [f"{'course':<24}" + "".join(f"{name:>{wide[name]}}" for name in wide)]
        lines += [
            f"{c.name[-24:]:<24}"
            + "".join(f"{getattr(c, part):>{wide[part]}}" for part in SHAPE)
            + "".join(f"{c.properties[name]:>{wide[name]}.4g}" for name in names)
            for c in self.courses
        ]
        for one in self.relations:
            said = ", ".join(f"{part} {rho:+.2f} (p {one.p[part]:.2f})" for part, rho in one.spearman.items())
            lines.append(f"{one.property}: {said}; held-out R^2 {one.r2:.2f} (by lot {one.r2_by_lot:.2f})")
        return "\n".join(lines)

    __repr__ = __str__


def relate_to_shape(
    courses: Mapping[str, Sources],
    measure: Callable[[TransformerBridge], float],
    steps: Mapping[str, list[int]] | None = None,
    *,
    curve: str = "emergence",
    n_orders: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> ShapeStudy:
    """Measure every course, fit its curve, and relate what is found to the shapes.

    `courses`: name -> a list of checkpoints (folders, files, names; labels in `steps`), a bundled model with
    checkpoints, or one model. Curves are fitted where every course has enough checkpoints.

    Raises `InputError` for fewer than four courses, courses that are all of one shape, checkpoints of different shapes
    within one, or a measure that is not finite.

    >>> def largest(model):
    ...     found = record_telemetry(model, mw.tasks.induction(model, n=16), sparsity=False)
    ...     return max(one.ratio for one in found.largest)
    >>> print(relate_to_shape({name: [name] for name in ("gpt2-6l", "gpt2-12l", "llama-6l", "neox-6l")}, largest))
    """
    if len(courses) < LEAST:
        raise InputError(f"a relation to the shape takes {LEAST} courses or more; got {len(courses)}")
    steps = steps or {}
    chosen = {name: _course(sources, steps.get(name)) for name, sources in courses.items()}
    total = sum(len(one.sources) for one in chosen.values())
    fits = min(len(one.sources) for one in chosen.values()) > len(CURVES[curve][1])
    found, identities, done = [], [], 0
    for name, course in chosen.items():
        values, shape = [], (0, 0, 0, 0, 0)
        for source in course.sources:
            model = load_model(source)
            values.append(float(measure(model)))
            shape = _shape(model)
            identities.append(identify_model(model))
            del model
            done += 1
            if progress is not None:
                progress(done, total, f"following {name}")
        if not all(math.isfinite(value) for value in values):
            raise InputError(f"the measure of {name} is not finite: {values}; measure something that every model has")
        properties = _properties(course.steps, values, curve, fits=fits)
        found.append(CourseOfShape(name, *shape, course.steps, tuple(values), properties))
    table = torch.tensor([[float(getattr(c, part)) for part in SHAPE] for c in found], dtype=torch.float64).log1p()
    varying = [i for i in range(len(SHAPE)) if float(table[:, i].std()) > 0]
    if not varying:
        raise InputError("courses that are compared by shape differ in it; these are all of one shape")
    relations = []
    for name in found[0].properties:
        y = torch.tensor([c.properties[name] for c in found], dtype=torch.float64)
        if float(y.std()) > 0:
            relations.append(_relate(name, table[:, varying], [SHAPE[i] for i in varying], y, n_orders, seed))
    facts = build_provenance(
        method="growth by shape", curve=curve, seed=seed, n_orders=n_orders, models=identities,
        courses={name: list(course.sources) for name, course in chosen.items()},
    )  # fmt: skip
    return ShapeStudy(tuple(found), tuple(relations), facts)


def _course(sources: Sources, steps: list[int] | None) -> Checkpoints:
    alone = isinstance(sources, str | Path)
    if alone and not (str(sources) in bundled.model_names() and bundled.checkpoints(str(sources))):
        return find_checkpoints([sources], steps)
    return find_checkpoints(sources, steps)


def _shape(model: TransformerBridge) -> tuple[int, int, int, int, int]:
    anatomy = read_anatomy(model)
    mlp = 0 if anatomy.attn_only else int(getattr(model.cfg, "d_mlp", 0) or 0)
    n = sum(parameter.numel() for parameter in {id(p): p for p in model.original_model.parameters()}.values())
    return anatomy.n_layers, anatomy.d_model, anatomy.n_heads, mlp, n


def _properties(steps: tuple[int, ...], values: list[float], curve: str, *, fits: bool) -> dict[str, float]:
    best = max(range(len(values)), key=lambda i: abs(values[i]))
    found = {"last": values[-1], "largest": values[best]}
    if len(values) > 1:
        found["step of the largest"] = float(steps[best])
    if fits:
        growth = fit_growth(steps, values, curve, n_controls=5)
        found |= {**growth.parameters, "R^2 of the curve": growth.r2, "R^2 by lot": growth.control}
    return found


def _relate(
    name: str, shape: Float[Tensor, "course part"], parts: list[str], y: Float[Tensor, " course"], n: int, seed: int
) -> ShapeRelation:
    generator = torch.Generator().manual_seed(seed)
    orders = [y[torch.randperm(len(y), generator=generator)] for _ in range(n)]
    rho, p = {}, {}
    for i, part in enumerate(parts):
        rho[part] = spearman(shape[:, i], y)
        reached = sum(abs(spearman(shape[:, i], lot)) >= abs(rho[part]) - 1e-12 for lot in orders)
        p[part] = (reached + 1) / (n + 1)
    chance = [held_out_r2(shape, lot) for lot in orders]
    return ShapeRelation(name, rho, p, held_out_r2(shape, y), sum(chance) / len(chance))


def held_out_r2(x: Float[Tensor, "course part"], y: Float[Tensor, " course"]) -> float:
    """1 - sum of squares of what a ridge fitted to the other courses leaves, over that of the others' mean."""
    left, plain = 0.0, 0.0
    for i in range(len(y)):
        others = torch.arange(len(y)) != i
        middle, spread = x[others].mean(dim=0), x[others].std(dim=0).clamp(min=1e-12)
        z, mean = (x - middle) / spread, y[others].mean()
        a = z[others].T @ z[others] + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
        said = mean + z[i] @ torch.linalg.solve(a, z[others].T @ (y[others] - mean))
        left, plain = left + float((y[i] - said) ** 2), plain + float((y[i] - mean) ** 2)
    return 1 - left / max(plain, 1e-30)
