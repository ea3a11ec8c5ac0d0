"""Edges between neurons: they add up to the scores, a loop of frozen runs, the graph drawn from them, contracts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.circuits import AttributionGraph, score_neuron_edges, study_neurons
from mechwork.errors import InputError
from mechwork.models.anatomy import read_anatomy
from mechwork.patching.attribution import find_coefficients
from mechwork.runs.record import record_run
from mechwork.tasks.task import Task
from tests.families import padded, rounding
from tests.reference.edges import neuron_edge

ALL: dict[str, Any] = {"positions": "each", "counts": (1,)}


def test_edges_add_up_to_the_scores(family_model64: Any, tiny_task: Task) -> None:
    """Of every writer; with all neurons as readers nothing is left for the rest."""
    model = family_model64
    if read_anatomy(model).n_experts:
        with pytest.raises(InputError, match="mlp_post"):
            study_neurons(model, tiny_task, **ALL)
        return
    room = padded(model, rounding(model))
    study = study_neurons(model, tiny_task, **ALL)
    edges = score_neuron_edges(model, tiny_task.train, study, n=9, positions="each")
    expected = torch.tensor([score for _, score in study.top(9)], dtype=torch.float64)
    assert float(expected.abs().min()) > 1e-6
    torch.testing.assert_close(edges.values[:9].sum(dim=1), expected, atol=room, rtol=1e-6)
    together = study_neurons(model, tiny_task, positions="all", counts=(1,))
    n = together.scores.numel()
    whole = score_neuron_edges(model, tiny_task.train, together, n=n, positions="all")
    assert float(whole.values[:, n].abs().max()) <= room, "all readers are chosen"
    assert float(whole.values[n, :n].abs().max()) <= room, "all writers are chosen"
    assert float(whole.values[:n, :n].abs().max()) > 1e-5
    assert whole.share_inside == pytest.approx(1, abs=1e-4)


def test_an_edge_is_the_slope_of_runs_in_which_all_other_mlps_are_frozen(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    model, task = tiny_gpt2_64, tiny_task.train
    study = study_neurons(model, tiny_task, rules="gradient", **ALL)
    edges = score_neuron_edges(model, task, study, n=60, rules="gradient", positions="each")
    run = record_run(model, task.pairs, ("mlp_post",), corrupt=True, grad=True, n_tail=task.pairs.n_tail)
    metric = task.measure(run, task.pairs) if isinstance(run, torch.Tensor) else task.measure(run.logits, task.pairs)
    coefficients = find_coefficients(run, metric.sum(), ("mlp_post",))["mlp_post"]
    cells = task.pairs.cells("each")[1].double()
    between = edges.values[:60, :60]
    strongest = between.flatten().abs().argsort(descending=True)[:5].tolist()
    assert float(between.flatten()[strongest[-1]].abs()) > 1e-7
    for i, j in (divmod(one, 60) for one in strongest):
        (cell, *writer), (to, *reader) = edges.places[i].tolist(), edges.places[j].tolist()
        where = (cells[cell], cells[to] * coefficients[reader[0]][..., reader[1]])
        literal = neuron_edge(model, task.pairs, (writer[0], writer[1]), (reader[0], reader[1]), where, 1e-4)
        torch.testing.assert_close(edges.per_example[:, i, j], literal, rtol=1e-5, atol=1e-11)
        assert writer[0] < reader[0]
        assert cell <= to


def test_a_graph_and_a_table(tiny_gpt2: Any, tiny_task: Task) -> None:
    study = study_neurons(tiny_gpt2, tiny_task, **ALL)
    edges = score_neuron_edges(tiny_gpt2, tiny_task, study, n=6, positions="each", memory_budget="1GB")
    graph = edges.to_graph(10)
    assert isinstance(graph, AttributionGraph)
    assert [link["weight"] for link in graph.links] == pytest.approx([score for _, score in edges.top(10)])
    assert {node["clerp"] for node in graph.nodes} <= {*(unit.split("@")[0] for unit in edges.units), "input", "logits"}
    assert edges.top(1)[0][0].split("->")[0] in edges._repr_html_()
    row = edges.to_dataframe().iloc[0]
    assert row["low"] <= row["score"] <= row["high"]
    assert edges.top(1)[0][0].split("->")[0] in str(edges)


def test_contracts(tiny_gpt2: Any, tiny_task: Task) -> None:
    study = study_neurons(tiny_gpt2, tiny_task, **ALL)
    for n in (0, study.scores.numel() + 1):
        with pytest.raises(InputError, match="n is 1 to"):
            score_neuron_edges(tiny_gpt2, tiny_task, study, n=n, positions="each")
    with pytest.raises(InputError, match="give its rules, 'relp'"):
        score_neuron_edges(tiny_gpt2, tiny_task, study, n=2, rules="gradient", positions="each")
    with pytest.raises(InputError, match="the spans are 0, 1"):
        score_neuron_edges(tiny_gpt2, tiny_task, study, n=2, positions="all")
    with pytest.raises(InputError, match="the neurons of one pair"):
        score_neuron_edges(tiny_gpt2, tiny_task, study, n=2, positions="each", memory_budget=1)
    other = mw.load_model("attn-only-2l")
    with pytest.raises(InputError, match="another model"):
        score_neuron_edges(other, mw.tasks.induction(other, n=4), study, n=2)
