"""Scores by position add up to those without; edges between positions split a head's q, k and v scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import evaluate_spans, find_span_circuit, score_edges
from mechwork.circuits.scoring.attention_edges import score_attention_edges
from mechwork.circuits.scoring.positions import score_positions
from mechwork.errors import InputError, UnsupportedModelError
from mechwork.models.anatomy import read_anatomy
from mechwork.patching import attribute
from mechwork.tasks.task import Task
from tests.circuits.test_edges import tolerance
from tests.families import build_task
from tests.reference.literal import LiteralGraph


def test_positions_equal_the_literal_form_and_sum_to_the_edges(family_model64: Any, tiny_task: Task) -> None:
    model, pairs = family_model64, tiny_task.pairs
    scores = score_positions(model, tiny_task, rules="gradient")
    graph, space = LiteralGraph(model), scores.space
    ends = [graph.writes_of(tokens) for tokens in (pairs.corrupt_tokens, pairs.clean_tokens)]
    nudge = {r: torch.zeros_like(ends[0]["input"]).requires_grad_(True) for r in space.readers}
    with torch.enable_grad():
        run = graph.run(pairs.corrupt_tokens, ends[0], lambda w, r: True, nudge)
        grads = torch.autograd.grad(tiny_task.metric(run, pairs).sum(), list(nudge.values()))
    delta = torch.stack([ends[1][w] - ends[0][w] for w in space.writers])
    expected = torch.einsum("wbpd,rbpd->pwr", delta, torch.stack(grads)) / 3 * space.mask
    assert float(expected.abs().max()) > 1e-2
    assert float((scores.values - expected).abs().max()) <= tolerance(model) * max(1.0, float(expected.abs().max()))
    whole = score_edges(model, tiny_task, rules="gradient")
    torch.testing.assert_close(scores.summed(), whole.values, rtol=0, atol=1e-10)


def test_position_chunks_change_nothing_and_intervals_hold_the_mean(tiny_gpt2_64: Any) -> None:
    task = build_task(n=9)
    whole = score_positions(tiny_gpt2_64, task, rules="relp", ig_steps=2)
    small = score_positions(tiny_gpt2_64, task, rules="relp", ig_steps=2, memory_budget="64KB")
    torch.testing.assert_close(small.values, whole.values, rtol=0, atol=1e-10)
    low, high = whole.interval(0.999)
    inside = (low <= whole.values + 1e-12) & (whole.values <= high + 1e-12)
    assert bool(inside.float().mean() > 0.99)
    assert float(whole.cancelled().max()) <= 1
    assert float(whole.cancelled().max()) > 0.5
    assert len(whole.top(3)) == 3
    bare = score_positions(tiny_gpt2_64, task, rules="relp", ig_steps=2, intervals=False)
    torch.testing.assert_close(bare.values, whole.values, rtol=0, atol=0)
    torch.testing.assert_close(bare.standard_error(), whole.standard_error(), rtol=0, atol=0)
    with pytest.raises(InputError, match="without intervals"):
        bare.interval()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_attention_edges_add_up_to_the_scores_of_q_k_and_v(
    family_model64: Any, tiny_task: Task, direction: str
) -> None:
    """v exactly; q and k where scores are linear in them (no q/k-norm, no soft cap)."""
    model, anatomy = family_model64, read_anatomy(family_model64)
    if not anatomy.open_attention:
        with pytest.raises(UnsupportedModelError, match="between positions needs gradients"):
            score_attention_edges(model, tiny_task, rules="gradient", direction=direction)
        return
    edges = score_attention_edges(model, tiny_task, rules="gradient", direction=direction)
    sites = attribute(model, tiny_task, ["q", "k", "v"], rules="gradient", direction=direction, positions="each")
    group = anatomy.n_heads // anatomy.n_kv_heads
    bound = tolerance(model)
    linear = not anatomy.qk_norm and anatomy.attn_soft_cap is None
    for index, kind in enumerate("qkv"):
        found = edges.values[:, :, index]  # layer head query key
        per_position = found.sum(dim=3 if kind == "q" else 2).transpose(1, 2)  # layer pos head
        if kind != "q":
            per_position = per_position.unflatten(2, (-1, group)).sum(dim=3)
        expected = sites[kind].values
        assert float(expected.abs().max()) > 1e-3
        if kind == "v" or linear:
            scale = max(1.0, float(expected.abs().max()))
            assert float((per_position - expected).abs().max()) <= 10 * bound * scale
    future = torch.ones(10, 10, dtype=torch.bool).triu(1)
    assert float(edges.values[..., future].abs().max()) == 0
    assert edges.top(1)[0][0].startswith("a")


def test_spans_gather_positions(tiny_gpt2_64: Any) -> None:
    spans = [{"A": [1, 2], "B": [7]}] * 3
    task = build_task(spans=spans)
    by_span = score_positions(tiny_gpt2_64, task, rules="gradient", positions="spans")
    each = score_positions(tiny_gpt2_64, task, rules="gradient", positions="each")
    assert set(by_span.labels) == {"start", "A", "A+", "B", "B+", "END"}
    place = by_span.labels.index("A")
    torch.testing.assert_close(by_span.values[place], each.values[1:3].sum(dim=0), rtol=0, atol=1e-12)
    moves = score_attention_edges(tiny_gpt2_64, task, rules="gradient", positions="spans", batch_size=2)
    all_moves = score_attention_edges(tiny_gpt2_64, task, rules="gradient")
    query, key = moves.labels.index("B"), place
    expected = all_moves.values[..., 7, 1:3].sum(dim=-1)
    torch.testing.assert_close(moves.values[..., query, key], expected, rtol=0, atol=1e-12)
    assert float(expected.abs().max()) > 1e-6


def test_methods_without_positions(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="no scores by position"):
        score_positions(tiny_gpt2, tiny_task, preset="exact")
    with pytest.raises(InputError, match="no spans"):
        score_positions(tiny_gpt2, tiny_task, positions="spans")


@pytest.mark.parametrize("positions", ["spans", "each"])
def test_circuits_at_named_spans_and_at_numbered_positions(tiny_gpt2_64: Any, positions: str) -> None:
    """Prompts of one length have both; a circuit of either runs, and that of every edge everywhere is the model."""
    task = build_task(spans=[{"A": [1, 2], "B": [7]}] * 3)
    scores = score_positions(tiny_gpt2_64, task, rules="gradient", positions=positions)
    whole = find_span_circuit(scores, len(scores.labels) * scores.space.n_edges)
    assert evaluate_spans(tiny_gpt2_64, task, whole, n_random=0).faithfulness == pytest.approx(1)
