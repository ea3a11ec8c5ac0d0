"""The code of the design document runs as written, on the bundled model, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.graph.writers import record_writers, writer_kinds
from mechwork.models.anatomy import read_anatomy
from mechwork.runs import record_run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything a user has after the ten lines."""
    path = tmp_path_factory.mktemp("contract") / "ioi.html"
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=64, seed=0)
    exact = mw.patch(model, task, sites=["resid_pre", "attn_out", "mlp_out"])
    approx = mw.attribute(model, task, sites=exact.sites, rules="relp")
    agreement = approx.agreement(exact)
    scores = mw.score_edges(model, task.train, rules="relp")
    circuit = scores.circuit(n_edges=80)
    curve = mw.evaluate(model, task.test, scores)
    mw.report(path, task, exact, scores, circuit, curve)
    names = locals()
    return {name: names[name] for name in names if name != "tmp_path_factory"}


def test_axes_and_baselines(written: dict[str, Any]) -> None:
    effect = written["exact"]["resid_pre"]
    assert effect.axes == ("layer", "pos")
    assert effect.values.shape == (6, len(effect.labels["pos"]))
    assert effect.per_example.shape == (64, *effect.values.shape)
    assert effect.metric.shape == effect.values.shape
    assert effect.baseline.clean > 2 > -2 > effect.baseline.corrupt
    torch.testing.assert_close(
        effect.normalized().values, effect.values / (effect.baseline.clean - effect.baseline.corrupt)
    )
    assert written["approx"]["mlp_out"].estimated
    with pytest.raises(mw.errors.InputError, match="measured"):
        _ = written["approx"]["mlp_out"].metric


def test_axes_of_heads(written: dict[str, Any]) -> None:
    model, task = written["model"], written["task"][:8]
    both = mw.patch(model, task, sites=["resid_pre", "z"], direction="noise")
    assert both["z"].axes == ("layer", "head")
    assert both["z"].values.shape == (6, 4)
    each = mw.patch(model, task, sites=["z"], positions="each")
    assert each["z"].axes == ("layer", "pos", "head")


def test_scores_circuit_and_curve(written: dict[str, Any]) -> None:
    scores, circuit, curve = written["scores"], written["circuit"], written["curve"]
    assert scores.values.shape == (len(scores.space.writers), len(scores.space.readers))
    assert scores.space.writers[:2] == ("input", "a0.h0")
    assert {"a1.h0<k>", "m1", "logits"} <= set(scores.space.readers)
    assert circuit.mask.shape == scores.values.shape
    assert len(circuit.edges) == circuit.n_edges <= 80
    assert {"input", "logits"} <= set(circuit.nodes)
    assert len(curve.sizes) == len(curve.faithfulness) == len(curve.random) == 10
    assert curve.cpr > 0
    assert 0 <= curve.cmd < 1
    assert isinstance(curve.empty, float)
    assert "Pearson" in str(written["agreement"])


def test_a_tenth_of_the_edges_carries_the_behaviour_on_unseen_names_and_templates(written: dict[str, Any]) -> None:
    scores, model = written["scores"], written["model"]
    result = mw.evaluate(model, written["task"].test, scores.circuit(scores.space.n_edges // 10))
    assert result.circuit.fraction <= 0.10
    assert result.faithfulness >= 0.90
    assert max(abs(r) for r in result.random) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_circuit_gives_the_clean_logits_and_empty_the_corrupt_ones(dtype: torch.dtype) -> None:
    """In float32, where these logits reach 40 and one unit in the last place is 4e-6, to 1e-6 of the largest."""
    model = mw.load_model("gpt2-6l", dtype=dtype)
    pairs = mw.tasks.ioi(model, n=64, seed=0).test.pairs
    space = mw.EdgeSpace.of(read_anatomy(model))
    with torch.no_grad():
        ablated = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
        with as_circuit(model, space, space.mask, ablated):
            full = model(pairs.clean_tokens)
        with as_circuit(model, space, torch.zeros_like(space.mask), ablated):
            empty = model(pairs.clean_tokens)
        clean, corrupt = model(pairs.clean_tokens), model(pairs.corrupt_tokens)
    bound = 1e-6 * float(corrupt.abs().max()) if dtype == torch.float32 else 1e-9
    assert torch.equal(full, clean)
    assert float((empty - corrupt)[pairs.mask].abs().max()) <= bound
    assert float((clean - corrupt)[pairs.mask].abs().max()) > 1


def test_edges_of_a_writer_add_up_to_its_node_score(written: dict[str, Any]) -> None:
    model, train = written["model"], written["task"].train
    nodes = mw.attribute(model, train, ["z", "mlp_out"], rules="relp", positions="all")
    scores = written["scores"]
    for layer in range(6):
        heads = scores.node_values[scores.space.head_writers(layer)]
        torch.testing.assert_close(heads, nodes["z"].values[layer], rtol=1e-3, atol=1e-4)
        mlp = scores.node_values[scores.space.mlp_writers(layer).start]
        torch.testing.assert_close(mlp, nodes["mlp_out"].values[layer], rtol=1e-3, atol=1e-4)


def test_the_report_is_one_offline_file(written: dict[str, Any]) -> None:
    html = Path(written["path"]).read_text(encoding="utf-8")
    assert 100_000 < len(html) < 8_000_000
    assert 'src="http' not in html


def test_token_ids_in() -> None:
    task = mw.Task.from_tokens([[1, 2, 3]], [[1, 4, 3]], [5], [6], metric="logit_difference")
    assert len(task) == 1
