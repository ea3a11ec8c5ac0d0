"""Backups: a head that is planted to take over is found and added; every number against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import Circuit, EdgeSpace, complete_with_backups
from mechwork.circuits.ground_truth.weights import SHARP, BlockWeights, Blueprint, HeadWeights, NamedStream
from mechwork.circuits.testing.completeness import without_node
from mechwork.circuits.testing.evaluate import EvaluationSettings, measure_circuits
from mechwork.errors import InputError, UnknownNameError
from mechwork.models.anatomy import read_anatomy
from mechwork.tasks.task import Task

N = 5
"""Letters; token 0 says nothing."""


def backed_up() -> Any:
    """``0 x END -> x``: a0.h0 copies x and raises a flag; a1.h0 copies x only where the flag is down."""
    s = NamedStream(token=N, one=1, pos=3, out=N, flag=1)
    pos = s.read("pos")
    letters = torch.cat([torch.zeros(1, N), torch.eye(N), torch.zeros(1, N)]).double()
    copies = s.write("out", torch.eye(N))
    main = HeadWeights(
        v=torch.cat([s.read("token"), s.read("one")], dim=1), o=torch.cat([copies, s.write("flag", torch.eye(1))]),
        q=SHARP * pos[:, [2]], k=pos[:, [1]],
    )  # fmt: skip
    backup = HeadWeights(
        v=s.read("token"), o=copies, q=torch.cat([SHARP * pos[:, [2]], 2 * SHARP * s.read("flag")], dim=1),
        k=torch.cat([pos[:, [1]], pos[:, [0]]], dim=1),
    )  # fmt: skip
    idle = HeadWeights(v=0 * s.read("token"), o=0 * copies)
    unembed = torch.cat([torch.zeros(s.d_model, 1).double(), s.read("out"), torch.zeros(s.d_model, 1).double()], dim=1)
    return Blueprint(
        name="backed up",
        embed=s.write("token", letters) + s.write("one", letters.sum(dim=1, keepdim=True)),
        pos=s.write("pos", torch.eye(3)),
        unembed=unembed,
        blocks=[BlockWeights([main, idle]), BlockWeights([backup, idle])],
    ).build()


def letters_task(n: int = 12) -> Task:
    """The letter against the next one; END is the last token of the vocabulary."""
    clean = [1 + i % N for i in range(n)]
    corrupt = [1 + (i + 1 + i // N) % N for i in range(n)]
    corrupt = [c if c != x else 1 + c % N for c, x in zip(corrupt, clean, strict=True)]
    return Task.from_tokens([[0, x, N + 1] for x in clean], [[0, c, N + 1] for c in corrupt], clean, corrupt)


def test_a_planted_backup_is_found_and_added() -> None:
    model, task = backed_up(), letters_task()
    space = EdgeSpace.of(read_anatomy(model))
    assert task.accuracy(model) == 1.0
    main = ["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->logits"]
    circuit = Circuit.from_edges(space, main)
    found = complete_with_backups(model, task, circuit, ablation="zero")
    assert found.backups == ("a1.h0",)
    (row,) = found.rows
    assert (row.head, row.share) == ("a0.h0", pytest.approx(1.0))
    assert row.q < 0.01
    (reaction,) = found.reactions
    assert reaction.model_drop == pytest.approx(0.0, abs=1e-9)
    assert reaction.circuit_drop == pytest.approx(1.0)
    assert (reaction.before, reaction.after) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))
    assert {"a0.h0->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits"} <= set(found.completed.edges)
    assert set(main) <= set(found.completed.edges)
    assert not any("h1" in edge for edge in found.completed.edges)
    assert found.faithfulness == (pytest.approx(1.0), pytest.approx(1.0))
    assert "a1.h0 +1.00" in str(found)


def test_what_is_taken_over_equals_its_definition() -> None:
    model, task = backed_up(), letters_task()
    space = EdgeSpace.of(read_anatomy(model))
    circuit = Circuit.from_edges(space, ["input->a0.h0<v>", "a0.h0->logits", "input->a0.h1<v>", "a0.h1->logits"])
    found = complete_with_backups(model, task, circuit, ablation="zero", least=0.0, level=1.0)

    def m(*gone: str) -> float:
        mask = space.mask
        for node in gone:
            mask = without_node(space, mask, node)
        return float(measure_circuits(model, task, space, [mask], EvaluationSettings("zero")).metric.mean())

    empty = measure_circuits(model, task, space, [torch.zeros_like(space.mask)], EvaluationSettings("zero")).metric
    gap = m() - float(empty.mean())
    assert found.n_tested == 4
    for row in found.rows:
        expected = (m(row.head) - m(row.head, row.backup)) - (m() - m(row.backup))
        assert row.share == pytest.approx(expected / gap, abs=1e-9)


def test_contracts() -> None:
    model, task = backed_up(), letters_task()
    space = EdgeSpace.of(read_anatomy(model))
    circuit = Circuit.from_edges(space, ["input->a0.h0<v>", "a0.h0->logits"])
    with pytest.raises(UnknownNameError, match="head of the circuit"):
        complete_with_backups(model, task, circuit, ["a1.h0"])
    with pytest.raises(InputError, match="no heads"):
        complete_with_backups(model, task, Circuit.from_edges(space, ["input->logits"]))
    with pytest.raises(InputError, match="at least 6"):
        complete_with_backups(model, task[:3], circuit)
