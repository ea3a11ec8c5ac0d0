"""The code of the design document runs as written, on the bundled model, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw


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


def test_the_report_is_one_offline_file(written: dict[str, Any]) -> None:
    html = Path(written["path"]).read_text(encoding="utf-8")
    assert 100_000 < len(html) < 8_000_000
    assert 'src="http' not in html


def test_token_ids_in() -> None:
    task = mw.Task.from_tokens([[1, 2, 3]], [[1, 4, 3]], [5], [6], metric="logit_difference")
    assert len(task) == 1
