"""Known circuits: models equal their programs on every input, and every edge's truth is checked by a run of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mechwork import bundled
from mechwork.circuits import Circuit, ground_truth, measure_edges, score_edges
from mechwork.circuits.ground_truth import (
    ALL_METHODS,
    CASES,
    KnownCircuit,
    build_table,
    find_case,
    programs,
    rank_edges,
)
from mechwork.circuits.testing.evaluate import measure_circuits
from mechwork.errors import InputError, UnknownNameError
from tests.circuits.test_exact_edges import edge_by_edge
from tests.families import borrowed

BY_HAND = [name for name in CASES if name != "equality"]
STATED = [(name, ablation) for name in BY_HAND for ablation in CASES[name].edges]
README = bundled.path("ground_truth", "README.md").read_text(encoding="utf-8")
CHANGES = 1e-6
"""Share of the largest effect below which an edge does nothing; attention by hand leaves exp(-60) and the like."""


def all_edges(case: KnownCircuit) -> list[tuple[str, str]]:
    space = case.truth().space
    return [(space.writers[r], space.readers[c]) for r, c in space.mask.nonzero().tolist()]


@pytest.mark.parametrize(("name", "ablation"), STATED)
def test_the_true_edges_are_those_that_change_a_pair_one_run_per_edge(name: str, ablation: str) -> None:
    case, edges = CASES[name], all_edges(CASES[name])
    direction = case.direction if ablation == "corrupt" else "noise"
    _ = measure_edges(case.model, case.task)  # a bridge finishes setting itself up in its first forward pass
    with borrowed(case.model) as model:
        effects = edge_by_edge(model, case.task, edges, ablation=ablation, direction=direction).abs().amax(dim=0)
    scale = float(effects.max())
    assert scale > 0.1
    found = {f"{w}->{r}" for (w, r), effect in zip(edges, effects.tolist(), strict=True) if effect > CHANGES * scale}
    assert found == set(case.edges[ablation])
    assert min(effect for effect in effects.tolist() if effect > CHANGES * scale) > 1e-3 * scale  # nothing lies between


@pytest.mark.parametrize("name", ["and_gate", "or_gate"])
def test_a_gate_hides_its_inputs_from_the_other_direction(name: str) -> None:
    case, edges = CASES[name], all_edges(CASES[name])
    other = "denoise" if case.direction == "noise" else "noise"
    effects = edge_by_edge(case.model, case.task, edges, direction=other).abs().amax(dim=0)
    seen = {f"{w}->{r}" for (w, r), effect in zip(edges, effects.tolist(), strict=True) if effect > 1e-9}
    assert seen == set(case.edges["corrupt"]) - set(case.blind) == {"m0->logits"}
    comparison = ground_truth.compare(measure_edges(case.model, case.task, direction=other), case.truth())
    assert set(comparison.missed_edges) == set(case.blind)
    assert comparison.auroc < 1


def test_truth_depends_on_the_ablation() -> None:
    sizes = {name: {ablation: len(edges) for ablation, edges in CASES[name].edges.items()} for name in CASES}
    assert sizes["reverse"] == {"corrupt": 2, "zero": 10, "mean": 6}
    assert sizes["frac_prevs"] == {"corrupt": 3, "zero": 5, "mean": 5}
    assert sizes["hist"] == {"corrupt": 4, "zero": 6, "mean": 5}
    assert sizes["induction"]["corrupt"] == 3


@pytest.mark.parametrize("name", BY_HAND)
def test_the_circuit_alone_does_the_whole_task(name: str) -> None:
    """Cutting everything else leaves the metric as it is; cutting everything gives the corrupt run's."""
    case = CASES[name]
    space = case.truth().space
    masks = [space.mask, case.truth().mask, torch.zeros_like(space.mask)]
    metrics, correct, _ = measure_circuits(case.model, case.task, space, masks)
    torch.testing.assert_close(metrics[1], metrics[0], rtol=0, atol=1e-9)
    assert float(correct[1].mean()) == 1
    assert float((metrics[2] - metrics[0]).abs().min()) > 0.1


# ---- the programs, on every input up to length 6 ---------------------------------------------------------------------


def every_word() -> dict[int, list[tuple[int, ...]]]:
    letters = range(programs.FIRST, programs.FIRST + len(programs.LETTERS))
    return {n: list(itertools.product(letters, repeat=n)) for n in range(1, programs.MAX_LENGTH + 1)}


def outputs(name: str, words: list[tuple[int, ...]]) -> torch.Tensor:
    """Logits at the letters of every word."""
    with torch.no_grad():
        return CASES[name].model(torch.tensor([[programs.BOS, *word] for word in words]))[:, 1:]


@pytest.mark.parametrize(
    ("name", "program", "first_token"), [("reverse", programs.reverse, 0), ("hist", programs.hist, programs.COUNTS - 1)]
)
def test_categorical_programs_equal_python(name: str, program: Callable[..., list[int]], first_token: int) -> None:
    """The answer's logit is 1, every other one 0, at every position of all 1092 words."""
    n_words = 0
    for words in every_word().values():
        expected = torch.tensor([program(word) for word in words]) + first_token
        one_hot = torch.nn.functional.one_hot(expected, CASES[name].model.cfg.d_vocab).double()
        torch.testing.assert_close(outputs(name, words), one_hot, rtol=0, atol=1e-9)
        n_words += len(words)
    assert n_words == 1092


def test_numerical_program_equals_python() -> None:
    for words in every_word().values():
        expected = torch.tensor([programs.frac_prevs(word) for word in words]).double()
        logits = outputs("frac_prevs", words)
        torch.testing.assert_close(logits[..., programs.FRACTION], expected, rtol=0, atol=1e-7)
        assert not bool(logits[..., programs.NOTHING].any())


def test_programs_do_what_their_names_say() -> None:
    assert programs.reverse([1, 2, 3]) == [3, 2, 1]
    assert programs.frac_prevs([1, 2, 1, 3]) == [1, 1 / 2, 2 / 3, 1 / 2]
    assert programs.hist([1, 2, 1, 3]) == [2, 1, 2, 1]


def test_induction_continues_every_list() -> None:
    rows = [(a, b, c, d) for a, b, c, d in itertools.permutations(range(1, 7), 4)]
    tokens = torch.tensor([[0, a, b, c, d, r] for a, b, c, d in rows for r in (a, b, c)])
    expected = torch.tensor([following for a, b, c, d in rows for following in (b, c, d)])
    with torch.no_grad():
        logits = CASES["induction"].model(tokens)[:, -1]
    one_hot = torch.nn.functional.one_hot(expected, logits.shape[-1]).double()
    torch.testing.assert_close(logits, one_hot, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "table"), [("and_gate", [0, 0, 0, 1]), ("or_gate", [0, 1, 1, 1])])
def test_gates_have_their_truth_table(name: str, table: list[int]) -> None:
    with torch.no_grad():
        logits = CASES[name].model(torch.tensor([[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2]]))[:, -1]
    torch.testing.assert_close(logits[:, 3], torch.tensor(table).double(), rtol=0, atol=1e-9)
    assert not bool(logits[:, 4].any())


def test_the_linear_model_on_paper() -> None:
    """m = 10 a - 3 a + a + 7; clean a = 2, 3, corrupt a = -1, 1: the differences 3 and 2 times each edge's own
    product.
    """
    case = CASES["linear"]
    gains = {
        "input->a0.h0<v>": 10, "a0.h0->a1.h0<v>": 10, "a1.h0->logits": 10,
        "input->a0.h1<v>": -3, "a0.h1->logits": -3, "input->logits": 1,
    }  # fmt: skip
    expected = torch.zeros(2, *case.truth().mask.shape).double()
    for edge, gain in gains.items():
        expected[:, *case.truth().space.edge_index(edge)] = gain * torch.tensor([3.0, 2.0]).double()
    for direction in ("noise", "denoise"):
        measured = measure_edges(case.model, case.task, direction=direction).per_example
        torch.testing.assert_close(measured, expected, rtol=0, atol=1e-12)
        for rules, ig_steps in (("gradient", 1), ("relp", 1), ("gradient", 5)):
            scores = score_edges(case.model, case.task, rules=rules, ig_steps=ig_steps, direction=direction)
            torch.testing.assert_close(scores.per_example, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert case.model(torch.tensor([[0]]))[0, 0, 4].item() == pytest.approx(8 * 2 + 7)


# ---- the cases as values, and the table ------------------------------------------------------------------------------


def test_all_gives_model_task_and_circuit() -> None:
    triples = list(ground_truth.all())
    assert len(triples) == len(CASES) >= 8
    for model, task, circuit in triples:
        assert isinstance(circuit, Circuit)
        assert model.cfg.n_layers == circuit.space.n_layers
        assert len(task) >= 1
    assert len(list(ground_truth.all("zero"))) == len([c for c in CASES.values() if "zero" in c.edges])


def test_cases_are_documented() -> None:
    for case in CASES.values():
        assert case.description
        assert case.citation
        assert all(case.reasons.values())
        assert case is find_case(case.name)
    with pytest.raises(UnknownNameError, match="nearest: reverse"):
        find_case("revers")


def test_what_a_case_must_state() -> None:
    case = CASES["induction"]
    for change, message in (
        ({"edges": {"zero": ()}}, "under 'corrupt'"),
        ({"reasons": {}}, "has a reason"),
        ({"explanations": {"relpp": "typo"}}, "nearest: relp"),
    ):
        settings: dict[str, Any] = change
        with pytest.raises(InputError, match=message):
            replace(case, **settings)
    with pytest.raises(UnknownNameError, match="ablation"):
        case.truth("zeros")


def test_exact_is_perfect_and_every_failure_is_explained() -> None:
    """The table of the issue. An explanation for a method that does not fail would be as wrong as a missing one."""
    table = build_table(CASES.values())
    print(table)
    for name, row in table.auroc.items():
        assert row["exact"] == 1.0
        assert table.comparisons[name]["exact"].auprc == 1.0
        assert table.comparisons[name]["exact"].precision == 1.0
        failing = {method for method in ("gradient", "relp", "eap-ig") if row[method] < 1}
        assert failing == set(CASES[name].explanations)
        assert abs(row["random"] - 0.5) < 0.06
    assert "not explained" not in str(table)
    assert str(table) in README
    assert list(table.to_dataframe().columns) == ["case", "exact", "gradient", "relp", "eap-ig", "random"]


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_exact_is_perfect_under_other_ablations(ablation: str) -> None:
    table = build_table(CASES.values(), ablation=ablation)
    assert len(table.auroc) >= 5
    assert str(table) in README
    assert all(row["exact"] == 1.0 for row in table.auroc.values())


def test_failures_have_the_causes_that_are_given() -> None:
    """Sharp attention: the same circuits with softer attention, or more points on the path, are found."""
    hist = CASES["hist"]
    fine = score_edges(hist.model, hist.task, rules="gradient", ig_steps=100, direction="noise")
    assert ground_truth.compare(fine, hist.truth()).auroc == 1.0
    induction = CASES["induction"]
    soft = induction.build_model()
    for block in soft.blocks:
        block.attn.q.original_component.weight.data /= 10
    soft_scores = score_edges(soft, induction.task, rules="gradient", direction="noise")
    assert ground_truth.compare(soft_scores, induction.truth()).missed_edges == ()
    sharp = rank_edges(induction, "gradient")
    assert float(sharp[0].abs().max()) < 1e-12


def test_unknown_names_of_the_table() -> None:
    with pytest.raises(UnknownNameError, match="nearest: zero"):
        build_table(CASES.values(), ablation="zer")
    with pytest.raises(UnknownNameError, match="nearest: acdc"):
        build_table(CASES.values(), methods=["acd"])
    with pytest.raises(UnknownNameError, match="nearest: acdc"):
        rank_edges(CASES["induction"], "acd")


def test_every_method_has_a_column() -> None:
    """Every preset and both searches rank the edges of the case that a hand can solve; AND only from the
    noising side.
    """
    table = build_table([CASES["linear"], CASES["and_gate"]], methods=ALL_METHODS)
    assert list(table.to_dataframe().columns) == ["case", *ALL_METHODS, "random"]
    assert not {"information-flow"} & set(ground_truth.available_methods("zero"))
    perfect = {m for m, value in table.auroc["linear"].items() if value == 1.0}
    print(table)
    assert {"exact", "gradient", "relp", "eap-ig", "clean-corrupt", "acdc"} <= perfect
