"""Keys that mean what they say, tasks as data, models by reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.errors import ArtefactError, InputError, MetricError, UnknownNameError
from mechwork.execute.operations import OPERATIONS, build_operation
from mechwork.execute.task import pack_task, unpack_task, why_not_sent
from mechwork.execute.unit import ModelRef, Work
from mechwork.execute.wire import pack, pack_error, unpack, unpack_error
from mechwork.models.load import load_model
from mechwork.patching.exact import plan_sweep
from mechwork.patching.sweep import Sweep
from mechwork.patching.units import build
from mechwork.tasks.metrics import METRICS, Metric
from mechwork.tasks.task import Task
from tests.execute.work import UNITS, WORK


def test_keys_are_stable_and_tell_units_apart() -> None:
    pinned = "904279b9812023c190261d60794f77ec602b2853803b5abbc1ba2326cb40d4bc"
    assert UNITS[0].key == pinned, "a release that changes keys orphans every ledger"
    assert len({unit.key for unit in UNITS}) == len(UNITS)
    assert WORK.unit(slice(0, 1), ["cell", 0]).key == UNITS[0].key
    moved = replace(WORK, model=replace(WORK.model, source="elsewhere", device="cuda"))
    assert moved.key == WORK.key, "where a model lies does not change what is computed"
    others = [
        replace(WORK, settings={"a": 2}),
        replace(WORK, operation="edges.batch"),
        replace(WORK, data={"task": {"x": torch.zeros(1)}}),
        replace(WORK, model=replace(WORK.model, dtype="float64")),
        replace(WORK, model=replace(WORK.model, weights_sha256="1" * 64)),
    ]
    assert len({work.key for work in (WORK, *others)}) == 6


def test_a_task_as_data_measures_the_same(bundled_model: Any) -> None:
    import mechwork as mw

    long = Task.from_tokens(
        [[7, 8, 9]], [[7, 5, 9]], [[[3, 4]]], [[[5, 6, 7]]], metric="sequence_difference", name="long"
    )  # fmt: skip
    seen = set()
    for task in (mw.tasks.ioi(bundled_model, n=4), mw.tasks.greater_than(bundled_model, n=4), long):
        whole = task.pairs.continuations is not None
        for name in (name for name, metric in METRICS.items() if (metric.takes == "whole") == whole):
            full = task.with_metric(name, bundled_model)
            facts, tensors = pack_task(full)
            again = unpack_task(facts, unpack(pack(tensors)))
            logits = bundled_model(full.pairs.corrupt_tokens)
            assert torch.equal(again.measure(logits), full.measure(logits))
            assert again.pairs.fingerprint() == full.pairs.fingerprint()
            assert list(again.pairs.spans) == list(full.pairs.spans)
            seen.add(name)
    assert seen == set(METRICS)
    assert why_not_sent([METRICS["logit_difference"]]) is None
    assert "'own' is a function of this process" in str(why_not_sent([Metric("own", lambda logits, pairs: logits)]))


@pytest.mark.parametrize("sites", [["resid_pre", "z"], ["mlp_post"]], ids=lambda sites: sites[0])
def test_a_sweep_rebuilt_from_its_data_gives_the_same_bits(tiny_gpt2: Any, tiny_task: Task, sites: list[str]) -> None:
    neurons = {0: [1, (2, 3)]} if sites == ["mlp_post"] else None
    job = plan_sweep(tiny_gpt2, tiny_task, sites, positions="each", neurons=neurons, memory_budget="1GB")
    work, wanted = job.work, job.run()
    assert Sweep.from_json(work.settings["sweep"]) == job.sweep
    seen = []
    import mechwork.patching.exact as exact

    def record(work: Work, units: Any, here: Any, **_: Any) -> Any:
        for unit in units:
            seen.append((unit, here(unit)["metric"]))
            yield unit, {"metric": seen[-1][1]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "run_units", record)
        job.run()
    there = build(tiny_gpt2, replace(work, data={name: unpack(pack(tensors)) for name, tensors in work.data.items()}))
    assert len(seen) >= 3
    for unit, values in seen:
        assert torch.equal(there(unit)["metric"], values)
    assert float(wanted[sites[0]].values.abs().max()) > 1e-3


def test_models_by_reference(tmp_path: Path) -> None:
    model = load_model("gpt2-6l")
    reference = ModelRef.of(model)
    assert reference.source == "gpt2-6l"
    assert ModelRef.of(reference.load()) == reference
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(ArtefactError, match="changed in memory"):
        ModelRef.of(model).load()
    with pytest.raises(InputError, match="made in the process that holds it"):
        replace(reference, source=None).load()


def test_operations_are_a_fixed_list(tiny_gpt2: Any) -> None:
    with pytest.raises(UnknownNameError, match="unknown operation"):
        build_operation(tiny_gpt2, replace(WORK, operation="os.system"))
    assert "patch.block" in OPERATIONS


def test_errors_keep_their_class() -> None:
    for error in (MetricError("no gap"), UnknownNameError("ablation", "x", ["zero"])):
        again = unpack_error(pack_error(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
    assert str(unpack_error(pack_error(KeyError("x")))) == "KeyError: 'x'"
