"""The model trained under interchange pressure: the shipped weights are what the card says, and the training is what it
claims.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork import bundled
from mechwork.circuits import evaluate, ground_truth, measure_edges, score_edges
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.graph.writers import record_writers, writer_kinds
from mechwork.circuits.ground_truth import equality, find_case, training
from mechwork.errors import ArtefactError
from mechwork.runs import record_run
from tests.circuits.test_edges import random_mask
from tests.circuits.test_exact_edges import edge_by_edge

CASE = find_case("equality")
TINY = replace(equality.RECIPE, steps=4, batch_size=8)


def test_the_card_is_what_the_shipped_weights_give() -> None:
    card = bundled.load_json(*equality.FOLDER, equality.CARD)
    again = equality.measure(CASE.model)
    assert again["recipe"] == card["recipe"] == equality.RECIPE.to_json()
    assert again["accuracy on all prompts"] == card["accuracy on all prompts"] == 1.0
    for name in ("smallest effect inside", "largest effect outside"):
        assert again[name] == pytest.approx(card[name], rel=1e-3)
    assert card["smallest effect inside"] > 50 * card["largest effect outside"]


def test_effects_inside_stand_far_above_those_outside_one_run_per_edge() -> None:
    space = CASE.truth().space
    cells = space.mask.nonzero().tolist()
    effects = edge_by_edge(CASE.model, CASE.task, [(space.writers[r], space.readers[c]) for r, c in cells])
    size = dict(zip((space.edge_name(r, c) for r, c in cells), effects.abs().mean(dim=0).tolist(), strict=True))
    inside = [value for edge, value in size.items() if edge in CASE.edges["corrupt"]]
    outside = [value for edge, value in size.items() if edge not in CASE.edges["corrupt"]]
    assert min(inside) > 50 * max(outside)


def test_the_circuit_alone_does_the_task_on_other_pairs() -> None:
    evaluation = evaluate(CASE.model, equality.equality_task(200, seed=1), CASE.truth())
    assert evaluation.accuracy == evaluation.model_accuracy == 1.0
    assert 0.9 < evaluation.faithfulness < 1.1
    assert max(evaluation.random) < 0.5


def test_switching_a_variable_switches_the_answer() -> None:
    """Interchange intervention: with a letter of another prompt, the answer is the program's answer to the mixture,
    either way.
    """
    found = equality.interchange_accuracy(CASE.model, seed=7)
    assert {edge for edge, _ in found} == set(CASE.edges["corrupt"]) - {"m1->logits"}
    assert {answer for _, answer in found} == {"YES", "NO"}
    assert min(found.values()) > 0.97


def test_the_forward_pass_of_training_is_the_models() -> None:
    weights = training.train(equality.PROGRAM, TINY)
    model = equality.build_from(weights, TINY)
    task = equality.equality_task(6)
    space, pairs = TINY.space, task.pairs
    mask = random_mask(space, 0.5, 0)
    other = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
    with torch.no_grad():
        writes, logits = training.run(TINY, weights, pairs.clean_tokens)
        theirs, _ = training.run(TINY, weights, pairs.corrupt_tokens)
        cut = (space.mask & ~mask).expand(len(pairs), -1, -1)
        _, mixed = training.run(TINY, weights, pairs.clean_tokens, other=theirs, cut=cut)
        torch.testing.assert_close(logits, model(pairs.clean_tokens)[:, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.stack(theirs), other, rtol=0, atol=1e-5)
        with as_circuit(model, space, mask, other):
            torch.testing.assert_close(mixed, model(pairs.clean_tokens)[:, -1], rtol=0, atol=1e-5)
    assert float((mixed - logits).abs().max()) > 1e-2
    assert len(writes) == space.n_writers


def test_training_is_a_function_of_its_recipe(tmp_path: Path) -> None:
    first, second, other = (training.train(equality.PROGRAM, r) for r in (TINY, TINY, replace(TINY, seed=1)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["tok_embed.weight"], other["tok_embed.weight"])
    equality.train_equality(tmp_path / "a", TINY)
    bundled.verify(tmp_path / "a")
    assert "seed" in (tmp_path / "a" / "card.md").read_text()


def test_switches_keep_the_variables_and_the_edges_in_step() -> None:
    switches = training._Switches(equality.PROGRAM, TINY.space)
    cut, switched, replaced = switches.draw(torch.Generator().manual_seed(0), 4000, share_alone=0.5)
    for variable, stages in enumerate(switches.stages):
        n_cut = torch.stack([cut[:, row, column] for row, column in stages]).sum(dim=0)
        assert torch.equal(n_cut == 1, switched[:, variable])
        assert int(n_cut.max()) == 1
    assert torch.equal(cut[:, *switches.output[0]], replaced)
    assert 0 < int(replaced.sum()) < 800
    outside = cut[:, switches.outside].double().mean(dim=1)
    assert float((outside == 1).double().mean()) == pytest.approx(0.5, abs=0.1)
    assert not bool(cut[:, ~TINY.space.mask].any())


def test_an_altered_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundled.root() / "ground_truth", tmp_path / "ground_truth")
    monkeypatch.setattr(bundled, "root", lambda: tmp_path)
    equality.build_equality()
    file = tmp_path.joinpath(*equality.FOLDER, equality.WEIGHTS)
    content: Any = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"model\.safetensors was altered"):
        equality.build_equality()


def test_a_ranking_can_be_right_where_sizes_are_not() -> None:
    measured = measure_edges(CASE.model, CASE.task).values
    scores = score_edges(CASE.model, CASE.task, rules="gradient", direction="noise")
    assert ground_truth.compare(scores, CASE.truth()).auroc == 1.0
    inputs = [CASE.truth().space.edge_index(edge) for edge in CASE.edges["corrupt"] if edge != "m1->logits"]
    assert all(float(measured[cell]) > 8 for cell in inputs)
    assert all(abs(float(scores.values[cell])) < 0.15 * float(measured[cell]) for cell in inputs)
    assert sum(float(scores.values[cell]) < 0 for cell in inputs) == 2


def test_it_is_small() -> None:
    assert bundled.path(*equality.FOLDER, equality.WEIGHTS).stat().st_size < 200_000
    assert measure_edges(CASE.model, CASE.task).space.n_edges == 46
