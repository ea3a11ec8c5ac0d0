"""The trained mixture: the shipped weights are what the card says, experts do what the truth says, training repeats."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork import bundled
from mechwork.ablation import contrast_experts, record_routers, sweep_experts
from mechwork.circuits import ground_truth, measure_edges
from mechwork.circuits.ground_truth import CASES, MIXTURES, compare, find_case, lookup, rank_edges
from mechwork.errors import ArtefactError, InputError
from mechwork.patching import attribute, patch

CASE = find_case("lookup")
TINY = replace(lookup.RECIPE, steps=3, batch_size=8)


def test_the_card_is_what_the_shipped_weights_give() -> None:
    card, again = bundled.load_json(*lookup.FOLDER, lookup.CARD), lookup.measure(CASE.model)
    assert again["recipe"] == card["recipe"] == lookup.RECIPE.to_json()
    assert again.keys() == card.keys()
    for name, value in card.items():
        if isinstance(value, float):
            assert again[name] == pytest.approx(value, rel=1e-2)
    assert card["accuracy on all prompts"] == card["worst accuracy of a rule without another"] == 1.0
    assert card["best accuracy of a rule without its expert"] <= 0.25
    assert card["smallest effect inside"] > 100 * card["largest effect outside"]
    assert bundled.path(*lookup.FOLDER, lookup.WEIGHTS).stat().st_size < 100_000


def test_the_truth_is_found_and_has_experts_as_nodes() -> None:
    truth = CASE.truth()
    assert truth.n_edges == len(CASE.reasons) == 8
    assert "m0.e3" in truth.nodes
    found = measure_edges(CASE.model, CASE.task, split_experts=True)
    assert compare(found, truth).auroc == 1.0
    assert compare(rank_edges(CASE, "relp"), truth).auroc == 1.0
    with pytest.raises(InputError, match="experts as nodes"):
        rank_edges(CASE, "acdc")
    assert set(MIXTURES) == {"lookup"}
    assert not set(MIXTURES) & set(CASES)
    assert len(list(ground_truth.all())) == len(CASES)


def test_every_token_that_answers_goes_to_its_rules_expert_and_needs_it() -> None:
    """Experts one by one, against the module with the expert's output weights at zero; the choice by patching."""
    model, task = CASE.model, CASE.task
    rule = task.pairs.clean_tokens[:, 0]
    chosen = record_routers(model, task.pairs.clean_tokens).chosen[0, :, -1]
    assert torch.equal(chosen.int().argmax(dim=-1), rule)
    assert bool((chosen.sum(dim=-1) == 1).all())
    found = sweep_experts(model, task).per_example[:, 0]
    own = torch.nn.functional.one_hot(rule, lookup.N_RULES).bool()
    assert float(found[own].min()) > 5
    assert float(found[~own].abs().max()) < 1e-4
    down: Any = model.blocks[0].mlp.original_component.experts.down_proj
    kept = down.detach().clone()
    with torch.no_grad():
        plain = task.metric(model(task.pairs.clean_tokens), task.pairs)
        down[2] = 0
        without = task.metric(model(task.pairs.clean_tokens), task.pairs)
        down.copy_(kept)
    torch.testing.assert_close(found[:, 2], plain - without, rtol=0, atol=1e-4)
    two = task[(rule == 2).nonzero().flatten().tolist()]
    contrast = contrast_experts(model, two, n=1, n_random=3)
    suppressed, promoted = contrast.changes
    assert suppressed.experts == ("m0.e2",)
    assert suppressed.effect < -5
    assert max(abs(lot) for lot in suppressed.by_lot) < 1e-4
    assert abs(promoted.effect) < 1e-4
    assert min(promoted.by_lot) < -5


def test_the_choice_is_seen_by_patching_and_not_by_a_gradient() -> None:
    model, task = CASE.model, CASE.task
    measured = patch(model, task, ["router_logits"], direction="noise")["router_logits"]
    estimated = attribute(model, task, ["router_logits"], rules="gradient", direction="noise")["router_logits"]
    assert float(measured.values[0, 3]) > 5
    assert float(measured.values[0, :3].abs().max()) < 1e-4
    assert float(estimated.values.abs().max()) < 1e-2


def test_the_parts_of_training_are_the_models() -> None:
    """With sources that are the prompt itself the switched run is the plain one; another rule's source changes it."""
    module = lookup.build_module(TINY)
    parts = lookup._Parts(module, 4)
    same = torch.tensor([[1, 5, 6, lookup.END]]).expand(16, -1)
    other = same.clone()
    other[4:8, 0] = 2
    with torch.no_grad():
        plain, switched, router, again = parts.run(same, TINY.d_head)
        torch.testing.assert_close(plain, module(same[:4]).logits[:, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(switched, plain, rtol=0, atol=1e-5)
        torch.testing.assert_close(again, router, rtol=0, atol=1e-5)
        assert router.shape == (4, lookup.N_RULES)
        kept, moved, _, rerouted = parts.run(other, TINY.d_head)
        torch.testing.assert_close(kept, plain, rtol=0, atol=1e-5)
        assert float((moved - plain).abs().max()) > 1e-3
        assert float((rerouted - router).abs().max()) > 1e-3


def test_training_is_a_function_of_its_recipe(tmp_path: Path) -> None:
    first, second, other = (lookup.train(recipe) for recipe in (TINY, TINY, replace(TINY, seed=1)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    lookup.train_lookup(tmp_path / "a", TINY)
    bundled.verify(tmp_path / "a")
    assert "lookup --retrain" in (tmp_path / "a" / "card.md").read_text()


def test_an_altered_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundled.root() / "ground_truth", tmp_path / "ground_truth")
    monkeypatch.setattr(bundled, "root", lambda: tmp_path)
    file = tmp_path.joinpath(*lookup.FOLDER, lookup.WEIGHTS)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"model\.safetensors was altered"):
        lookup.build_lookup()
