"""Whole answers, teacher-forced: metrics, patching, estimates, edges, circuits and ablations against the definition
(one prompt, one answer, one forward at a time), in float64, on every architecture family.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import AblationSpec, ablate, sweep_ablations
from mechwork.circuits import Circuit, evaluate, score_edges, score_positions
from mechwork.circuits.scoring.exact_edges import measure_edges
from mechwork.circuits.testing.evaluate import measure_circuits
from mechwork.discovery.stored_task import StoredTask
from mechwork.errors import InputError
from mechwork.execute.task import pack_task, unpack_task
from mechwork.lenses import attribute_logits, read_lens
from mechwork.patching import attribute, patch, patch_paths
from mechwork.patching.sweep import Tricks
from mechwork.sites import SITE_KINDS
from mechwork.tasks.answers import ANSWER
from mechwork.tasks.metrics import METRICS
from mechwork.tasks.task import Task
from tests.circuits.test_edges import random_mask, tolerance
from tests.families import D_VOCAB, padded, rounding
from tests.reference import literal
from tests.reference.sequences import FORMS, Question, sum_over_answers, value

N = 7
"""Tokens of a prompt."""

QUESTIONS = tuple(
    Question(clean, corrupt, correct, incorrect)
    for clean, corrupt, correct, incorrect in (
        ([3, 14, 15, 92, 65, 35, 8], [3, 14, 16, 92, 65, 35, 8], [[1, 2, 3]], [[1, 9]]),
        ([27, 18, 28, 18, 28, 45, 9], [27, 81, 28, 19, 28, 45, 9], [[4, 5], [4, 6]], [[8]]),
        ([16, 18, 3, 39, 88, 74, 9], [16, 18, 3, 39, 88, 47, 9], [[7]], [[6, 7], [9]]),
    )
)
"""A shared first token; two accepted answers and a single-token rival; a single-token answer and two rivals."""


def build(metric: str = "sequence_difference", questions: tuple[Question, ...] = QUESTIONS) -> Task:
    columns = zip(*((q.clean, q.corrupt, q.correct, q.incorrect) for q in questions), strict=True)
    return Task.from_tokens(*map(list, columns), metric=metric)


def literal_values(model: Any, name: str, *, denoise: bool) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([value(q, name, lambda host, donor: model(host), denoise=denoise) for q in QUESTIONS])


@pytest.mark.parametrize("name", FORMS)
def test_metrics_are_products_of_next_token_probabilities(tiny_gpt2_64: Any, name: str) -> None:
    task = build(name)
    assert len(task) == 6
    assert task.pairs.n_per_question == 2
    for denoise, tokens in ((False, task.pairs.clean_tokens), (True, task.pairs.corrupt_tokens)):
        with torch.no_grad():
            found = task.pairs.per_question(task.measure(tiny_gpt2_64(tokens)))
        torch.testing.assert_close(found, literal_values(tiny_gpt2_64, name, denoise=denoise))
    right = task.accuracy(tiny_gpt2_64)
    assert right == expected_accuracy(tiny_gpt2_64)


def expected_accuracy(model: Any) -> float:
    hits = 0
    for q in QUESTIONS:
        best = []
        for answers in (q.correct, q.incorrect):
            one = [Question(q.clean, q.corrupt, [answer], []) for answer in answers]
            with torch.no_grad():
                best.append(
                    max(float(value(x, "sequence_probability", lambda h, d: model(h), denoise=False)) for x in one)
                )
        hits += best[0] > best[1]
    return hits / len(QUESTIONS)


def literal_cell(
    model: Any, q: Question, name: str, kind: str, layer: int, cell: dict[str, Any], *, denoise: bool
) -> Any:
    def run(host: torch.Tensor, donor: torch.Tensor) -> torch.Tensor:
        cache = literal.cached(model, donor)[literal.hook(kind, layer)]
        place: dict[str, Any] = cell
        if "pos" in cell:
            place = {"pos": list(range(*slice(*cell["pos"]).indices(host.shape[1])))}
        return literal.patch_cell(model, host, cache, kind, layer, lambda x: x, **place)

    return value(q, name, run, denoise=denoise)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_equals_one_forward_per_answer_and_cell(family_model64: Any, direction: str) -> None:
    model, denoise, name = family_model64, direction == "denoise", "sequence_difference"
    task, places = build(name), {"start": (0, N - 1), "END": (N - 1, N), ANSWER: (N, None)}
    kinds = ["resid_pre", "mlp_out", "z"]
    effects = patch(model, task, kinds, direction=direction)
    base = literal_values(model, name, denoise=denoise)
    for kind in kinds:
        effect = effects[kind]
        heads = SITE_KINDS[kind].per_head
        cells = [{"head": 1}, {"head": 3}] if heads else [{"pos": places[p]} for p in effect.labels["pos"]]
        assert float(effect.values.abs().max()) > 1e-3
        for layer in (0, 2):
            for i, cell in enumerate(cells):
                at = cell["head"] if heads else i
                new = torch.stack([literal_cell(model, q, name, kind, layer, cell, denoise=denoise) for q in QUESTIONS])
                change = new - base if denoise else base - new
                torch.testing.assert_close(
                    effect.per_example[:, layer, at], change, rtol=0, atol=padded(model, 10 * rounding(model))
                )


def test_tricks_give_the_same_numbers(tiny_gpt2_64: Any) -> None:
    task = build("sequence_probability_difference")
    kinds = ["resid_pre", "resid_post", "mlp_out", "attn_out", "q", "k", "v", "z"]
    fast = patch(tiny_gpt2_64, task, kinds)
    slow = patch(tiny_gpt2_64, task, kinds, tricks=Tricks(suffix=False, readout=False, unchanged=False))
    for kind in kinds:
        torch.testing.assert_close(fast[kind].per_example, slow[kind].per_example)


def test_estimates_equal_the_literal_gradient(family_model64: Any) -> None:
    model, name = family_model64, "sequence_difference_per_token"
    effect = attribute(model, build(name), ["resid_pre"], rules="gradient", positions="all")["resid_pre"]
    for layer in (0, 2):
        key = literal.hook("resid_pre", layer)

        def score(host: Any, donor: Any, metric: Any, key: str = key, layer: int = layer) -> torch.Tensor:
            change = literal.cached(model, donor)[key] - literal.cached(model, host)[key]
            return (change * literal.gradient_at(model, host, "resid_pre", layer, metric)).sum()

        expected = torch.stack([sum_over_answers(q, name, score, denoise=True) for q in QUESTIONS])
        found = effect.per_example[:, layer].flatten()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=padded(model, 10 * tolerance(model)))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_edge_scores_and_circuits_equal_the_literal_graph(family_model64: Any, direction: str) -> None:
    model, name, denoise = family_model64, "sequence_difference", direction == "denoise"
    task, graph = build(name), literal.LiteralGraph(model)
    scores = score_edges(model, task, rules="gradient", direction=direction, batch_size=3)
    space = scores.space
    expected = torch.cat([
        sum_over_answers(
            q, name, lambda h, d, m: graph.edge_scores(h, d, m, space.readers, space.writers), denoise=denoise
        )
        for q in QUESTIONS
    ])  # fmt: skip
    expected = expected * space.mask * (1 if denoise else -1)
    scale = float(expected.abs().max())
    assert scale > 1e-2
    found = scores.require_pairs()
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= padded(model, tolerance(model)) * max(scale, 1)
    if not denoise:
        mask = random_mask(space, 0.6, 0)
        kept = {(space.writers[i], space.readers[j]) for i, j in mask.nonzero().tolist()}

        def run(host: torch.Tensor, donor: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return graph.run(host, graph.writes_of(donor), lambda w, r: (w, r) in kept)

        live = torch.stack([value(q, name, run, denoise=False) for q in QUESTIONS])
        found = measure_circuits(model, task, space, [mask]).metric[0]
        torch.testing.assert_close(found, live, rtol=1e-4, atol=padded(model, 10 * tolerance(model)))


def test_other_measurements_are_per_question(tiny_gpt2_64: Any) -> None:
    model, task = tiny_gpt2_64, build()
    edges = measure_edges(model, task)
    assert edges.per_example.shape[0] == 3
    q = QUESTIONS[1]
    graph = literal.LiteralGraph(model)
    for edge in (("input", "a1.h2<v>"), ("a0.h1", "m1"), ("m1", "logits")):

        def run(host: torch.Tensor, donor: torch.Tensor, edge: tuple[str, str] = edge) -> torch.Tensor:
            with torch.no_grad():
                return graph.run(host, graph.writes_of(donor), lambda w, r: (w, r) != edge)

        expected = literal_values(model, task.metric.name, denoise=False)[1] - value(
            q, task.metric.name, run, denoise=False
        )
        index = edges.space.edge_index("->".join(edge))
        torch.testing.assert_close(edges.per_example[1][index], expected)
    paths = patch_paths(model, task, ["a0.h1", "m0"], ["a2.h1<q>", "logits"])["path"]
    assert paths.per_example.shape == (3, 2, 2)
    direct = measure_edges(model, task, direction="denoise").per_example
    index = edges.space.edge_index("m0->logits")
    torch.testing.assert_close(paths.per_example[:, 1, 1], direct[:, index[0], index[1]])
    one = ablate(model, task, AblationSpec(["a1.h2"], "zero"))
    swept = sweep_ablations(model, task, what=["heads"], kind="zero")["z"].per_example[:, 1, 2]
    torch.testing.assert_close(one.per_example, swept)

    def without(host: torch.Tensor, donor: torch.Tensor) -> torch.Tensor:
        cache = literal.cached(model, host)[literal.hook("z", 1)]
        return literal.patch_cell(model, host, torch.zeros_like(cache), "z", 1, lambda x: x, head=2)

    base = literal_values(model, task.metric.name, denoise=False)
    gone = torch.stack([value(q, task.metric.name, without, denoise=False) for q in QUESTIONS])
    torch.testing.assert_close(one.per_example, base - gone)
    spans = score_positions(model, task, positions="spans", rules="gradient")
    torch.testing.assert_close(
        spans.summed().double(), score_edges(model, task, rules="gradient").values, rtol=1e-5, atol=1e-5
    )


def test_a_circuit_is_judged_by_questions(tiny_gpt2_64: Any) -> None:
    task = build()
    space = score_edges(tiny_gpt2_64, task, rules="gradient").space
    found = evaluate(tiny_gpt2_64, task, Circuit(space, space.mask), n_random=0, batch_size=3)
    assert found.per_example.shape == (3,)
    assert found.faithfulness == 1
    assert found.accuracy == found.model_accuracy == expected_accuracy(tiny_gpt2_64)


def test_slices_take_whole_questions_and_a_packed_task_measures_the_same(tiny_gpt2_64: Any, tmp_path: Any) -> None:
    task = build()
    assert [len(task[:n]) for n in (1, 2, 3, 5, 6)] == [2, 2, 2, 4, 6]
    assert len(task[3:5]) == 2
    facts, tensors = pack_task(task)
    again = unpack_task(facts, tensors)
    stored = StoredTask.load(StoredTask.of(task).save(tmp_path / "task")).task()
    assert stored.pairs.fingerprint() == task.pairs.fingerprint()
    assert stored.pairs.n_per_question == 2
    assert again.pairs.fingerprint() == task.pairs.fingerprint() != build(questions=QUESTIONS[::-1]).pairs.fingerprint()
    with torch.no_grad():
        logits = tiny_gpt2_64(task.pairs.clean_tokens)
    assert torch.equal(task.measure(logits), again.measure(logits))
    with pytest.raises(InputError, match="whole questions"):
        task[[0, 3]].accuracy(tiny_gpt2_64)


def test_the_first_difference_follows_what_answers_share() -> None:
    q = QUESTIONS[0]
    task = build("first_difference", (q,))
    assert task.pairs.clean_tokens.tolist() == [[*q.clean, 1]]
    assert (task.pairs.correct.tolist(), task.pairs.incorrect.tolist()) == ([[2]], [[9]])
    assert list(task.pairs.spans) == ["start", "END"] or ANSWER in task.pairs.spans
    logits = torch.randn(1, N + 1, D_VOCAB)
    assert float(task.measure(logits)) == float(logits[0, -1, 2] - logits[0, -1, 9])


@pytest.mark.parametrize(
    ("metric", "correct", "incorrect", "message"),
    [
        ("first_token", [[1, 2]], [[1, 3]], "share it. Use metric='first_difference'"),
        ("first_difference", [[1]], [[1, 3]], "none is the beginning"),
        ("first_difference", [[1, 2], [3, 4]], [[1, 5]], "differ in one place"),
        ("sequence_difference", [[1, 2]], [[1, 2]], "one in both"),
        ("sequence_difference", [[1, 2], [1, 2]], [[3]], "one twice"),
        ("sequence_difference", [[]], [[3]], "at least one token"),
        ("sequence_difference", [1, 2], [[3]], r"\[pair\]\[answer\]\[token id\]"),
    ],
)
def test_wrong_answers(metric: str, correct: Any, incorrect: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Task.from_tokens([[1, 2, 3]], [[1, 4, 3]], [correct], [incorrect], metric=metric)


def test_metrics_and_pairs_must_fit(tiny_gpt2_64: Any) -> None:
    with pytest.raises(InputError, match="carry whole answers"):
        build().with_metric("logit_difference")
    with pytest.raises(InputError, match="carry one token per answer"):
        build("first_difference", QUESTIONS[:1]).with_metric("sequence_difference")
    other = build().with_metric("sequence_probability")
    assert other.metric is METRICS["sequence_probability"]


def test_what_reads_one_difference_of_logits_refuses_whole_answers(tiny_gpt2_64: Any) -> None:
    with pytest.raises(InputError, match="metric='first_difference'"):
        attribute_logits(tiny_gpt2_64, build())
    with pytest.raises(InputError, match="the same number of tokens, or named spans"):
        Task.from_tokens([[1, 2, 3]], [[1, 2, 2, 3]], [[[5, 6]]], [[[7]]], metric="sequence_difference")
    table = read_lens(tiny_gpt2_64, build())
    assert table.targets[0, N - 1] == QUESTIONS[0].correct[0][0]  # at each token of an answer the next one
