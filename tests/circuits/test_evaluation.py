"""Ablations, controls, completeness, minimality and comparisons, against literal runs and small cases done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import Circuit, EdgeSpace, compare_circuits, evaluate, score_edges
from mechwork.circuits.graph.ablated import find_ablation, learn_constants, mean_writes
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.graph.writers import record_writers, writer_kinds
from mechwork.circuits.testing.completeness import (
    learn_knockout,
    measure_completeness,
    measure_minimality,
    without_node,
)
from mechwork.circuits.testing.evaluate import EvaluationSettings, measure_circuits
from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.models.anatomy import read_anatomy
from mechwork.runs import record_run
from mechwork.tasks.task import Task
from tests.circuits.test_edges import random_mask, tolerance
from tests.families import borrowed, build_model, build_task, crossed
from tests.reference.literal import LiteralGraph


def space_of(model: Any) -> EdgeSpace:
    return EdgeSpace.of(read_anatomy(model))


@pytest.mark.parametrize(
    ("family", "ablation"), crossed(["zero", "mean", "mean_by_position", "resample"], ("mean", "resample"))
)
def test_ablations_equal_the_literal_graph(family_model64: Any, ablation: str) -> None:
    model, task = family_model64, build_task(n=8)
    space, literal, pairs = space_of(model), LiteralGraph(model), task.pairs
    mask = random_mask(space, 0.5, 4)
    clean = literal.writes_of(pairs.clean_tokens)
    if ablation == "resample":
        from mechwork.interventions import other_prompts

        order = other_prompts(task, 0)
        assert not bool((order == torch.arange(8)).any())
        assert sorted(order.tolist()) == list(range(8))
        other = {name: write[order] for name, write in clean.items()}
    else:
        dims = (0, 1) if ablation == "mean" else (0,)
        other = {
            name: torch.zeros_like(w) if ablation == "zero" else w.mean(dim=dims, keepdim=True).expand_as(w)
            for name, w in clean.items()
        }

    def keep(writer: str, reader: str) -> bool:
        return bool(mask[space.writers.index(writer), space.readers.index(reader)])

    with torch.no_grad():
        expected = task.metric(literal.run(pairs.clean_tokens, other, keep), pairs)
    found = measure_circuits(model, task, space, [mask], EvaluationSettings(ablation, batch_size=3)).metric[0]
    scale = float(expected.abs().max())
    assert scale > 1e-2
    assert float((found - expected).abs().max()) <= tolerance(model) * max(1, scale)


def test_gradients_through_a_circuit_run(family_model64: Any, tiny_task: Task) -> None:
    """d metric / d mask by autograd equals a finite difference, and soft masks of zeros and ones are hard ones."""
    model, pairs = family_model64, tiny_task.pairs
    space = space_of(model)
    mask = random_mask(space, 0.6, 5)
    ablated = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))

    def metric(soft: torch.Tensor, *, grad: bool) -> torch.Tensor:
        with as_circuit(model, space, soft, ablated, grad=grad):
            return tiny_task.metric(model(pairs.clean_tokens), pairs).sum()

    with borrowed(model):
        soft = mask.double().requires_grad_(True)
        value = metric(soft, grad=True)
        (gradient,) = torch.autograd.grad(value, soft)
        with torch.no_grad():
            hard = metric(mask, grad=False)
            assert abs(float(value - hard)) <= tolerance(model)
            assert abs(float(metric(mask.double(), grad=False) - hard)) <= tolerance(model)
            direction = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            direction = direction * space.mask
            up, down = (metric(mask + sign * 1e-4 * direction, grad=False) for sign in (1, -1))
    slope = float((gradient * direction).sum())
    assert abs(slope) > 1e-3
    if model.cfg.architecture == "OPTForCausalLM":
        return  # a finite difference steps over the kinks of its relu
    assert slope == pytest.approx(float(up - down) / 2e-4, rel=2e-3 if tolerance(model) < 1e-6 else 3e-2, abs=1e-3)


def test_learned_constants_hurt_less_than_means(tiny_gpt2: Any) -> None:
    task = build_task(n=16)
    space = space_of(tiny_gpt2)
    with borrowed(tiny_gpt2):
        learned = learn_constants(tiny_gpt2, task, space)
    assert learned.shape == (space.n_writers, 1, 1, 32)
    assert torch.isfinite(learned).all()
    masks = [random_mask(space, share, 10 + i) for i, share in enumerate((0.3, 0.5, 0.7, 0.9))]
    kl = {}
    for name, constant in (("mean", mean_writes(tiny_gpt2, task, space, by_position=False)), ("optimal", learned)):
        kl[name] = 0.0
        with torch.no_grad():
            reference = task.pairs.final(tiny_gpt2(task.pairs.clean_tokens)).log_softmax(dim=-1)
            for mask in masks:
                with as_circuit(tiny_gpt2, space, mask, constant):
                    found = task.pairs.final(tiny_gpt2(task.pairs.clean_tokens)).log_softmax(dim=-1)
                kl[name] += float((reference.exp() * (reference - found)).sum(dim=-1).mean())
    assert kl["optimal"] < 0.9 * kl["mean"]


def test_random_controls_stand_at_the_sizes_where_they_were_run(tiny_gpt2: Any) -> None:
    task = build_task(n=8)
    scores = score_edges(tiny_gpt2, task, rules="gradient")
    everywhere = evaluate(tiny_gpt2, task, scores, n_random=2, random_every=1)
    some = evaluate(tiny_gpt2, task, scores, n_random=2)
    assert some.random_at == (0, 3, 6, 9)
    assert [i for i, value in enumerate(some.random.tolist()) if value == value] == [0, 3, 6, 9]
    at = list(some.random_at)
    torch.testing.assert_close(some.random[at], everywhere.random[at])
    x = torch.tensor(some.fractions, dtype=torch.float64)[at]
    assert some.random_cpr == pytest.approx(float(torch.trapezoid(everywhere.random[at], x)))
    torch.testing.assert_close(some.faithfulness, everywhere.faithfulness)
    assert "nan" not in str(some)
    with pytest.raises(InputError, match="random_every"):
        evaluate(tiny_gpt2, task, scores, random_every=0)


def test_every_number_of_an_evaluation(tiny_gpt2: Any) -> None:
    task = build_task(n=8)
    scores = score_edges(tiny_gpt2, task, rules="gradient")
    curve = evaluate(tiny_gpt2, task, scores, n_random=2, n_same_degree=2)
    assert curve.kl is not None
    assert curve.accuracy is not None
    assert float(curve.kl[-1]) == pytest.approx(0, abs=1e-6)
    assert float(curve.kl[0]) > 1e-3
    assert curve.same_degree is not None
    assert curve.same_degree.shape == curve.random.shape
    low, high = curve.cpr_interval()
    assert low <= curve.cpr <= high
    low, high = curve.cmd_interval()
    assert low < high
    x = torch.tensor(curve.fractions).log10().double()
    assert curve.cmd_log == pytest.approx(float(torch.trapezoid((1 - curve.faithfulness).abs(), x)) / 3)
    greedy = evaluate(tiny_gpt2, task, scores, n_random=1, selection="greedy", batch_size=3)
    assert float(greedy.faithfulness[-1]) == pytest.approx(1.0, abs=1e-6)
    assert all(a >= b for a, b in zip(greedy.n_kept, curve.n_kept, strict=True))
    one = evaluate(tiny_gpt2, task, scores.circuit(60), n_same_degree=2)
    assert one.kl is not None
    assert one.empty_kl is not None
    assert one.empty_kl > 0
    assert len(one.same_degree) == 2
    assert "of its degrees" in repr(one)
    assert "nan" in str(evaluate(tiny_gpt2, task, scores, n_random=0))
    frame = curve.to_dataframe()
    assert {"kl", "accuracy", "faithfulness_same_degree"} <= set(frame.columns)


def test_bad_requests(tiny_gpt2: Any, tiny_task: Task) -> None:
    from dataclasses import replace

    scores = score_edges(tiny_gpt2, tiny_task, rules="gradient")
    with pytest.raises(UnknownNameError, match="resample"):
        evaluate(tiny_gpt2, tiny_task, scores, ablation="resampled")
    with pytest.raises(InputError, match="at least 8 prompts"):
        evaluate(tiny_gpt2, tiny_task, scores, ablation="mean")
    with pytest.raises(InputError, match="across_tasks"):
        evaluate(tiny_gpt2, replace(tiny_task, name="other"), scores)
    assert evaluate(tiny_gpt2, replace(tiny_task, name="other"), scores, across_tasks=True, n_random=1).cpr
    with pytest.raises(InputError, match="greedy"):
        evaluate(tiny_gpt2, tiny_task, scores, selection="best")
    with pytest.raises(InputError, match="at least two prompts of every length"):
        find_ablation(tiny_gpt2, tiny_task[:1], scores.space, "resample")
    still = replace(tiny_task, pairs=replace(tiny_task.pairs, correct=tiny_task.pairs.correct))
    constant = still.with_metric(lambda logits, pairs: pairs.final(logits)[:, 0] * 0 + 1)
    with pytest.raises(MetricError, match="same metric"):
        score_edges(tiny_gpt2, constant, rules="gradient")


def test_completeness_of_the_whole_graph_and_of_half_of_it(tiny_gpt2: Any) -> None:
    """The whole graph reacts to any knock-out as the model does; half of it does not."""
    task = build_task(n=8)
    space = space_of(tiny_gpt2)
    with borrowed(tiny_gpt2):
        whole = measure_completeness(tiny_gpt2, task, Circuit(space, space.mask), n_knockouts=2, n_steps=2)
    assert max(*whole.random, whole.learned) <= 1e-6
    assert whole.faithfulness == pytest.approx(1)
    assert whole.complement == pytest.approx(0, abs=1e-6)
    half = measure_completeness(tiny_gpt2, task, Circuit(space, random_mask(space, 0.5, 1)), n_knockouts=4, n_steps=15)
    assert half.learned > 0.05
    assert half.learned >= max(half.random) * 0.5
    assert 0 < len(half.knocked_out) < half.circuit.n_edges
    assert "complement" in repr(half)


def test_minimality_finds_a_node_that_does_nothing(tiny_gpt2: Any) -> None:
    task = build_task(n=8)
    space = space_of(tiny_gpt2)
    mask = torch.zeros_like(space.mask)
    for edge in ("input->a0.h0<v>", "a0.h0->m1", "m1->logits", "input->logits", "a0.h0->a1.h0<q>", "a1.h0->a2.h1<q>"):
        mask[space.edge_index(edge)] = True
    found = measure_minimality(tiny_gpt2, task, Circuit(space, mask))
    assert {"a1.h0", "a2.h1"} <= set(found.superfluous(1e-6))
    assert "m1" not in found.superfluous(1e-3)
    assert found.scores == tuple(sorted(found.scores))
    gone = without_node(space, mask, "a0.h0")
    assert {space.edge_name(i, j) for i, j in gone.nonzero().tolist()} == {
        "m1->logits", "input->logits", "a1.h0->a2.h1<q>",
    }  # fmt: skip


def test_a_screen_measures_the_weakest_nodes_and_some_others_as_without_it(tiny_gpt2: Any) -> None:
    task = build_task(n=4)
    scores = score_edges(tiny_gpt2, task, preset="eap")
    circuit = scores.circuit(60)
    whole = measure_minimality(tiny_gpt2, task, circuit, n_knockouts=0)
    found = measure_minimality(tiny_gpt2, task, circuit, n_knockouts=0, screen=8)
    known = dict(zip(whole.nodes, whole.scores, strict=True))
    assert len(whole.nodes) > 8 == len(found.nodes)
    assert dict(zip(found.nodes, found.scores, strict=True)) == pytest.approx({n: known[n] for n in found.nodes})
    assert circuit.scores is not None
    sizes = (circuit.scores * circuit.mask).abs().sum(dim=1).tolist()
    strength = {node: sizes[circuit.space.writers.index(node)] for node in known}
    weakest = sorted(known, key=lambda node: strength[node])[:6]
    assert len(weakest) == 6
    assert set(weakest) <= set(found.nodes)
    assert f"of {len(whole.nodes)})" in repr(found)
    assert measure_minimality(tiny_gpt2, task, circuit, n_knockouts=0, screen=99).scores == whole.scores
    with pytest.raises(InputError, match="circuit with scores"):
        measure_minimality(tiny_gpt2, task, Circuit(circuit.space, circuit.mask), screen=8)


def test_learned_knockouts_stay_inside_the_circuit(tiny_gpt2: Any, tiny_task: Task) -> None:
    space = space_of(tiny_gpt2)
    circuit = Circuit(space, random_mask(space, 0.4, 2))
    cut = learn_knockout(tiny_gpt2, tiny_task, circuit, n_steps=3)
    assert not bool((cut & ~circuit.mask).any())


def test_comparison_by_hand() -> None:
    space = EdgeSpace(n_layers=2, n_heads=2, n_kv_heads=2)
    a = Circuit.from_edges(space, ["input->m0", "m0->m1", "m1->logits"])
    b = Circuit.from_edges(space, ["input->m0", "m0->logits"])
    (found,) = compare_circuits({"a": a, "b": b}).overlaps
    assert found.edges == pytest.approx(1 / 4)
    assert found.nodes == pytest.approx(1 / 2)
    assert found.shared_nodes == ("m0",)
    assert found.nodes_by_chance == pytest.approx((2 / 6) / (3 - 2 / 6))
    n = space.n_edges
    assert found.edges_by_chance == pytest.approx((6 / n) / (5 - 6 / n))
    with pytest.raises(InputError, match="two"):
        compare_circuits({"a": a})


def test_a_model_behaves_as_the_circuit_and_then_as_itself(family_model64: Any) -> None:
    """For any prompt with constant ablations; for the task's own prompts with the corrupt one."""
    model, task = family_model64, build_task(n=8)
    space = space_of(model)
    circuit = Circuit(space, random_mask(space, 0.7, 6))
    mean = mean_writes(model, task, space, by_position=False)
    other = build_task(n=2, n_pos=6, seed=5).pairs.clean_tokens
    with borrowed(model), torch.no_grad():
        plain = model(other)
        with as_circuit(model, space, circuit.mask, mean):
            expected = model(other)
        with circuit.run(model, task) as bridge:
            assert torch.equal(bridge(other), expected)
        assert torch.equal(model(other), plain)
        assert float((expected - plain).abs().max()) > 1e-3
        with circuit.run(model, task, ablation="corrupt"):
            found = task.metric(model(task.pairs.clean_tokens), task.pairs)
            with pytest.raises(InputError, match="ablation='mean'"):
                model(other)
    measured = measure_circuits(model, task, space, [circuit.mask]).metric[0]
    torch.testing.assert_close(found, measured, rtol=0, atol=1e-9)


def test_a_circuit_generates(tiny_gpt2_64: Any) -> None:
    """Greedy generation inside the context equals calling the circuit again and again, and not the model's own."""
    model, task = tiny_gpt2_64, build_task(n=8)
    space = space_of(model)
    circuit = Circuit(space, random_mask(space, 0.5, 7))
    prompt = task.pairs.clean_tokens[:1]
    settings = {
        "max_new_tokens": 8,
        "do_sample": False,
        "verbose": False,
        "stop_at_eos": False,
        "return_type": "tokens",
    }
    with torch.no_grad(), circuit.run(model, task):
        generated = model.generate(prompt, **settings)
        tokens = prompt
        for _ in range(8):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(generated, tokens)
    assert not torch.equal(model.generate(prompt, **settings), tokens)


def test_a_lens_sees_the_circuit(tiny_gpt2_64: Any) -> None:
    """Recording inside the context records the circuit's own activations."""
    model, task = tiny_gpt2_64, build_task(n=8)
    space = space_of(model)
    circuit = Circuit(space, random_mask(space, 0.5, 8))
    plain = record_run(model, task.pairs, ["resid_post"])
    with circuit.run(model, task, ablation="zero"):
        inside = record_run(model, task.pairs, ["resid_post"])
    assert float((inside["resid_post"] - plain["resid_post"]).abs().max()) > 1e-2
    with (
        pytest.raises(InputError, match="another graph"),
        Circuit(EdgeSpace(1, 1, 1), EdgeSpace(1, 1, 1).mask).run(model, task),
    ):
        pass


def test_constants_are_learnt_for_a_silent_writer_over_circuits_of_many_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head whose mean write is nothing has no spread to step by, and can be given a constant all the same."""
    from mechwork.circuits.graph import ablated

    model, task, sizes = build_model("gpt2"), build_task(n=8), []
    with torch.no_grad():
        model.blocks[1].attn.o.original_component.weight[8:16] = 0  # [head x d_head, d_model]
    space = space_of(model)
    real = ablated.select_random

    def noted(space: EdgeSpace, n: int, seed: int) -> torch.Tensor:
        sizes.append(n / space.n_edges)
        return real(space, n, seed)

    monkeypatch.setattr(ablated, "select_random", noted)
    silent = space.writers.index("a1.h1")
    assert float(mean_writes(model, task, space, by_position=False)[silent].abs().max()) == 0
    learned = learn_constants(model, task, space, n_steps=8)
    assert float(learned[silent].abs().max()) > 1e-6
    assert all(0.19 < size < 0.98 for size in sizes)
    assert max(sizes) - min(sizes) > 0.3


@pytest.mark.parametrize("metric", ["probability_difference"])
def test_a_learned_knockout_is_gradient_ascent_on_the_difference(tiny_gpt2_64: Any, metric: str) -> None:
    """Against autograd of the whole |m(C - K) - m(M - K)| at once, under a metric whose differences stay below 1."""
    model, task = tiny_gpt2_64, build_task(metric=metric)
    space = space_of(model)
    circuit = Circuit(space, random_mask(space, 0.5, 2))
    pairs, n_steps = task.pairs, 8
    ablated = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
    member, whole = circuit.mask.double(), space.mask.double()

    def difference(cut: torch.Tensor, *, grad: bool) -> torch.Tensor:
        found = []
        for base in (member, whole):
            with as_circuit(model, space, base - cut, ablated, grad=grad):
                found.append(task.metric(model(pairs.clean_tokens), pairs).mean())
        return found[0] - found[1]

    noise = torch.randn(member.shape, generator=torch.Generator().manual_seed(0))
    logit = (0.1 * noise.double() - 1).requires_grad_(True)
    optimiser, met = torch.optim.Adam([logit], lr=0.3, maximize=True), []
    for _ in range(n_steps):
        hard = circuit.mask & (logit.detach() > 0)
        with torch.no_grad():
            met.append((abs(float(difference(hard.double(), grad=False))), hard))
        (logit.grad,) = torch.autograd.grad(difference(member * torch.sigmoid(logit), grad=True).abs(), logit)
        optimiser.step()
    expected = max(met, key=lambda row: row[0])[1]
    assert 0 < int(expected.sum()) < circuit.n_edges
    assert max(gap for gap, _ in met) < 1
    with borrowed(model):
        assert torch.equal(learn_knockout(model, task, circuit, n_steps=n_steps), expected)
