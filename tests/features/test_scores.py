"""Scores of features: slopes of finite changes, sums that are the place's own score, paths, measured effects,
refusals.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.features import NodeTable, patch_features, record_features, score_features
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import build_task, rounding
from tests.features.build import N, features
from tests.reference import features as literal

PLACES = (Site("attn_out", 1), Site("resid_post", 1))


def test_scores_of_a_place_add_up_to_its_own(family_model64: Any, tiny_task: Task) -> None:
    rules = "relp"
    made = features(family_model64, *PLACES)
    scores = score_features(family_model64, tiny_task, made, rules=rules)
    whole = mw.attribute(family_model64, tiny_task, ["attn_out", "resid_post"], rules=rules, positions="all")
    for place, span in zip(PLACES, scores.nodes.spans, strict=True):
        expected = whole[place.kind].per_example[:, place.layer]
        torch.testing.assert_close(
            scores.per_example[:, span].sum(dim=1), expected, rtol=0, atol=rounding(family_model64)
        )
        assert float(scores.per_example[:, span].abs().max()) > 1e-4


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_score_is_the_slope_of_a_finite_change(tiny_gpt2_64: Any, direction: str) -> None:
    task = build_task(n=1)
    made = features(tiny_gpt2_64, *PLACES, kind="gated")
    scores = score_features(tiny_gpt2_64, task, made, rules="gradient", direction=direction)
    pairs = task.pairs
    host, donor = pairs.corrupt_tokens, pairs.clean_tokens
    if direction == "noise":
        host, donor = donor, host
    metric = lambda logits: task.measure(logits, pairs)  # noqa: E731
    step, checked = 1e-4, 0
    for coder, span in zip(made, scores.nodes.spans, strict=True):
        own, other = (record_features(tiny_gpt2_64, t, [coder])[0] for t in (host, donor))
        change = other.features - own.features
        for i in [*change.abs().sum(dim=(0, 1)).argsort(descending=True)[:3].tolist(), N]:
            moved = other.error - own.error if i == N else change[..., [i]] @ coder.W_dec[[i]]
            up, down = (
                literal.metric_with_change(tiny_gpt2_64, host, coder.writes.kind, 1, s * moved, metric)
                for s in (step, -step)
            )
            slope = (up - down) / (2 * step) * (1 if direction == "denoise" else -1)
            assert float(scores.per_example[0, span.start + i]) == pytest.approx(float(slope), rel=1e-4, abs=1e-7)
            checked += abs(float(slope)) > 1e-3
    assert checked >= 4


def test_integrated_along_a_place_scores_add_up_to_what_patching_it_does(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    made = features(tiny_gpt2_64, *PLACES)
    scores = score_features(tiny_gpt2_64, tiny_task, made, rules="gradient", ig_steps=32)
    exact = mw.patch(tiny_gpt2_64, tiny_task, ["attn_out", "resid_post"], positions="all")
    for place, span in zip(PLACES, scores.nodes.spans, strict=True):
        expected = exact[place.kind].per_example[:, place.layer]
        torch.testing.assert_close(scores.per_example[:, span].sum(dim=1), expected, rtol=0, atol=5e-3)
        assert float(expected.abs().max()) > 0.05


def test_one_point_on_either_path_is_the_plain_score(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    made = features(tiny_gpt2_64, *PLACES)
    a, b = (score_features(tiny_gpt2_64, tiny_task, made, rules="gradient", path=p) for p in ("site", "inputs"))
    assert torch.equal(a.per_example, b.per_example)
    c, d = (
        score_features(tiny_gpt2_64, tiny_task, made, rules="gradient", path=p, ig_steps=3) for p in ("site", "inputs")
    )
    assert float((c.per_example - d.per_example).abs().max()) > 1e-3
    whole = mw.attribute(tiny_gpt2_64, tiny_task, ["resid_post"], rules="gradient", positions="all", ig_steps=3)
    span = d.nodes.spans[1]
    torch.testing.assert_close(
        d.per_example[:, span].sum(dim=1), whole["resid_post"].per_example[:, 1], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_effects_are_what_a_hook_by_hand_measures(tiny_gpt2_64: Any, tiny_task: Task, direction: str) -> None:
    made = features(tiny_gpt2_64, *PLACES, Site("z", 0))
    names = ["resid_post.1/f0", "resid_post.1/error", "attn_out.1/f5", "z.0/f3"]
    scores = score_features(tiny_gpt2_64, tiny_task, made, rules="gradient", direction=direction)
    assert [scores.nodes.name(scores.nodes.index(name)) for name in names] == names
    effects = patch_features(tiny_gpt2_64, tiny_task, made, names, direction=direction)
    pairs = tiny_task.pairs
    host, donor = (
        (pairs.corrupt_tokens, pairs.clean_tokens)
        if direction == "denoise"
        else (pairs.clean_tokens, pairs.corrupt_tokens)
    )
    metric = lambda logits: tiny_task.measure(logits, pairs)  # noqa: E731
    with torch.no_grad():
        plain = metric(tiny_gpt2_64(host))
    coder = made["resid_post.1"]
    own, other = (record_features(tiny_gpt2_64, t, [coder])[0] for t in (host, donor))
    for column, moved in (
        (0, (other.features - own.features)[..., [0]] @ coder.W_dec[[0]]),
        (1, other.error - own.error),
    ):
        found = literal.metric_with_change(tiny_gpt2_64, host, "resid_post", 1, moved, metric)
        expected = found - plain if direction == "denoise" else plain - found
        torch.testing.assert_close(effects.per_example[:, column], expected, rtol=0, atol=1e-10)
    assert float(effects.per_example.abs().max()) > 1e-3
    assert -1 <= effects.correlation(scores) <= 1


def test_a_transcoder_has_scores_where_it_writes(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    made = features(tiny_gpt2_64, (Site("mlp_in", 1), Site("mlp_out", 1)), kind="topk")
    scores = score_features(tiny_gpt2_64, tiny_task, made, rules="relp")
    whole = mw.attribute(tiny_gpt2_64, tiny_task, ["mlp_out"], rules="relp", positions="all")
    torch.testing.assert_close(scores.per_example.sum(dim=1), whole["mlp_out"].per_example[:, 1], rtol=0, atol=1e-9)
    assert int(scores.varies.sum()) > 3
    assert len(scores.to_dataframe()) == int(scores.varies.sum())


def test_names_of_nodes() -> None:
    nodes = NodeTable(("mlp_out.0", "resid_post.0"), (3, 2))
    assert [nodes.name(i) for i in range(len(nodes))] == [
        "mlp_out.0/f0", "mlp_out.0/f1", "mlp_out.0/f2", "mlp_out.0/error", "resid_post.0/f0", "resid_post.0/f1",
        "resid_post.0/error",
    ]  # fmt: skip
    assert nodes.errors.nonzero().flatten().tolist() == [3, 6]
    for wrong, said in (
        ("z.0/f1", "no features at"),
        ("mlp_out.0/f3", "f0 to f2 and error"),
        ("mlp_out.0/g", "f0 to f2"),
    ):
        with pytest.raises(InputError, match=said):
            nodes.index(wrong)
    with pytest.raises(InputError, match="0 to 6"):
        nodes.name(7)


def test_contracts(tiny_gpt2: Any, tiny_task: Task) -> None:
    made = features(tiny_gpt2, PLACES[0])
    with pytest.raises(UnknownNameError, match="nearest: relp"):
        score_features(tiny_gpt2, tiny_task, made, rules="relpp")
    with pytest.raises(InputError, match="path is site or inputs"):
        score_features(tiny_gpt2, tiny_task, made, path="sites")
    with pytest.raises(InputError, match="several or exact queries"):
        score_features(tiny_gpt2, tiny_task, made, rules="atp_star")
    with pytest.raises(InputError, match="one node or more"):
        patch_features(tiny_gpt2, tiny_task, made, [])
    spans = [{"A": [1]}]
    unequal = Task.from_tokens([[1, 2, 3]], [[1, 2, 2, 3]], [5], [6], spans=spans, corrupt_spans=[{"A": [1, 2]}])
    with pytest.raises(InputError, match="same length"):
        score_features(tiny_gpt2, unequal, made)
    detached = Task.from_tokens(
        [[1, 2, 3]], [[1, 4, 3]], [5], [6], metric=lambda logits, pairs: logits.detach()[:, -1, 0]
    )
    with pytest.raises(MetricError, match="no gradient"):
        score_features(tiny_gpt2, detached, made)
    scores = score_features(tiny_gpt2, tiny_task, made)
    with pytest.raises(InputError, match="at least one node"):
        scores.select(0)
    with pytest.raises(InputError, match="ranked or cut"):
        scores.ranking("kept")
    assert "attn_out.1/" in str(scores)
