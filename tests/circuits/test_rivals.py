"""Rivals: the overlap penalty against its definition, and a model with two equal ways to the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.circuits import Circuit, EdgeSpace, Rivals, evaluate, find_rivals, learn_circuit
from mechwork.circuits.ground_truth.weights import BlockWeights, Blueprint, HeadWeights, NamedStream
from mechwork.circuits.search.learned import pairs_within
from mechwork.circuits.testing.rivals import _parts
from mechwork.errors import InputError, UnknownNameError
from mechwork.models.anatomy import read_anatomy
from mechwork.tasks.task import Task

N = 4


def two_ways() -> Any:
    """One position; two heads copy the letter, each enough to be right with certainty."""
    s = NamedStream(token=N, out=N)
    head = {"v": s.read("token"), "o": 3 * s.write("out", torch.eye(N))}
    return Blueprint(
        name="two ways", embed=s.write("token", torch.eye(N)), pos=torch.zeros(1, s.d_model), unembed=s.read("out"),
        blocks=[BlockWeights([HeadWeights(**head), HeadWeights(**head)])],
    ).build()  # fmt: skip


def letters_task() -> Task:
    clean = [i % N for i in range(8)]
    corrupt = [(i + 1 + i // N) % N for i in range(8)]
    return Task.from_tokens([[x] for x in clean], [[x] for x in corrupt], clean, corrupt)


def test_a_rival_takes_the_other_way(tmp_path: Path) -> None:
    model, task = two_ways(), letters_task()
    space = EdgeSpace.of(read_anatomy(model))
    given = Circuit.from_edges(space, ["input->a0.h0<v>", "a0.h0->logits"])
    found = find_rivals(model, task, given, n=1, ablations=("corrupt",), n_steps=200)
    assert {"input->a0.h1<v>", "a0.h1->logits"} == set(found.circuits["rival 1"].edges)
    assert found.overlaps["rival 1"] == 0.0
    assert found.chance["rival 1"] > 0
    assert found.faithfulness("given") == pytest.approx(0.5, abs=0.01)
    assert found.faithfulness("rival 1") == pytest.approx(found.faithfulness("given"))
    assert found.faithfulness("given") == pytest.approx(evaluate(model, task, given).faithfulness)
    assert found.equal() == ("rival 1",)
    assert str(Rivals.load(found.save(tmp_path / "rivals"))) == str(found)


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    model, task = two_ways(), letters_task()
    given = Circuit.from_edges(EdgeSpace.of(read_anatomy(model)), ["input->a0.h0<v>", "a0.h0->logits"])
    how: dict[str, Any] = {"n": 2, "n_steps": 40, "batch_size": 3, "seed": 5}
    whole, seen = find_rivals(model, task, given, **how), list[int]()

    def stop(done: int, of: int, what: str) -> None:
        if of == 80 and done and seen[-1:] != [done]:  # blocks of a pass tell the same step again
            seen.append(done)
            if len(seen) == 65:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_rivals(model, task, given, **how, checkpoint=tmp_path, progress=stop)
    again = find_rivals(model, task, given, **how, checkpoint=tmp_path, progress=stop)
    assert seen[:65] == [*range(1, 66)]
    assert [done for done in seen[65:] if done > 40] == [*range(61, 81)], "it goes on from the last save of the second"
    for name, circuit in whole.circuits.items():
        assert torch.equal(circuit.mask, again.circuits[name].mask)
        learnt = again.circuits[name].scores
        if name != "given":
            assert circuit.scores is not None
            assert learnt is not None
            assert torch.equal(circuit.scores, learnt)


def test_pairs_that_fit_a_budget() -> None:
    model, task = two_ways(), letters_task()
    assert [pairs_within(model, task, budget) for budget in (1, "1GB")] == [1, len(task)]
    fits = [pairs_within(model, task, budget) for budget in range(2000, 200_000, 2000)]
    assert fits == sorted(fits)
    assert set(fits) > {1, 4, len(task)}


def test_contracts() -> None:
    model, task = two_ways(), letters_task()
    space = EdgeSpace.of(read_anatomy(model))
    given = Circuit.from_edges(space, ["input->a0.h0<v>", "a0.h0->logits"])
    with pytest.raises(InputError, match="not all"):
        find_rivals(model, task, Circuit(space, space.mask.clone()))
    with pytest.raises(UnknownNameError, match="ablation"):
        find_rivals(model, task, given, ablations=("corupt",))
    other = EdgeSpace(3, 2, 2)
    with pytest.raises(InputError, match="avoid"):
        learn_circuit(model, task, 2, avoid=[Circuit(other, torch.zeros_like(other.mask))])


def test_templates_with_enough_pairs_are_parts() -> None:
    task = letters_task()
    named = replace(task, pairs=replace(task.pairs, templates=("a", "b", "a", "a", "c", "b", "a", "a")))
    assert _parts(named) == {"all": list(range(8)), "a": [0, 2, 3, 6, 7]}
    assert _parts(task) == {"all": list(range(8))}
