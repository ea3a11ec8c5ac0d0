"""Edge scores, circuits and estimates of pairs of unequal length, aligned by spans, against literal forms: one pair at
a time, the donor's writes put at the corresponding positions in a loop. In float64, on every architecture family.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import (
    SpanCircuit,
    evaluate,
    evaluate_spans,
    find_span_circuit,
    score_edges,
    score_positions,
)
from mechwork.circuits.testing.evaluate import measure_circuits
from mechwork.errors import InputError
from mechwork.patching import attribute, patch
from mechwork.tasks.alignment import align
from mechwork.tasks.task import Task
from tests.circuits.test_edges import random_mask, tolerance
from tests.families import padded
from tests.reference import literal

CLEAN = [[3, 14, 15, 92, 65, 35, 8], [27, 18, 28, 45, 9], [5, 6, 7, 8, 9, 10]]
CORRUPT = [[3, 14, 16, 17, 92, 65, 35, 8], [27, 18, 20, 28, 29, 45, 9], [5, 16, 7, 8, 9, 10]]


def build(metric: str = "logit_difference") -> Task:
    spans = [align(a, b) for a, b in zip(CLEAN, CORRUPT, strict=True)]
    return Task.from_tokens(
        CLEAN, CORRUPT, [1, 2, 3], [4, 5, 6], metric=metric, spans=[a for a, _ in spans],
        corrupt_spans=[b for _, b in spans],
    )  # fmt: skip


def correspondence(host: list[int], donor: list[int]) -> dict[int, int]:
    """Host position -> donor position, span by span from the right."""
    a, b = align(host, donor)
    return {p: q for name in a for p, q in zip(reversed(a[name]), reversed(b[name]), strict=False)}


def moved(host: torch.Tensor, donor: torch.Tensor, index: dict[int, int]) -> torch.Tensor:
    """The donor's activation where something corresponds, the host's own elsewhere."""
    new = host.clone()
    for p, q in index.items():
        new[:, p] = donor[:, q]
    return new


def sides(row: int, *, denoise: bool) -> tuple[torch.Tensor, torch.Tensor, dict[int, int]]:
    host, donor = (CORRUPT[row], CLEAN[row]) if denoise else (CLEAN[row], CORRUPT[row])
    return torch.tensor([host]), torch.tensor([donor]), correspondence(host, donor)


def metric_of(row: int) -> Any:
    return lambda logits: logits[:, -1, row + 1] - logits[:, -1, row + 4]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_scores_and_circuits(family_model64: Any, direction: str) -> None:
    model, denoise, task = family_model64, direction == "denoise", build()
    graph = literal.LiteralGraph(model)
    scores = score_edges(model, task, rules="gradient", direction=direction, batch_size=2)
    space, sign = scores.space, 1 if denoise else -1
    by_span = score_positions(model, task, positions="spans", rules="gradient", direction=direction)
    scale = float(scores.values.abs().max())
    assert scale > 1e-2
    torch.testing.assert_close(by_span.summed().double(), scores.values.double(), rtol=1e-5, atol=1e-5 * scale)
    mask = random_mask(space, 0.6, 0)
    kept = {(space.writers[i], space.readers[j]) for i, j in mask.nonzero().tolist()}
    for row in range(3):
        host, donor, index = sides(row, denoise=denoise)
        ours, theirs = graph.writes_of(host), graph.writes_of(donor)
        other = {name: moved(ours[name], theirs[name], index) for name in ours}
        nudge = {r: torch.zeros_like(ours["input"]).requires_grad_(True) for r in space.readers}
        with torch.enable_grad():
            value = metric_of(row)(graph.run(host, ours, lambda w, r: True, nudge)).sum()
            grads = torch.autograd.grad(value, list(nudge.values()))
        expected = torch.stack([
            torch.stack([((other[w] - ours[w]) * g).sum() for g in grads]) for w in space.writers
        ])  # fmt: skip
        found = scores.require_pairs()[row]
        assert float((found - sign * expected * space.mask).abs().max()) <= padded(model, tolerance(model)) * max(
            scale, 1
        )
        if not denoise:
            with torch.no_grad():
                live = metric_of(row)(graph.run(host, other, lambda w, r: (w, r) in kept))
                cut = metric_of(row)(graph.run(host, other, lambda w, r: False))
            metrics = measure_circuits(model, task, space, [mask, space.mask & False]).metric[:, row]
            torch.testing.assert_close(
                metrics, torch.stack([live[0], cut[0]]), rtol=1e-4, atol=padded(model, 10 * tolerance(model))
            )


def test_paths_of_estimates_end_at_the_corresponding_embeddings(tiny_gpt2_64: Any) -> None:
    model, task, steps = tiny_gpt2_64, build(), 2
    found = attribute(model, task, ["mlp_out"], rules="gradient", ig_steps=steps, positions="all")["mlp_out"]
    key, first = literal.hook("mlp_out", 1), literal.hook("resid_pre", 0)
    for row in range(3):
        host, donor, index = sides(row, denoise=True)
        ours, theirs = literal.cached(model, host), literal.cached(model, donor)
        end = moved(ours[first], theirs[first], index)
        total = torch.zeros(())
        for k in range(steps):
            start = ours[first] + (k + 0.5) / steps * (end - ours[first])
            leaf: list[torch.Tensor] = []

            def enter(activation: Any, hook: Any, start: Any = start) -> Any:
                return start.clone().requires_grad_(True)

            def keep(activation: Any, hook: Any, leaf: Any = leaf) -> Any:
                leaf.append(activation.view_as(activation))
                return leaf[0]

            with torch.enable_grad():
                logits = model.run_with_hooks(host, fwd_hooks=[(first, enter), (key, keep)])
                grad = torch.autograd.grad(metric_of(row)(logits).sum(), leaf[0])[0]
            total = total + ((moved(ours[key], theirs[key], index) - ours[key]) * grad).sum() / steps
        torch.testing.assert_close(found.per_example[row, 1].squeeze(), total)


def test_a_whole_circuit_is_the_model_and_spans_are_patched(tiny_gpt2_64: Any) -> None:
    task = build()
    effects = patch(tiny_gpt2_64, task, ["resid_pre"])["resid_pre"]
    assert effects.labels["pos"] == ("start", "differs", "same", "differs2", "same2", "END")
    scores = score_edges(tiny_gpt2_64, task, rules="gradient")
    found = evaluate(tiny_gpt2_64, task, scores.circuit(scores.space.n_edges), n_random=1)
    assert found.faithfulness == pytest.approx(1)


def test_circuits_by_span_equal_the_literal_graph(family_model64: Any) -> None:
    model, task = family_model64, build()
    graph = literal.LiteralGraph(model)
    scores = score_positions(model, task, positions="spans", rules="gradient", direction="noise")
    circuit = find_span_circuit(scores, n_edges=scores.space.n_edges)
    found = evaluate_spans(model, task, circuit, n_random=1, batch_size=2)
    space = circuit.space
    kept = {(circuit.labels[s], space.writers[i], space.readers[j]) for s, i, j in circuit.mask.nonzero().tolist()}
    for row in range(3):
        host, donor, index = sides(row, denoise=False)
        ours, theirs = graph.writes_of(host), graph.writes_of(donor)
        other = {name: moved(ours[name], theirs[name], index) for name in ours}
        spans = align(CLEAN[row], CORRUPT[row])[0]
        at = {name: torch.zeros(1, len(CLEAN[row]), dtype=torch.bool) for name in spans}
        for name, positions in spans.items():
            at[name][0, positions] = True

        def keep(writer: str, reader: str, at: Any = at) -> torch.Tensor:
            named = [mask for name, mask in at.items() if (name, writer, reader) in kept]
            nowhere = torch.zeros_like(next(iter(at.values())))
            return torch.stack([nowhere, *named]).any(dim=0)

        with torch.no_grad():
            live = metric_of(row)(graph.run(host, other, keep))
        torch.testing.assert_close(
            found.per_example[row], live[0], rtol=1e-4, atol=padded(model, 10 * tolerance(model))
        )
    assert 0 < circuit.share < 1
    assert len(found.random) == 1


def test_the_same_edges_at_all_spans_are_the_circuit_without_spans(tiny_gpt2_64: Any) -> None:
    task = build()
    scores = score_edges(tiny_gpt2_64, task, rules="gradient")
    mask, labels = random_mask(scores.space, 0.6, 1), tuple(task.pairs.spans)
    circuit = SpanCircuit(scores.space, labels, mask.expand(len(labels), -1, -1), {})
    found = evaluate_spans(tiny_gpt2_64, task, circuit, n_random=0)
    plain = measure_circuits(tiny_gpt2_64, task, scores.space, [mask, scores.space.mask & False, scores.space.mask])
    both = torch.stack([found.per_example, found.empty_per_example, found.model_per_example])
    torch.testing.assert_close(both, plain.metric)


def test_methods_that_need_positions_refuse(tiny_gpt2_64: Any) -> None:
    with pytest.raises(InputError, match="unequal length are scored by coefficients"):
        score_edges(tiny_gpt2_64, build(), preset="exact")
    with pytest.raises(InputError, match="the same number of tokens, or named spans"):
        Task.from_tokens(CLEAN, CORRUPT, [1, 2, 3], [4, 5, 6])
