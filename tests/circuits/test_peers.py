"""Edge scores and circuits equal those of the EAP-IG package on the same weights and pairs.

Their sign: (corrupt - clean) times the gradient at the clean run, which is minus our noising direction.
"""

from __future__ import annotations

import re

import pytest
import torch

from mechwork.circuits import Circuit, EdgeSpace, evaluate, score_edges
from mechwork.circuits.scoring.estimate import Coefficients
from mechwork.circuits.scoring.methods import Method
from mechwork.circuits.testing.evaluate import measure_circuits
from mechwork.models.anatomy import read_anatomy
from mechwork.relevance import GRADIENT, IdentityRule
from tests.patching.test_peers import stabilised
from tests.reference import peers

TOLERANCE = {"f32": 1e-4, "f64": 1e-6}


def space(tag: str) -> EdgeSpace:
    return EdgeSpace.of(read_anatomy(peers.model(tag)))


def test_names_and_edges_are_in_their_order() -> None:
    mine, theirs = space("f64"), peers.names()
    assert list(mine.writers) == theirs["src_nodes"]
    assert list(mine.readers) == theirs["dst_nodes"]
    assert torch.equal(mine.mask, torch.from_numpy(peers.arrays("edges", "f64")["real_edge_mask"]).bool())
    assert mine.n_edges == 479


@pytest.mark.parametrize("tag", ["f32", "f64"])
def test_edge_attribution_patching(tag: str) -> None:
    scores = score_edges(peers.model(tag), peers.task(), rules="gradient", direction="noise")
    peers.assert_agrees(-scores.values, peers.arrays("edges", tag)["scores_EAP"], TOLERANCE[tag])


@pytest.mark.parametrize("tag", ["f32", "f64"])
def test_integrated_gradients_with_their_left_sum(tag: str) -> None:
    """Theirs samples k/5 of the way from corrupt to clean, k = 0..4, where we take midpoints by default."""
    fractions = tuple(1 - k / 5 for k in range(5))
    model, task = peers.model(tag), peers.task()
    method = Method(GRADIENT, direction="noise")
    rows = Coefficients(model, task, space(tag), method, 12, 0).by_cell(task, None, fractions)
    peers.assert_agrees(
        -rows.values.mean(dim=(0, 1)), peers.arrays("edges", tag)["scores_EAP_IG_inputs_m5"], TOLERANCE[tag]
    )


def test_clean_and_corrupt_ends_averaged() -> None:
    model, task = peers.model("f64"), peers.task()
    scores = score_edges(model, task, preset="clean-corrupt", direction="noise")
    peers.assert_agrees(-scores.values, peers.arrays("edges", "f64")["scores_clean_corrupted"], 1e-6)


@pytest.mark.parametrize(("rules", "theirs"), [("relp", "scores_EAP_relp"), ("relp_ah", "scores_EAP_relp_ah")])
def test_edges_under_relevance_rules(rules: str, theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = peers.arrays("edges", "f64")
    scores = score_edges(peers.model("f64"), peers.task(), rules=rules, direction="noise")
    peers.assert_agrees(-scores.values, arrays[theirs], 5e-5)
    monkeypatch.setattr(IdentityRule, "surrogate", stabilised)
    scores = score_edges(peers.model("f64"), peers.task(), rules=rules, direction="noise")
    peers.assert_agrees(-scores.values, arrays[theirs], 1e-6)


@pytest.mark.parametrize("method", ["EAP", "EAP_IG_inputs_m5"])
def test_faithfulness_of_their_circuits(method: str) -> None:
    arrays, graph = peers.arrays("edges", "f32"), space("f32")
    model, task = peers.model("f32"), peers.task()
    saved = [name for name in arrays if re.fullmatch(rf"topn_pruned_{method}_\d\d", name)]
    assert len(saved) == 4
    for name in saved:
        share = name.rsplit("_", 1)[1]
        circuit = Circuit(graph, torch.from_numpy(arrays[name]).bool())
        result = evaluate(model, task, circuit, n_random=0)
        peers.assert_agrees(result.per_example, arrays[f"metric_per_example_{method}_{share}"], 1e-4)
        expected = (arrays[f"metric_per_example_{method}_{share}"].mean() - -1.268849) / (1.213806 - -1.268849)
        assert result.faithfulness == pytest.approx(expected, abs=1e-3)
        assert torch.equal(circuit.pruned().mask, circuit.mask)


def test_exact_effect_of_corrupting_one_edge() -> None:
    """All edges but one, for every edge, against their exact scores (same sign convention as above)."""
    graph = space("f64")
    theirs = peers.arrays("edges", "f64").get("scores_exact_reset")
    theirs = peers.arrays("edges", "f32")["scores_exact_reset"] if theirs is None else theirs
    index = graph.mask.nonzero()[::7]
    masks = []
    for row, column in index.tolist():
        mask = graph.mask.clone()
        mask[row, column] = False
        masks.append(mask)
    metrics = measure_circuits(peers.model("f64"), peers.task(), graph, [graph.mask, *masks]).metric
    change = (metrics[1:] - metrics[0]).mean(dim=1)
    peers.assert_agrees(change, theirs[tuple(index.T.numpy())], 1e-4)
