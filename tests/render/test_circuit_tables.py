"""Every result of `circuits` has a page, and the page says the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import (
    Circuit,
    EdgeSpace,
    compare_circuits,
    compare_selections,
    ensemble,
    measure_completeness,
    measure_minimality,
    score_attention_edges,
    score_edges,
    score_neurons,
    score_nodes,
    score_positions,
    study_reuse,
)
from mechwork.circuits.graph.graph_file import graph_of
from mechwork.circuits.testing.leaderboard import run_leaderboard
from mechwork.display import page
from mechwork.errors import InputError
from mechwork.render import render_graph
from tests.families import build_task


@pytest.fixture
def task() -> Any:
    from dataclasses import replace

    return replace(build_task(n=8), splits=("train", "test") * 4)


def test_scores(tiny_gpt2: Any, task: Any) -> None:
    edges = score_edges(tiny_gpt2, task, rules="gradient")
    streamed = score_edges(tiny_gpt2, task, rules="gradient", keep="moments")
    for scores in (edges, streamed, ensemble([edges, edges], "rank")):
        assert "mw-graph" in page(scores)
    for scores in (
        score_nodes(tiny_gpt2, task, rules="gradient"),
        score_neurons(tiny_gpt2, task, rules="gradient"),
        score_positions(tiny_gpt2, task, rules="gradient"),
        score_attention_edges(tiny_gpt2, task, rules="gradient"),
    ):
        drawn = page(scores).replace("&lt;", "<").replace("&gt;", ">")
        assert str(scores.top(1)[0][0]) in drawn


def test_tests_of_circuits(tiny_gpt2: Any, task: Any) -> None:
    edges = score_edges(tiny_gpt2, task, rules="gradient")
    circuit, other = edges.circuit(60), edges.circuit(90)
    assert "Jaccard" in page(edges.stability(60))
    assert "Jaccard" in page(compare_selections([circuit, other]))
    assert "a / b" in page(compare_circuits({"a": circuit, "b": other}))
    assert "learned knock-out" in page(measure_completeness(tiny_gpt2, task, circuit, n_knockouts=2, n_steps=2))
    assert circuit.nodes[1] in page(measure_minimality(tiny_gpt2, task, circuit, n_knockouts=1))
    assert "data-mw-graph" in page(graph_of(circuit, task))


def test_circuits_of_several_tasks(tiny_gpt2: Any, task: Any) -> None:
    from dataclasses import replace

    found = study_reuse(tiny_gpt2, [replace(task, name="one"), replace(task, name="two")], n_edges=60, preset="eap")
    own = found.evaluations["one", "one"]
    assert own.faithfulness != 0
    assert found.evaluations["two", "one"].faithfulness == own.faithfulness  # the two tasks are the same pairs
    assert found.comparison.overlaps[0].edges == 1.0
    drawn = page(found)
    assert "circuit of two" in drawn
    assert "random circuits" in drawn
    assert len(found.to_dataframe()) == 4
    assert f"{own.faithfulness:.3f}" in str(found)
    for tasks, message in (([task], "at least two"), ([task, task], "names of their own")):
        with pytest.raises(InputError, match=message):
            study_reuse(tiny_gpt2, tasks)
    with pytest.raises(InputError, match="held-out"):
        study_reuse(tiny_gpt2, [task, replace(task, name="two", splits=())])


def test_a_leaderboard_and_who_wins(tiny_gpt2: Any, task: Any) -> None:
    board = run_leaderboard(tiny_gpt2, task, presets=["eap", "relp", "eap-ig", "clean-corrupt"], n_random=2)
    assert [s.cmd for s in board.standings] == sorted(s.cmd for s in board.standings)
    assert {"ensemble (mean)", "ensemble (rank)"} <= {s.method for s in board.standings}
    assert board.winner.cmd == min(s.cmd for s in board.standings)
    assert board.random_cmd > 0
    assert "random circuits" in str(board)
    html = page(board)
    assert "random circuits" in html
    assert "ensemble (rank)" in html


def test_notes_of_a_circuit_reach_its_graph() -> None:
    space = EdgeSpace(2, 2, 2)
    circuit = Circuit.from_edges(space, ["input->m0", "m0->logits"]).labelled(notes={"m0": "reads the subject"})
    assert torch.equal(circuit.mask, circuit.pruned().mask)
    assert "reads the subject" in render_graph(circuit)
