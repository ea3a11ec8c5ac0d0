"""An object of any result class, made from its annotations alone: so that a new class is tested without anybody
thinking of it.
"""

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
from mechwork.ablation import AblationSpec, formation
from mechwork.ablation.cumulative import ORDERS, CumulativeAblation
from mechwork.ablation.formation import Formation, FormationRow
from mechwork.ablation.telemetry import LargeActivation, Telemetry
from mechwork.circuits import CircuitComparison, CircuitReuse, EdgeSpace, StabilityCard
from mechwork.circuits.graph.graph_file import AttributionGraph
from mechwork.circuits.ground_truth import TruthComparison, TruthTable
from mechwork.circuits.scoring.verify import Verification
from mechwork.circuits.testing.neuron_edges import NeuronEdges
from mechwork.comparison.trainings import TrainedRow, TrainingComparison
from mechwork.directions.attention_heads import AttentionRepair
from mechwork.directions.momentum import DimensionRanking
from mechwork.directions.probes import Probe
from mechwork.discovery.stored_task import StoredTask
from mechwork.edits import LowRankChange, WeightEdit
from mechwork.encoding import hints_of
from mechwork.features import FeatureEvaluation, FeatureScores
from mechwork.features.reasoning import Implication, Proposition, Reasoner
from mechwork.features.suppress import SuppressionStudy
from mechwork.interventions import Curve
from mechwork.lenses.evaluate import COLUMNS, LensEvaluation
from mechwork.lenses.heads import HeadCircuits
from mechwork.patching import Effects
from mechwork.patching.screen import ScreenedEffects
from mechwork.patching.steered import SteeringIllusion
from mechwork.relevance import Conservation
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


def _numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64) + 0.1


def _lens_evaluation() -> LensEvaluation:
    sums = {name: _numbers(3, 2) for name in COLUMNS}
    return make(LensEvaluation, sums=sums, n=4 * _numbers(3), n_next=3 * _numbers(3))


def _telemetry() -> Telemetry:
    largest = tuple(LargeActivation(layer, 0, 1, 2, 3.0, 4.0) for layer in range(2))
    return make(Telemetry, largest=largest)


def _formation() -> Formation:
    named = dict.fromkeys((*formation.CONDITIONS, formation.BACK), 0.5)
    row = make(FormationRow, clamped=named, clamped_induction=named)
    return make(Formation, rows=(row, row))


def _truth() -> TruthTable:
    one = make(TruthComparison)
    return make(
        TruthTable, comparisons={"x0": {"exact": one}}, auroc={"x0": {"exact": 1.0}}, hidden={"x0": ("noise", one)}
    )


def _reuse() -> CircuitReuse:
    comparison = make(CircuitComparison)
    pairs = {(a, b): synthetic.evaluation() for a in comparison.circuits for b in comparison.circuits}
    return CircuitReuse(comparison, pairs)


def _card() -> StabilityCard:
    circuit = synthetic.circuit()
    chosen = {name: _numbers(2, circuit.space.n_edges) for name in ("inclusion", "null_inclusion")}
    return make(StabilityCard, circuit=circuit, **chosen)


def _feature_evaluation() -> FeatureEvaluation:
    return make(FeatureEvaluation, **{name: _numbers(3, 2) for name in ("spliced", "random_spliced", "flat")})


def _cumulative() -> CumulativeAblation:
    curves = {name: _numbers(2, 2) for name in ORDERS}
    return make(CumulativeAblation, curves=curves, accuracy={name: _numbers(2) for name in ORDERS})


def _suppression() -> SuppressionStudy:
    names = ("concept", "concept_accuracy", "other_class", "other_class_accuracy", "other_tasks")
    return make(SuppressionStudy, plain=dict.fromkeys(names, 0.5))


def _trainings() -> TrainingComparison:
    names, seeds, steps = ("as it is", "changed"), (0, 1), (0, 2)
    rows = [make(TrainedRow, variant=name, seed=seed, step=step) for name in names for seed in seeds for step in steps]
    return make(
        TrainingComparison, variants=names, seeds=seeds, steps=steps, rows=tuple(rows),
        tokens={name: i * 8.0 for i, name in enumerate(names)},
    )  # fmt: skip


SPECIAL: dict[str, Any] = {
    "EdgeSpace": lambda: SPACE,
    "PromptPairs": lambda: synthetic.task().pairs,
    "StoredTask": lambda: StoredTask.of(synthetic.task()),
    "Site": lambda: Site("z", 1, 0),
    "Conservation": lambda: make(Conservation, provenance={"rules": {"name": "relp"}}),
    "SteeringIllusion": lambda: make(
        SteeringIllusion, added={"whole": 1.0, "row part": 0.9, "null part": 0.1, "random 0": 0.2}
    ),
    "Curve": lambda: make(Curve, knots=torch.tensor([1.0, 2.0]), basis=torch.eye(2), period=None),
    "WeightEdit": lambda: make(WeightEdit, changes={"W_out.0": make(LowRankChange)}),
    "AblationSpec": lambda: AblationSpec(["a1.h0", "resid_pre.1@x"], directions={"x": torch.ones(4)}),
    "Circuit": synthetic.circuit,
    "NeuronEdges": lambda: make(
        NeuronEdges, per_example=torch.arange(48.0).view(3, 4, 4) - 20, units=("m0.n3@a", "m1.n5@b"), cells=("a", "b"),
        places=torch.tensor([[0, 0, 3], [1, 1, 5]]),
    ),
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
    "Verification": lambda: make(Verification, n_top=2),
    "LensEvaluation": _lens_evaluation,
    "Telemetry": _telemetry,
    "Formation": _formation,
    "TruthTable": _truth,
    "CircuitReuse": _reuse,
    "StabilityCard": _card,
    "FeatureEvaluation": _feature_evaluation,
    "CumulativeAblation": _cumulative,
    "SuppressionStudy": _suppression,
    "Probe": lambda: make(
        Probe, kind="linear", parts={"w": torch.tensor([0.5, -0.25]), "b": torch.tensor(0.125)},
        mean=torch.tensor([0.5, 1.0]), spread=torch.tensor([1.0, 2.0]),
    ),
    "HeadCircuits": lambda: make(HeadCircuits, d_vocab=10),
    "TrainingComparison": _trainings,
    "AttentionRepair": lambda: make(
        AttentionRepair, heads=("a0.h1", "a1.h0"), accuracies={
            way: i / 8 for i, way in enumerate(
                ("plain", "repaired", "a0.h1 alone", "a1.h0 alone", "other heads", "other keys")
            )
        },
    ),
    "DimensionRanking": lambda: make(DimensionRanking, widths=(1, 1)),
    "Reasoner": lambda: make(
        Reasoner, propositions=(make(Proposition, name="she"), make(Proposition, name="plural")),
        rules=(Implication("not she", "other"),),
    ),
    "FeatureScores": lambda: make(FeatureScores, varies=torch.tensor([True, True])),
}  # fmt: skip
"""Classes whose fields depend on each other by more than the sizes of axes."""


def make(cls: type, **given: Any) -> Any:
    """An object of a class: `given` fields, the rest from the annotations."""
    if not given and cls.__name__ in SPECIAL:
        return SPECIAL[cls.__name__]()
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
    shape = [
        2 if axis[0] in ".*" else int(axis) if axis.isdigit() else SIZES.get(axis, 2) for axis in hint.dim_str.split()
    ]
    draw = torch.Generator().manual_seed(seed)
    if "bool" in hint.dtypes:
        return torch.rand(shape, generator=draw) > 0.5
    if "float32" in hint.dtypes:
        return torch.rand(shape, generator=draw) + 0.1
    return torch.randint(0, 2, shape, generator=draw)


def same(one: Any, two: Any) -> bool:
    """Equality to the bit, through dataclasses and containers; JSON's lists and tuples are alike."""
    if isinstance(one, Tensor):
        return (
            isinstance(two, Tensor)
            and one.dtype == two.dtype
            and one.shape == two.shape
            and bool(
                torch.equal(one.nan_to_num(7), two.nan_to_num(7)) if one.is_floating_point() else torch.equal(one, two)
            )
        )
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(two) and all(
            same(getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one)
        )
    if isinstance(one, Mapping):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two or (one != one and two != two)
