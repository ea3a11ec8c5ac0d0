"""Every public result keeps itself: what is saved is what is loaded, to the bit; the table has rows, the text
is short.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.circuits import Circuit, EdgeScores
from mechwork.display import still
from mechwork.encoding import hints_of
from mechwork.errors import ArtefactError, InputError
from mechwork.patching import Effects
from mechwork.result import Result, load_result
from notebooks.course.site import PACKAGES, public_names
from tests.artefacts.made import make, result_classes, same
from tests.render import synthetic

FOLDERS = ("Discovery",)
"""Not one file but a folder of results: `mw.load_discovery` reads it, and tests/discovery test it."""

OWN_FILES = ("Circuit", "AttributionGraph")
"""Kept in JSON that other tools read: numbers to nine digits, volatile provenance left out."""


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {what: make(cls) for what, cls in result_classes().items()}


@pytest.mark.parametrize("what", result_classes())
def test_every_result_is_saved_loaded_tabled_and_said(what: str, made: dict[str, Any], tmp_path: Path) -> None:
    result = made[what]
    name = type(result).__name__
    path = result.save(tmp_path / ("it.json" if name in OWN_FILES else "it"))
    again = type(result).load(path)
    if name in OWN_FILES:
        assert again.save(tmp_path / "again.json").read_bytes() == path.read_bytes()
        assert type(result).__name__ == "AttributionGraph" or torch.equal(again.mask, result.mask)
    else:
        assert [
            f.name for f in dataclasses.fields(result) if not same(getattr(result, f.name), getattr(again, f.name))
        ] == []
        assert again.save(tmp_path / "again").read_bytes() == path.read_bytes()
        assert same(load_result(path), result)
    frame = result.to_dataframe()
    assert len(frame) >= 1
    assert len(frame.columns) >= 1
    if result._strongest:
        assert frame[result._strongest].abs().is_monotonic_decreasing
    for text in (repr(result), str(result)):
        assert 0 < len(text.splitlines()) <= 60
        assert "tensor(" not in text
    assert still(result).startswith("<")


def test_no_public_class_with_a_table_or_a_picture_escapes_the_mechanism() -> None:
    by_hand = []
    for package in PACKAGES:
        module = __import__(f"mechwork.{package}", fromlist=["x"])
        for name in public_names(package):
            value = getattr(module, name)
            shows = isinstance(value, type) and any(hasattr(value, one) for one in ("to_dataframe", "show"))
            if shows and not issubclass(value, Result) and name not in FOLDERS:
                by_hand.append(name)
    assert by_hand == []
    assert len(result_classes()) > 70
    overridden = {cls.__name__ for cls in result_classes().values() if {"to_dataframe"} & vars(cls).keys()}
    assert overridden == set()


NO_RESULTS = {
    "Ablated": "a recording of one run, ablated",
    "Ablation": "acts on a model; has a file of its own",
    "AttenuateByPosterior": "acts on a model; save_writes keeps it",
    "Clamp": "acts on a model: the values of one run, as large as the run",
    "Coded": "a recording of one run",
    "Columns": "acts on a model, while prompts grow",
    "Composite": "rules: a setting, kept as JSON in every provenance",
    "Controller": "acts on a model; save_writes keeps it",
    "Direction": "acts on a model; has a file of its own",
    "DirectionLikeness": "a row",
    "Discovery": "a folder of results",
    "Examples": "data",
    "FeatureSet": "a folder of its own, which ships",
    "FeatureTraining": "a run of training; its checkpoint is kept",
    "Fragment": "markup",
    "FutureLens": "a lens that holds its model",
    "HeadGain": "a row",
    "KnownCircuit": "a case: how to build a model and a task",
    "LensLikeness": "a row",
    "LensTraining": "a run of training; its checkpoint is kept",
    "LowRankChange": "a part of a WeightEdit, which has a file of its own",
    "ModelAnatomy": "a description of a model, in every provenance",
    "Prompts": "data",
    "RepeatedTokens": "data",
    "RouterRun": "a recording of one run",
    "Run": "a recording of one run",
    "Separation": "a row",
    "StaticFigure": "a drawing",
    "Subspace": "acts on a model; a basis, kept in what is measured with it",
    "Target": "a place in words",
    "Task": "data",
    "TextStream": "data",
    "TunedLens": "a folder of its own, which ships",
    "WeighedHead": "a row",
    "Weight": "a place in a model",
    "Write": "acts on a model; save_writes keeps it",
}
"""What public functions return that is no result, and why."""


def test_what_a_public_function_finds_is_a_result_or_has_a_reason() -> None:
    """A walk of the annotations: frozen dataclasses that a public function returns, alone or in a list."""
    returned: dict[str, str] = {}
    for package in PACKAGES:
        module = importlib.import_module(f"mechwork.{package}")
        for name in public_names(package):
            function = inspect.unwrap(getattr(module, name))
            if not inspect.isfunction(function):
                continue
            for word in re.findall(r"[A-Z]\w+", str(function.__annotations__.get("return", ""))):
                cls: Any = getattr(inspect.getmodule(function), word, None)
                own = inspect.isclass(cls) and dataclasses.is_dataclass(cls) and cls.__module__.startswith("mechwork")
                if own and not issubclass(cls, Result):
                    returned[cls.__name__] = name
    assert len(returned) > 20
    assert {name: where for name, where in returned.items() if name not in NO_RESULTS} == {}
    assert set(NO_RESULTS) - set(returned) == set()


def test_texts_name_the_strongest_places_first() -> None:
    scores = synthetic.scores()
    lines = repr(scores).splitlines()
    assert lines[0].startswith("EdgeScores: ")
    assert scores.top(1)[0][0] in lines[1]
    assert len(lines) == 9
    effects = synthetic.effects()
    assert effects.top(1)[0][0] in repr(effects).splitlines()[1]


def test_a_new_class_needs_only_its_fields(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Row:
        place: str
        gain: float
        interval: tuple[float, float]

    @dataclasses.dataclass(frozen=True)
    class Gains(Result, what="gains in a test", strongest="gain"):
        rows: tuple[Row, ...]

    hints_of.cache_clear()
    Gains.__annotations__["rows"] = tuple[Row, ...]  # local classes are not in the module's names
    one = Gains((Row("a", 0.1, (0.0, 1.0)), Row("b", -2.0, (-3.0, float("nan")))))
    assert list(one.to_dataframe().columns) == ["place", "gain", "low", "high"]
    assert list(one.to_dataframe()["place"]) == ["b", "a"]
    assert same(Gains.load(one.save(tmp_path / "gains")), one)
    with pytest.raises(InputError, match="both saved as"):
        type("Other", (Result,), {}, what="gains in a test")


def test_what_cannot_be_saved_is_said_before_anything_is_written(tmp_path: Path) -> None:
    scores = synthetic.scores()
    broken = dataclasses.replace(scores, provenance={"f": object()})
    with pytest.raises(InputError, match="provenance/f holds a object"):
        broken.save(tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    baseline = synthetic.baseline()
    effects = Effects({k: dataclasses.replace(e, baseline=baseline) for k, e in synthetic.effects().items()})
    size = effects.save(tmp_path / "e").stat().st_size
    numbers = sum(e.per_example.numel() for e in effects.values()) * 4
    assert size < numbers + 40_000
    again = Effects.load(tmp_path / "e.safetensors")
    assert len({id(e.baseline.clean_per_example) for e in again.values()}) == 1


def test_old_files_are_read(tmp_path: Path) -> None:
    """Files as release 0.1 wrote them: four kinds of header."""
    from safetensors.torch import save_file

    scores, effects, table = synthetic.scores(), synthetic.effects(), synthetic.lens_table()
    facts = ("direction", "rules", "ig_steps", "metric_name", "provenance", "path", "ablation", "templates")
    header = {
        "format": "2", "what": "edge scores", "space": json.dumps(scores.space.to_dict()),
        "facts": json.dumps({name: getattr(scores, name) for name in facts}),
    }  # fmt: skip
    base = {
        "baseline.clean": scores.baseline.clean_per_example.clone(),
        "baseline.corrupt": scores.baseline.corrupt_per_example.clone(),
    }
    save_file({**base, "per_example": scores.require_pairs()}, tmp_path / "s.safetensors", metadata=header)
    assert same(EdgeScores.load(tmp_path / "s.safetensors"), scores)

    name = effects.metrics[0]
    tensors = {f"{name}.{kind}.per_example": e.per_example.clone() for kind, e in effects.items()}
    tensors |= {f"{name}.{key}": value.clone() for key, value in base.items()}
    tensors |= {
        f"{name}.baseline.clean": effects.baseline.clean_per_example.clone(),
        f"{name}.baseline.corrupt": effects.baseline.corrupt_per_example.clone(),
    }
    kept = ("axes", "labels", "direction", "estimated", "metric_name", "provenance")
    old = {name: {kind: {key: getattr(e, key) for key in kept} for kind, e in effects.items()}}
    content = {"format": 2, "what": "effects", "effects": old}
    save_file(tensors, tmp_path / "e.safetensors", metadata={"mechwork": json.dumps(content)})
    assert same(Effects.load(tmp_path / "e.safetensors"), effects)

    parts = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
    tensors = {key: value.contiguous().clone() for key, value in parts.items() if isinstance(value, torch.Tensor)}
    rest = {key: value for key, value in parts.items() if key not in tensors}
    save_file(
        tensors,
        tmp_path / "t.safetensors",
        metadata={"mechwork": json.dumps({"format": 1, "what": "lens table", **rest})},
    )
    assert same(type(table).load(tmp_path / "t.safetensors"), table)


def test_another_class_does_not_load_it(tmp_path: Path) -> None:
    path = synthetic.scores().save(tmp_path / "s")
    with pytest.raises(ArtefactError, match="must be a file of kind 'effects'; it is 'edge scores'"):
        Effects.load(path)
    assert isinstance(load_result(path), EdgeScores)
    with pytest.raises(ArtefactError, match="damaged"):
        load_result(Circuit.save(synthetic.circuit(), tmp_path / "c.json"))
