"""Every result of an ablation study is drawn as one offline page that says its numbers."""

from __future__ import annotations

from typing import Any

import pytest

from mechwork import ablation
from mechwork.ablation import AblationSpec
from mechwork.render import (
    cumulative_figure,
    formation_figure,
    heatmap_figure,
    impairment_figure,
    interactions_figure,
    repair_figure,
)
from tests.families import build_task

SOME = ("a0.h0", "a1.h2", "a2.h3", "m1")


def check(page: str, *texts: str) -> None:
    assert page.startswith("<!")
    assert "http://" not in page.replace("http://www.w3.org", "")
    for text in texts:
        assert text in page, text


def test_studies_of_a_tiny_model(tiny_gpt2: Any) -> None:
    task = build_task(n=9)
    check(ablation.ablate(tiny_gpt2, task, AblationSpec(["m1"])).to_html(), "mean ablation of m1")
    check(ablation.study_knock_out_in(tiny_gpt2, task, SOME).to_html(), "a1.h2", "everything ablated")
    sweep = ablation.sweep_ablations(tiny_gpt2, task)
    drawn: Any = heatmap_figure(sweep["z"])
    assert "mean ablation" in str(drawn.layout["title"]["text"])
    cumulative = ablation.study_cumulative(tiny_gpt2, task, SOME)
    figure: Any = cumulative_figure(cumulative)
    assert len(figure.data) == 2 * 2 + 3
    assert list(figure.data[1]["y"]) == pytest.approx(cumulative.mean("most important first").tolist())
    check(cumulative.to_html(), "least important first", *cumulative.ranking)
    pairs = ablation.study_interactions(tiny_gpt2, task, SOME)
    figure = interactions_figure(pairs)
    assert figure.data[0]["z"][1][3] == pytest.approx(float(pairs.values[1, 3]))
    check(pairs.to_html(), "redundant")
    repair = ablation.study_self_repair(tiny_gpt2, task)
    figure = repair_figure(repair)
    assert list(figure.data[1]["x"]) == pytest.approx(repair.direct.mean(dim=1).tolist())
    assert list(figure.data[1]["y"]) == pytest.approx(repair.total.mean(dim=1).tolist())
    check(repair.to_html(), "by norm", "a2.h3")
    check(ablation.study_copy_suppression(tiny_gpt2, task).to_html(), "share explained")
    prompts = ablation.repeated_tokens(tiny_gpt2, 8, 6)
    table = ablation.measure_roles(tiny_gpt2, prompts, n_null=20)
    check(table.to_html(), "anti-induction", "Chance")
    check(
        ablation.remove_top_heads(tiny_gpt2, [task], table=table, prompts=prompts, n_random=3).to_html(),
        "matched in number and layer",
    )
    check(ablation.record_telemetry(tiny_gpt2, task).to_html(), "massive activations: none")


def test_impairment_and_formation(bundled_model: Any) -> None:
    import mechwork as mw

    tasks = [mw.tasks.ioi(bundled_model, n=24), mw.tasks.docstring(bundled_model, n=24)]
    study = ablation.study_impairment(bundled_model, tasks, ["a1.h0", "a1.h3", "m0", "m4"], n_chosen=1, n_random=2)
    figure: Any = impairment_figure(study)
    assert figure.data[0]["z"][0][2] == pytest.approx(float(study.drops[0, 2]))
    assert list(figure.layout["yaxis"]["ticktext"]) == ["ioi", "docstring"]
    check(study.to_html(), "beside random sets")
    formation = ablation.study_formation(steps=[0, 2500], n=8)
    figure = formation_figure(formation)
    assert len(figure.data) == 8
    check(formation.to_html(), "previous-token pattern", "2500")
