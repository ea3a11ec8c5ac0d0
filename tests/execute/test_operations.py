"""Every operation gives the bits of the serial run, whoever runs its units and in whatever order they come back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation import study_heads
from mechwork.ablation.sweep import sweep_ablations
from mechwork.circuits.scoring.exact_edges import measure_edges
from mechwork.circuits.scoring.nodes import score_nodes
from mechwork.circuits.testing.leaderboard import run_leaderboard
from mechwork.execute import executor
from mechwork.execute.executors import Execution, _current
from mechwork.execute.operations import OPERATIONS
from mechwork.features import FeatureRecipe, evaluate_features, train_features
from mechwork.lenses import LensRecipe, evaluate_lens, train_lens
from mechwork.patching.subspace import Across, SubspaceAsFar, SubspaceExchange, measure_share
from mechwork.runs.room import d_mlp_of
from mechwork.tasks.task import Task
from tests.execute.work import Elsewhere, find_numbers
from tests.gate import fewer

FILE = os.environ.get("MECHWORK_REAL_MODEL", "")

Operation = Callable[[Any, Task], Any]


def curve(model: Any, task: Task, **more: Any) -> Any:
    scores = mw.score_edges(model, task, preset="relp")
    settings = {"fractions": (0.02, 0.1, 0.5, 1.0), "n_random": 1, "n_same_degree": 1, "across_tasks": True, **more}
    return mw.evaluate(model, task, scores, **settings)


def one_length() -> Task:
    """Random pairs of ten tokens: every prompt may stand in for every other."""
    clean = torch.randint(1, 500, (8, 10), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 4] = clean[:, 4] % 499 + 1
    return Task.from_tokens(clean, corrupt, list(range(1, 9)), list(range(11, 19)))


def lens(model: Any) -> list[Any]:
    """A tuned lens from text, and what it says on other rows."""
    recipe = LensRecipe(steps=3, step_tokens=200, ridge_tokens=200, held_out_rows=4)
    trained = train_lens(model, "gpt2-6l", recipe)
    measured = [evaluate_lens(model, one, "gpt2-6l", n_rows=100) for one in (trained.lens,)]
    return [trained.lens.parts, *(one.sums for one in measured)]


def features(model: Any) -> list[Any]:
    """Coders from text, and how much of the model they carry on other rows."""
    recipe = FeatureRecipe(n_features=24, k=4, steps=3, step_tokens=200, scale_tokens=200, held_out_rows=4)
    places = [mw.Site("resid_post", 1), mw.Site("mlp_out", 3)]
    trained = train_features(model, "gpt2-6l", places, recipe)
    measured = evaluate_features(model, trained.features, "gpt2-6l", n_rows=90)
    return [[coder.tensors() for coder in trained.features], measured]


def plane(model: Any, seed: int = 1) -> mw.patching.Subspace:
    """Two directions among the neurons of an MLP."""
    width = d_mlp_of(model)
    return mw.patching.Subspace.of(torch.randn(width, 2, generator=torch.Generator().manual_seed(seed)))


def shares(model: Any) -> list[Any]:
    """What can be put in along a subspace."""
    found = plane(model)
    return [SubspaceExchange(found), Across(found), SubspaceAsFar(found, plane(model, 2))]


def budget(model: Any) -> str:
    """Several units on a small model; more than one pair's least on a large one."""
    return "20MB" if model.cfg.n_layers < 20 else "100MB"


CALLS: dict[str, Operation] = {
    "patch": lambda model, task: mw.patch(
        model,
        task,
        ["z", "mlp_out"] if model.cfg.n_layers < 20 else ["z"],
        positions="all",
        memory_budget=budget(model),
    ),
    "screened patch": lambda model, task: mw.patch(model, task, ["z"], screen="relp", verify_top=0.2).measured,
    "attribute": lambda model, task: mw.attribute(model, task, ["resid_pre", "z"], ig_steps=2, memory_budget="5MB"),
    "attribute, AtP*": lambda model, task: mw.attribute(model, task, ["q", "mlp_out"], rules="atp_star"),
    "ablations": lambda model, task: sweep_ablations(model, task, ["heads"], kind="zero", memory_budget=budget(model)),
    "study": lambda model, task: study_heads(model, task, ["a0.h1", "a2.h0", "a4.h3"]),
    "edges": lambda model, task: mw.score_edges(model, task, batch_size=2),
    "nodes": lambda model, task: score_nodes(model, task, rules="gradient", memory_budget="5MB"),
    "exact edges": lambda model, task: measure_edges(model, task[:2]).to_dataframe()["effect"].tolist(),
    "curve": lambda model, task: curve(model, task, batch_size=3),
    "curve, mean": lambda model, task: curve(model, task, ablation="mean"),
    "positions": lambda model, task: mw.circuits.score_positions(
        model, task[:2], positions="spans", preset="eap", memory_budget="2MB", intervals=False
    ),
    "attention edges": lambda model, task: mw.circuits.score_attention_edges(
        model, task[:2], positions="spans", batch_size=1
    ),
    "neurons": lambda model, task: mw.circuits.score_neurons(model, task[:4], ig_steps=2, batch_size=2),
    "paths": lambda model, task: mw.patching.patch_paths(
        model, task, ["a0.h1", "m1", "input"], ["a2.h1<q>", "m3", "logits"], memory_budget=budget(model)
    ),
    "subspace": lambda model, task: [
        measure_share(model, task[:4], mw.Site("mlp_post", 2), share, plane(model), "denoise", "spans")
        for share in shares(model)
    ],
    "lens": lambda model, task: lens(model),
    "features": lambda model, task: features(model),
    "curve, resample": lambda model, task: curve(model, one_length(), ablation="resample", batch_size=4),
}
"""One call per operation and way of giving it its data. Each has several units."""

USED = {
    "patch": "patch.block", "screened patch": "attribute.batch", "attribute": "attribute.batch",
    "attribute, AtP*": "attribute.batch", "ablations": "ablate.block", "study": "study.block",
    "edges": "edges.batch", "nodes": "edges.batch", "positions": "edges.batch", "attention edges": "edges.attention",
    "neurons": "neurons.batch", "paths": "paths.block", "subspace": "patch.share", "exact edges": "edges.exact",
    "lens": "lens.rows", "features": "features.batch", "curve": "circuits.measure",
    "curve, mean": "circuits.measure", "curve, resample": "circuits.measure",
}  # fmt: skip


@cache
def small() -> tuple[Any, Task]:
    """A model with a name, and pairs, that the tests of this file share; none of them changes either."""
    model = mw.load_model("gpt2-6l")
    return model, mw.tasks.ioi(model, n=8, seed=1)


@cache
def twelve_layers() -> Any:
    return mw.load_model("gpt2-12l")


@cache
def real_model() -> Any:
    return mw.load_model(FILE)


def elsewhere(model: Any, task: Task, name: str, seed: int) -> dict[str, torch.Tensor]:
    runner = Elsewhere(model, seed)
    token = _current.set(Execution(runner))
    try:
        found = find_numbers(CALLS[name](model, task))
    finally:
        _current.reset(token)
    assert USED[name] in runner.seen
    if name in ("lens", "features"):
        assert "text.states" in runner.seen
    return found


def check_equal(found: dict[str, torch.Tensor], serial: dict[str, torch.Tensor]) -> None:
    assert found.keys() == serial.keys()
    assert len(serial) > 1
    for place, values in serial.items():
        assert torch.equal(found[place].nan_to_num(7e7), values.nan_to_num(7e7)), place
    assert max(float(values.abs().nan_to_num().max()) for values in serial.values() if values.numel()) > 1e-3


@pytest.mark.parametrize("name", fewer(list(CALLS), list(CALLS)[::2]))
def test_the_bits_of_the_serial_run(name: str) -> None:
    model, task = small()
    serial = find_numbers(CALLS[name](model, task))
    for seed in fewer((0, 1), (0,)):
        check_equal(elsewhere(model, task, name, seed), serial)
    with executor("forked", workers=2):
        check_equal(find_numbers(CALLS[name](model, task)), serial)


def compare(model: Any, task: Task, names: Iterable[str]) -> None:
    for name in names:
        call = CALLS[name]
        serial = find_numbers(call(model, task))
        check_equal(elsewhere(model, task, name, 2), serial)
        for n_workers in fewer((1, 3), (3,)):
            with executor("forked", workers=n_workers):
                check_equal(find_numbers(call(model, task)), serial)


@pytest.mark.slow
@pytest.mark.parametrize("name", fewer(["patch", "edges", "curve"], ["patch"]))
def test_twelve_layers(name: str) -> None:
    model = twelve_layers()
    compare(model, mw.tasks.ioi(model, n=8, seed=1), [name])


@pytest.mark.slow
@pytest.mark.skipif(not Path(FILE).is_file(), reason="MECHWORK_REAL_MODEL names no GGUF file")
@pytest.mark.parametrize("name", fewer(["edges", "curve"], ["edges"]))
def test_a_real_model(name: str) -> None:
    model = real_model()
    compare(model, mw.tasks.ioi(model, n=2, seed=1), [name])


def test_a_leaderboard() -> None:
    model, task = small()

    def run() -> dict[str, torch.Tensor]:
        return find_numbers(run_leaderboard(model, task, presets=["eap", "relp"], n_random=1))

    serial = run()
    with executor("forked", workers=2):
        check_equal(run(), serial)


def test_every_operation_is_tried() -> None:
    assert {*USED.values(), "text.states"} == set(OPERATIONS)
