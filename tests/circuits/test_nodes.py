"""Scores of nodes and neurons, ensembles, stability: what follows from the edges, and what can be counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import EdgeSpace, compare_selections, ensemble, score_edges
from mechwork.circuits.graph.select import (
    select_above,
    select_greedy,
    select_nodes,
    select_random,
    select_random_same_degree,
    select_top_nodes,
)
from mechwork.circuits.scoring.neurons import measure_neurons, score_neurons
from mechwork.circuits.scoring.nodes import score_nodes
from mechwork.errors import InputError
from mechwork.models.anatomy import read_anatomy
from mechwork.patching import attribute
from mechwork.runs import record_run
from mechwork.tasks.task import Task
from tests.circuits.test_edges import tolerance
from tests.families import build_task
from tests.reference.literal import cached

SPACE = EdgeSpace(n_layers=3, n_heads=4, n_kv_heads=2)


def test_node_scores_are_sums_of_edge_scores(family_model64: Any, tiny_task: Task) -> None:
    edges = score_edges(family_model64, tiny_task, rules="gradient", ig_steps=2)
    nodes = score_nodes(family_model64, tiny_task, rules="gradient", ig_steps=2)
    torch.testing.assert_close(nodes.values, edges.node_values, rtol=0, atol=1e-10)
    assert float(nodes.values.abs().max()) > 1e-3
    circuit = nodes.circuit(4)
    assert set(circuit.nodes) <= {"input", "logits", *(name for name, _ in nodes.top(6))}


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "eap"}, {"preset": "relp"}, {"preset": "eap-ig"}, {"preset": "eap", "ablation": "zero"},
        {"rules": "gradient", "path": "clean-corrupt"}, {"rules": "gradient", "path": "activations", "ig_steps": 2},
        {"rules": "atp_star"}, {"preset": "eap-ig", "memory_budget": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_estimator_of_edges_scores_nodes(settings: dict[str, Any], tiny_gpt2_64: Any, tiny_task: Task) -> None:
    edges = score_edges(tiny_gpt2_64, tiny_task, keep="pairs", **settings)
    nodes = score_nodes(tiny_gpt2_64, tiny_task, **settings)
    assert edges.per_example is not None
    torch.testing.assert_close(nodes.per_example, edges.per_example.sum(dim=2), rtol=0, atol=1e-10)
    assert float(nodes.values.abs().max()) > 1e-3


def test_neurons_add_up_to_their_mlp_and_equal_the_site(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    scores = score_neurons(tiny_gpt2_64, tiny_task, rules="gradient")
    sites = attribute(tiny_gpt2_64, tiny_task, ["mlp_post", "mlp_out"], rules="gradient", positions="all")
    torch.testing.assert_close(scores.values.sum(dim=1), sites["mlp_post"].values, rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.values.sum(dim=1), sites["mlp_out"].values, rtol=0, atol=1e-9)
    assert float(scores.values.abs().max()) > 1e-4
    assert scores.top(1)[0][0].startswith("m")


def test_all_neurons_kept_is_the_model_and_none_the_corrupt_mlps(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    model, pairs = tiny_gpt2_64, tiny_task.pairs
    mask = torch.zeros(3, 128, dtype=torch.bool)
    metrics = measure_neurons(model, tiny_task, [~mask, mask])
    corrupt = cached(model, pairs.corrupt_tokens)

    def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return corrupt[hook.name]

    hooks = [(f"blocks.{layer}.hook_mlp_out", put) for layer in range(3)]
    with torch.no_grad():
        expected = tiny_task.metric(model.run_with_hooks(pairs.clean_tokens, fwd_hooks=hooks), pairs)
        clean = tiny_task.metric(record_run(model, pairs, ()).logits, pairs)
    torch.testing.assert_close(metrics[0], clean, rtol=0, atol=1e-12)
    torch.testing.assert_close(metrics[1], expected, rtol=0, atol=1e-9)
    assert float((metrics[0] - metrics[1]).abs().max()) > 1e-3


def test_ensembles_by_hand(tiny_gpt2: Any, tiny_task: Task) -> None:
    a, b = (score_edges(tiny_gpt2, tiny_task, rules=rules) for rules in ("gradient", "relp"))
    both, ranks = ensemble([a, b]), ensemble([a, b], "rank")
    mask = a.space.mask
    parts = [s.values[mask] / s.values[mask].pow(2).mean().sqrt() for s in (a, b)]
    torch.testing.assert_close(both.values[mask], sum(parts) / 2, rtol=0, atol=1e-5)
    assert both.per_example is not None
    nonzero = parts[0] * parts[1] != 0  # the rank of a tie is the order in the graph, and an edge without sign has none
    ranks_of = torch.stack([(part.abs()[:, None] >= part.abs()[None, :]).sum(dim=1) for part in parts])
    expected = ranks_of.sum(dim=0) / 2 / a.space.n_edges
    torch.testing.assert_close(ranks.values[mask].abs()[nonzero], expected[nonzero], rtol=0, atol=1e-5)
    assert int(nonzero.sum()) > 200
    assert torch.equal(ranks.values.sign(), both.values.sign())
    with pytest.raises(InputError, match="resamples"):
        ranks.interval()
    with pytest.raises(InputError, match="at least two"):
        ensemble([a])
    with pytest.raises(InputError, match="one graph, model, task"):
        ensemble([a, score_edges(tiny_gpt2, build_task(seed=1), rules="relp")])


def test_greedy_takes_the_best_edge_into_what_is_reached() -> None:
    values = torch.randn(SPACE.mask.shape, generator=torch.Generator().manual_seed(0)) * SPACE.mask
    mask = torch.zeros_like(SPACE.mask)
    for n in range(1, 60):
        grown = select_greedy(SPACE, values, n)
        new = grown & ~mask
        assert int(new.sum()) == 1
        assert not bool((mask & ~grown).any())
        reached = (SPACE.feeds & mask.any(dim=1)[:, None]).any(dim=0)
        reached[SPACE.logits_reader] = True
        allowed = SPACE.mask & reached[None, :] & ~mask
        assert float(values[new].abs()) == float(values[allowed].abs().max())
        mask = grown
    assert torch.equal(select_greedy(SPACE, values, SPACE.n_edges), SPACE.mask)


def test_threshold_nodes_and_degrees() -> None:
    values = torch.randn(SPACE.mask.shape, generator=torch.Generator().manual_seed(1)) * SPACE.mask
    above = select_above(SPACE, values, 1.0)
    assert torch.equal(above, SPACE.mask & (values.abs() >= 1))
    with pytest.raises(InputError, match="largest"):
        select_above(SPACE, values, 100)
    nodes = torch.zeros(SPACE.n_writers, dtype=torch.bool)
    nodes[SPACE.writers.index("a1.h2")] = True
    names = {SPACE.edge_name(i, j) for i, j in select_nodes(SPACE, nodes).nonzero().tolist()}
    expected = {"input->logits", "a1.h2->logits", "input->a1.h2<q>", "input->a1.h1<k>", "input->a1.h1<v>"}
    assert names == expected
    assert int(select_top_nodes(SPACE, torch.arange(16.0)[: SPACE.n_writers], 2).any(dim=1).sum()) == 3
    mask = select_random(SPACE, 60, 0)
    shuffled = select_random_same_degree(SPACE, mask, 1)
    assert torch.equal(shuffled.sum(dim=0), mask.sum(dim=0))
    assert torch.equal(shuffled.sum(dim=1), mask.sum(dim=1))
    assert not bool((shuffled & ~SPACE.mask).any())
    assert int((shuffled & mask).sum()) < 50


def test_stability_over_templates_and_selections(tiny_gpt2: Any) -> None:
    from dataclasses import replace

    task = build_task(n=8)
    task = replace(task, pairs=replace(task.pairs, templates=("a", "b") * 4))
    scores = score_edges(tiny_gpt2, task, rules="gradient")
    found = scores.stability(30, over="templates")
    assert found.labels == ("a", "b")
    alone = score_edges(tiny_gpt2, task[::2], rules="gradient").circuit(30, prune=False)
    assert found.jaccards[0] == pytest.approx(scores.circuit(30, prune=False).overlap(alone))
    several = compare_selections([scores.circuit(30, prune=False), alone, alone])
    assert several.jaccards == pytest.approx((found.jaccards[0], found.jaccards[0], 1.0))
    assert several.expected < 0.1
    assert "random circuits" in repr(several)
    with pytest.raises(InputError, match="templates"):
        score_edges(tiny_gpt2, build_task(n=4), rules="gradient").stability(30, over="templates")


def test_neurons_of_experts_are_refused(tiny_task: Task) -> None:
    from tests.families import build_model

    model = build_model("mixtral", torch.float32)
    assert read_anatomy(model).n_experts
    with pytest.raises(InputError, match="no site"):
        score_neurons(model, tiny_task)
    assert tolerance(model) > 0


def test_neurons_of_a_model_of_one_layer() -> None:
    import transformers as hf

    from mechwork.models.load import load_model
    from tests.families import D_VOCAB

    config = hf.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=D_VOCAB)
    model = load_model(hf.GPT2LMHeadModel(config).eval(), dtype=torch.float64)
    scores = score_neurons(model, build_task(n=2), rules="gradient")
    assert scores.values.shape == (1, 64)
    assert float(scores.values.abs().max()) > 0
