"""Feature circuits: everything kept is the model, nothing kept the corrupt run, and any choice what hooks by
hand give.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.features import evaluate_feature_circuits, measure_feature_circuits, score_features
from mechwork.features.scores import NodeTable
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import build_task, rounding
from tests.features.build import N, features
from tests.reference import features as literal

PLACES = (Site("attn_out", 1), Site("resid_post", 2))


@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma2", "olmoe"])
def test_all_is_the_model_and_nothing_the_corrupt_run(family_model64: Any, tiny_task: Task) -> None:
    made = features(family_model64, *PLACES, kind="topk")
    n = len(NodeTable.of(made))
    found = measure_feature_circuits(family_model64, tiny_task, made, [torch.ones(n).bool(), torch.zeros(n).bool()])
    with torch.no_grad():
        clean, corrupt = (
            tiny_task.measure(family_model64(t), tiny_task.pairs)
            for t in (tiny_task.pairs.clean_tokens, tiny_task.pairs.corrupt_tokens)
        )
    torch.testing.assert_close(found[0], clean, rtol=0, atol=rounding(family_model64))
    torch.testing.assert_close(found[1], corrupt, rtol=0, atol=rounding(family_model64))
    assert float((clean - corrupt).abs().max()) > 1e-2


def test_some_is_what_hooks_by_hand_give(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    made = features(tiny_gpt2_64, Site("attn_out", 0), Site("mlp_out", 1), Site("resid_post", 1), kind="jumprelu")
    nodes = NodeTable.of(made)
    mask = torch.rand(len(nodes), generator=torch.Generator().manual_seed(2)) < 0.5
    mask[nodes.spans[0].stop - 1], mask[nodes.spans[1].stop - 1] = True, False
    kept = [set(mask[span].nonzero().flatten().tolist()) for span in nodes.spans]
    pairs = tiny_task.pairs
    expected = literal.run_circuit(
        tiny_gpt2_64,
        pairs.clean_tokens,
        pairs.corrupt_tokens,
        list(made),
        kept,
        lambda logits: tiny_task.measure(logits, pairs),
    )
    found = measure_feature_circuits(tiny_gpt2_64, tiny_task, made, [mask], batch_size=2)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        assert float((found - tiny_task.measure(tiny_gpt2_64(pairs.clean_tokens), pairs)).abs().max()) > 1e-3


def test_a_transcoder_in_a_circuit(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    made = features(tiny_gpt2_64, (Site("mlp_in", 1), Site("mlp_out", 1)))
    pairs = tiny_task.pairs
    mask = torch.zeros(N + 1).bool()
    mask[[0, 3, 5]] = True
    coder, seen = made[0], {}
    with torch.no_grad():
        other = tiny_gpt2_64.run_with_cache(pairs.corrupt_tokens)[1]
        f_other = coder.encode(other["blocks.1.mlp.hook_in"])
        e_other = other["blocks.1.hook_mlp_out"] - coder.decode(f_other)

        def put(y: torch.Tensor, hook: object) -> torch.Tensor:
            f = coder.encode(seen["x"])
            f[..., ~mask[:-1]] = f_other[..., ~mask[:-1]]
            return coder.decode(f) + e_other

        hooks = [("blocks.1.mlp.hook_in", lambda x, hook: seen.update(x=x)), ("blocks.1.hook_mlp_out", put)]
        expected = tiny_task.measure(tiny_gpt2_64.run_with_hooks(pairs.clean_tokens, fwd_hooks=hooks), pairs)
    found = measure_feature_circuits(tiny_gpt2_64, tiny_task, made, [mask])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_means_by_position_take_the_place_of_what_is_cut(tiny_gpt2_64: Any) -> None:
    task = build_task(n=9)
    made = features(tiny_gpt2_64, Site("resid_post", 2))
    found = measure_feature_circuits(
        tiny_gpt2_64, task, made, [torch.zeros(N + 1).bool()], ablation="mean_by_position"
    )[0]
    with torch.no_grad():
        y = tiny_gpt2_64.run_with_cache(task.pairs.clean_tokens)[1]["blocks.2.hook_resid_post"].mean(
            dim=0, keepdim=True
        )
        hooks = [("blocks.2.hook_resid_post", lambda x, hook: y.expand_as(x))]
        expected = task.measure(tiny_gpt2_64.run_with_hooks(task.pairs.clean_tokens, fwd_hooks=hooks), task.pairs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    with pytest.raises(InputError, match="at least 8 prompts"):
        measure_feature_circuits(
            tiny_gpt2_64, task, made, [torch.zeros(N + 1).bool()], ablation="mean_by_position", source=build_task(n=3)
        )
    with pytest.raises(UnknownNameError, match="ablation of features"):
        measure_feature_circuits(tiny_gpt2_64, task, made, [torch.zeros(N + 1).bool()], ablation="mean")


def test_curves_hold_what_their_circuits_measure(tiny_gpt2_64: Any) -> None:
    task = build_task(n=6)
    made = features(tiny_gpt2_64, *PLACES)
    scores = {rules: score_features(tiny_gpt2_64, task, made, rules=rules) for rules in ("gradient", "relp")}
    varying = int(scores["relp"].varies.sum())
    curves = evaluate_feature_circuits(tiny_gpt2_64, task, made, scores, sizes=(1, 5, varying, 10_000), n_random=2)
    assert curves.sizes == (1, 5, varying)
    mask = scores["relp"].select(5)
    again = measure_feature_circuits(tiny_gpt2_64, task, made, [mask])[0]
    torch.testing.assert_close(curves.per_example[1, 1], again)
    whole, empty = curves.model_per_example.mean(), curves.empty_per_example.mean()
    assert float(curves.faithfulness("relp")[1]) == pytest.approx(float((again.mean() - empty) / (whole - empty)))
    for method in curves.methods:
        assert float(curves.faithfulness(method)[2]) == pytest.approx(
            1, abs=1e-9
        )  # all nodes that vary: the model itself
    assert float(curves.random[2]) == pytest.approx(1, abs=1e-9)
    low, high = curves.intervals("relp")[1]
    assert low <= float(curves.faithfulness("relp")[1]) <= high
    gap, low, high = curves.difference("relp", "gradient")
    assert gap == pytest.approx(curves.area("relp") - curves.area("gradient"))
    assert low <= high
    assert len(curves.to_dataframe()) == 6
    assert "random" in str(curves)
    cut = evaluate_feature_circuits(tiny_gpt2_64, task, made, scores, sizes=(5,), errors="cut", n_random=0)
    assert cut.n_varying < curves.n_varying
    assert cut.area("relp") == float(cut.faithfulness("relp")[0])


def test_contracts(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    made = features(tiny_gpt2_64, PLACES[0])
    scores = {"relp": score_features(tiny_gpt2_64, tiny_task, made)}
    with pytest.raises(InputError, match="one or more"):
        evaluate_feature_circuits(tiny_gpt2_64, tiny_task, made, {})
    with pytest.raises(InputError, match="other features"):
        evaluate_feature_circuits(tiny_gpt2_64, tiny_task, features(tiny_gpt2_64, *PLACES), scores)
    with pytest.raises(InputError, match="rising"):
        evaluate_feature_circuits(tiny_gpt2_64, tiny_task, made, scores, sizes=(5, 2))
    with pytest.raises(InputError, match="scores are of the metric"):
        evaluate_feature_circuits(tiny_gpt2_64, tiny_task.with_metric("log_probability"), made, scores)
    with pytest.raises(InputError, match="these curves are of"):
        evaluate_feature_circuits(tiny_gpt2_64, tiny_task, made, scores, sizes=(3,)).faithfulness("ig")
    same = Task.from_tokens([[1, 2, 3]], [[1, 4, 3]], [5], [6], metric=lambda logits, pairs: logits[:, 0, 0] * 0 + 1)
    with pytest.raises(MetricError):
        score_features(tiny_gpt2_64, same, made)
