"""ACDC against one trial after another, learned masks against random ones; both go on where they were interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.circuits import EdgeSpace, find_acdc, learn_circuit, score_edges
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.graph.select import select_random
from mechwork.circuits.graph.writers import record_writers, writer_kinds
from mechwork.circuits.search.learned import _open_probability, _sample
from mechwork.circuits.testing.evaluate import EvaluationSettings, measure_circuits
from mechwork.errors import InputError
from mechwork.models.anatomy import read_anatomy
from mechwork.runs import record_run
from mechwork.tasks.task import Task
from tests.circuits.test_edges import random_mask, tolerance
from tests.families import borrowed, build_task
from tests.gate import fewer


def test_stacked_circuits_are_each_their_own(family_model64: Any, tiny_task: Task) -> None:
    model, pairs = family_model64, tiny_task.pairs
    space = EdgeSpace.of(read_anatomy(model))
    ablated = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
    masks = torch.stack([random_mask(space, share, i) for i, share in enumerate((0.3, 0.6, 0.95))])
    with torch.no_grad():
        with as_circuit(model, space, masks, ablated.repeat(1, 3, 1, 1)):
            stacked = model(pairs.clean_tokens.repeat(3, 1)).split(3)
        for mask, found in zip(masks, stacked, strict=True):
            with as_circuit(model, space, mask, ablated):
                expected = model(pairs.clean_tokens)
            assert float((found - expected).abs().max()) <= tolerance(model) * float(expected.abs().max())
    assert float((stacked[0] - stacked[1]).abs().max()) > 1e-3


def literal_acdc(model: Any, task: Task, space: EdgeSpace, threshold: float) -> torch.Tensor:
    """Edge after edge, each trial a whole forward."""
    pairs = task.pairs
    ablated = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
    with torch.no_grad():
        reference = pairs.final(model(pairs.clean_tokens)).log_softmax(dim=-1)
    mask, distance = space.mask.clone(), 0.0
    for column in reversed(range(space.n_readers)):
        for row in reversed(range(int(space.n_seen[column]))):
            trial = mask.clone()
            trial[row, column] = False
            with torch.no_grad(), as_circuit(model, space, trial, ablated):
                found = pairs.final(model(pairs.clean_tokens)).log_softmax(dim=-1)
            value = float((reference.exp() * (reference - found)).sum(dim=-1).mean())
            if value - distance < threshold:
                mask, distance = trial, value
    return mask


@pytest.mark.parametrize("family", fewer(["gpt2", "neox", "gemma2"], ["neox"]), indirect=True)
def test_acdc_is_one_trial_after_another(family_model64: Any, tiny_task: Task) -> None:
    task = tiny_task[:2]
    anatomy = read_anatomy(family_model64)
    threshold = 3e-3 if anatomy.final_soft_cap is None else 1e-4  # a soft cap keeps all distances small
    space = EdgeSpace.of(anatomy)
    with borrowed(family_model64):
        circuit = find_acdc(family_model64, task, threshold, n_copies=5)
    expected = literal_acdc(family_model64, task, space, threshold)
    assert 0 < int(expected.sum()) < space.n_edges
    assert circuit.n_requested == int(expected.sum())
    from mechwork.circuits.graph.circuit import prune

    assert torch.equal(circuit.mask, prune(space, expected))


def test_acdc_goes_on_where_it_was_interrupted(tiny_gpt2_64: Any, tiny_task: Task, tmp_path: Path) -> None:
    file = tmp_path / "acdc.safetensors"
    whole = find_acdc(tiny_gpt2_64, tiny_task, 0.05)

    def interrupt(done: int, total: int, what: str) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with borrowed(tiny_gpt2_64), pytest.raises(KeyboardInterrupt):
        find_acdc(tiny_gpt2_64, tiny_task, 0.05, checkpoint=file, progress=interrupt)
    seen: list[int] = []
    resumed = find_acdc(
        tiny_gpt2_64, tiny_task, 0.05, checkpoint=file, progress=lambda done, total, what: seen.append(done)
    )
    assert next(done for done in seen if done) == 16
    assert torch.equal(resumed.mask, whole.mask)
    with pytest.raises(InputError, match="another model, task"):
        find_acdc(tiny_gpt2_64, tiny_task, 0.06, checkpoint=file)
    for bad in ({"threshold": 0.0}, {"threshold": 0.1, "measure": "loss"}):
        with pytest.raises(InputError):
            find_acdc(tiny_gpt2_64, tiny_task, **bad)  # pyright: ignore[reportArgumentType]


def test_learned_masks_beat_random_ones_and_meet_their_size(tiny_gpt2: Any) -> None:
    task = build_task(n=12)
    start = score_edges(tiny_gpt2, task, rules="gradient")
    n = start.space.n_edges // 3
    with borrowed(tiny_gpt2):
        cold = learn_circuit(tiny_gpt2, task, n, n_steps=120, batch_size=12)
        warm = learn_circuit(tiny_gpt2, task, n, start=start, n_steps=120, batch_size=12)
    assert cold.n_requested == n
    assert cold.n_edges <= n
    masks = [cold.mask, warm.mask, *(select_random(start.space, n, seed) for seed in range(5))]
    kl = measure_circuits(tiny_gpt2, task, start.space, masks, EvaluationSettings()).kl.mean(dim=1)
    assert float(kl[0]) < 0.7 * float(kl[2:].min())
    assert float(kl[1]) < 0.7 * float(kl[2:].min())


def test_learning_goes_on_where_it_was_interrupted(tiny_gpt2: Any, tiny_task: Task, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n_steps": 12, "batch_size": 2, "checkpoint_every": 4}
    whole = learn_circuit(tiny_gpt2, tiny_task, 60, **settings)
    file = tmp_path / "mask.safetensors"

    def interrupt(done: int, total: int, what: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with borrowed(tiny_gpt2), pytest.raises(KeyboardInterrupt):
        learn_circuit(tiny_gpt2, tiny_task, 60, checkpoint=file, progress=interrupt, **settings)
    resumed = learn_circuit(tiny_gpt2, tiny_task, 60, checkpoint=file, **settings)
    assert torch.equal(resumed.mask, whole.mask)
    assert resumed.scores is not None
    assert whole.scores is not None
    assert torch.equal(resumed.scores, whole.scores)
    with pytest.raises(InputError, match="another model, task"):
        learn_circuit(tiny_gpt2, tiny_task, 61, checkpoint=file, **settings)
    with pytest.raises(InputError, match="size of a circuit"):
        learn_circuit(tiny_gpt2, tiny_task, 10_000)


def test_gates_are_open_as_often_as_their_probability_says() -> None:
    gates = torch.tensor([-2.0, 0.0, 1.0, 3.0]).repeat(5000, 1)
    z = _sample(gates, 0, 3)
    expected = _open_probability(gates[:1])[0]
    spread = (expected * (1 - expected) / 5000).sqrt()
    assert bool(((z > 0).double().mean(dim=0) - expected).abs().lt(4 * spread).all())
    assert float(expected[-1] - expected[0]) > 0.5
    assert 0 <= float(z.min()) < float(z.max()) <= 1


def test_learning_is_adam_on_the_penalised_distance(tiny_gpt2: Any, tiny_task: Task) -> None:
    """Three steps against torch's Adam: down for the gates, up for the multipliers of the size."""
    n, space = 60, EdgeSpace.of(read_anatomy(tiny_gpt2))
    pairs, gates = tiny_task.pairs, torch.full((space.n_writers, space.n_readers), 2.0, requires_grad=True)
    multipliers = torch.zeros(2, requires_grad=True)
    down, up = torch.optim.Adam([gates], lr=0.1), torch.optim.Adam([multipliers], lr=0.1, maximize=True)
    ablated = record_writers(tiny_gpt2, space, record_run(tiny_gpt2, pairs, writer_kinds(space), corrupt=True))
    with torch.no_grad():
        reference = pairs.final(tiny_gpt2(pairs.clean_tokens)).log_softmax(dim=-1)
    for step in range(3):
        target = (1 - n / space.n_edges) * min(1.0, (step + 1) / 1.8)
        with as_circuit(tiny_gpt2, space, _sample(gates, 0, step), ablated, grad=True):
            found = pairs.final(tiny_gpt2(pairs.clean_tokens)).log_softmax(dim=-1)
        distance = (reference.exp() * (reference - found)).sum(dim=-1).mean()
        gap = target - (1 - _open_probability(gates)[space.mask].mean())
        loss = distance + multipliers[0] * gap + multipliers[1] * gap**2
        gates.grad, multipliers.grad = torch.autograd.grad(loss, [gates, multipliers])
        down.step()
        up.step()
    learnt = learn_circuit(tiny_gpt2, tiny_task, n, n_steps=3).scores
    assert learnt is not None
    torch.testing.assert_close(learnt, (_open_probability(gates) * space.mask).detach(), rtol=1e-5, atol=1e-6)


def test_without_a_step_the_strongest_edges_of_the_start_are_open(tiny_gpt2: Any, tiny_task: Task) -> None:
    start = score_edges(tiny_gpt2, tiny_task, rules="gradient")
    assert float(start.values.min()) < 0 < float(start.values.max())
    found = learn_circuit(tiny_gpt2, tiny_task, 60, start=start, n_steps=0)
    assert torch.equal(found.mask, start.circuit(60).mask)
