"""Sweeps and sets through the fast paths against one plain ablated forward per target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.ablation import AblationSpec, ablate, fit_ablation, run_sets, sweep_ablations
from mechwork.ablation.sweep import targets_of, top_neurons
from mechwork.errors import ArtefactError, InputError
from mechwork.models.anatomy import read_anatomy
from tests.families import borrowed, build_native, build_task, crossed, rounding

KINDS = ("zero", "mean", "mean_by_position", "resample", "corrupt", "noise")


@pytest.mark.parametrize(("family", "kind"), crossed(KINDS, ("mean", "corrupt")))
def test_a_sweep_is_one_ablation_per_target(family_model64: Any, kind: str) -> None:
    task = build_task(n=9)
    with borrowed(family_model64) as model:
        effects = sweep_ablations(model, task, ["heads", "mlps", "attention"], kind=kind)
        whole = AblationSpec(targets_of(read_anatomy(model), ["heads", "mlps"]), kind)
        for text, found in (("a1.h2", effects["z"].per_example[:, 1, 2]), ("m2", effects["mlp_out"].per_example[:, 2])):
            one = ablate(model, task, whole.only(text)).per_example
            torch.testing.assert_close(found, one, rtol=0, atol=10 * rounding(model))
            assert float(one.abs().max()) > 1e-4
    assert effects["attn_out"].axes == ("layer",)


def test_neurons_are_those_of_largest_estimate(tiny_gpt2_64: Any) -> None:
    task = build_task(n=9)
    effects = sweep_ablations(tiny_gpt2_64, task, ["neurons"], n_neurons=6)
    ranked = top_neurons(tiny_gpt2_64, task, AblationSpec(["m0.n0", "m1.n0", "m2.n0"]), 6)
    assert set(effects["mlp_post"].labels["neuron"]) == {f"m{layer}.n{n}" for layer, n in ranked}
    layer, neuron = ranked[0]
    found = effects["mlp_post"].per_example[:, effects["mlp_post"].labels["neuron"].index(f"m{layer}.n{neuron}")]
    one = ablate(tiny_gpt2_64, task, AblationSpec([f"m{layer}.n{neuron}"])).per_example
    torch.testing.assert_close(found, one, rtol=0, atol=1e-9)


def test_optimal_constants_are_learned_for_each_target_alone(tiny_gpt2_64: Any) -> None:
    task = build_task(n=8)
    effects = sweep_ablations(tiny_gpt2_64, task, ["mlps"], kind="optimal")
    alone = ablate(tiny_gpt2_64, task, AblationSpec(["m1"], "optimal"))
    torch.testing.assert_close(effects["mlp_out"].per_example[:, 1], alone.per_example, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("family", "kind"), crossed([*KINDS, "mean_by_span"], ("mean", "corrupt")))
def test_sets_equal_whole_forwards(family_model64: Any, kind: str) -> None:
    task = build_task(n=9, spans=[{"A": [3, 4]}] * 9)
    model = family_model64
    targets = ("a0.h0", "a1.h2", "a2.h3", "m0", "m2", "a1")
    spec = AblationSpec(["a0.h0", "a1.h2", "a2.h3", "m0", "m2"], kind)
    sets = [(), ("a1.h2",), ("a0.h0", "a2.h3", "m2"), ("m0", "a1.h2"), ("m2",)]
    with borrowed(model):
        found = run_sets(
            model, task, fit_ablation(model, spec, task if kind not in ("zero", "corrupt") else None), sets
        )
        assert not found.effects[0].any()
        for row, one in enumerate(sets):
            if one:
                result = ablate(model, task, spec.only(*one))
                torch.testing.assert_close(found.effects[row], result.per_example, rtol=0, atol=10 * rounding(model))
                assert torch.equal(found.correct[row], result.ablated_correct)
    assert float(found.effects.abs().max()) > 1e-3
    with pytest.raises(InputError, match="fitted"):
        run_sets(model, task, fit_ablation(model, replace(spec, kind="zero", targets=("m0",))), [targets[:1]])
    with pytest.raises(InputError, match="overlap"):
        run_sets(model, task, fit_ablation(model, AblationSpec(["a1", "a0.h0"], "zero")), [("a1", "a1.h2")])


def test_what_cannot_be_swept(tiny_gpt2_64: Any) -> None:
    task = build_task(n=8)
    for what, message in ((["head"], "nearest: heads"), ([], "list of"), ("heads", "list of")):
        with pytest.raises(InputError, match=message):
            sweep_ablations(tiny_gpt2_64, task, what)
    with pytest.raises(InputError, match="no mlps"):
        sweep_ablations(build_native("attention only"), task, ["mlps"])


def test_a_sweep_goes_on_from_its_checkpoint_and_refuses_another(tiny_gpt2_64: Any, tmp_path: Path) -> None:
    task = build_task(n=8)
    first = sweep_ablations(tiny_gpt2_64, task, ["heads"], checkpoint=tmp_path / "sweep")
    again = sweep_ablations(tiny_gpt2_64, task, ["heads"], checkpoint=tmp_path / "sweep")
    assert torch.equal(first["z"].per_example, again["z"].per_example)
    assert first["z"].provenance["ablation"]["z"]["reference"]["sha256"] == task.pairs.fingerprint()
    with pytest.raises(ArtefactError):
        sweep_ablations(tiny_gpt2_64, task, ["heads"], kind="zero", checkpoint=tmp_path / "sweep")
