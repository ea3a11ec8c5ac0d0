"""Results on features are drawn as offline pages that say their numbers; figures hold what results hold."""

from __future__ import annotations

from typing import Any

import pytest

from mechwork.features import (
    evaluate_feature_circuits,
    evaluate_features,
    measure_separability,
    patch_features,
    score_features,
    study_suppression,
)
from mechwork.lenses import open_text
from mechwork.render import (
    feature_curves_figure,
    reconstruction_figure,
    render_features,
    separability_figure,
    suppression_figure,
)
from mechwork.sites import Site
from tests.families import build_task
from tests.features.build import features
from tests.features.test_evaluations import concept, rows


def check(page: str, *texts: str) -> None:
    assert page.startswith("<!")
    assert "http://" not in page.replace("http://www.w3.org", "")
    for text in texts:
        assert text in page, text


def test_every_result_has_its_page(tiny_gpt2_64: Any) -> None:
    model, task = tiny_gpt2_64, build_task(n=6)
    made = features(model, Site("attn_out", 1), Site("resid_post", 1))
    scores = {rules: score_features(model, task, made, rules=rules) for rules in ("relp", "gradient")}
    curves = evaluate_feature_circuits(model, task, made, scores, sizes=(1, 5))
    figure: Any = feature_curves_figure(curves)
    assert list(figure.data[0]["y"]) == pytest.approx(curves.faithfulness("relp").tolist())
    assert list(figure.data[2]["y"]) == pytest.approx(curves.random.tolist())
    check(curves.to_html(), "whole model", "relp less gradient", "random")
    check(scores["relp"].to_html(), scores["relp"].top(1)[0][0])
    check(patch_features(model, task, made, ["resid_post.1/f2"]).to_html(), "resid_post.1/f2")
    found = measure_separability(model, made, concept(), n_permutations=2)
    figure = separability_figure(found)
    assert list(figure.data[0]["y"]) == pytest.approx([row.distance for row in found.rows])
    measured = evaluate_features(model, made, open_text(model, rows(), packing="documents"), n_rows=6)
    figure = reconstruction_figure(measured)
    assert list(figure.data[1]["y"]) == pytest.approx(list(measured.random_unexplained))
    check(render_features(measured, [found]), "all places", f"f{found.best.feature}")
    check(measured.to_html(), "loss recovered")
    check(found.to_html(), "chance")
    study = study_suppression(model, made, "resid_post.1", [0], concept(), task[:3], task[3:])
    figure = suppression_figure(study)
    assert list(figure.data[0]["x"]) == pytest.approx([study.rows[0].concept])
    check(study.to_html(), "posterior", "random")
