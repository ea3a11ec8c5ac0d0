"""Whether a model notices a write: against runs with a hook, and a model built to notice one direction alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.directions import Direction, study_detection
from mechwork.errors import InputError
from mechwork.sites import Site
from mechwork.statistics import area_under_roc
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model, build_task
from tests.reference import literal

SITE = Site("resid_post", 1)


def direction_of(model: Any, vector: Tensor | None = None) -> Direction:
    draw = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Direction(30 * draw / draw.norm() if vector is None else vector, SITE, name="drawn")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rates_are_those_of_runs_with_a_hook(family: str) -> None:
    model, task = build_model(family), build_task(n=8)
    direction = direction_of(model)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
        with borrowed(model):
            found = study_detection(model, task, direction, strengths=[1.0, 4.0], rate=0.25, n_random=1)
        plain = task.measure(model(task.pairs.clean_tokens))
        threshold = sorted(plain.tolist())
        assert (found.rows[0].strength, found.rows[0].area) == (0.0, 0.5)
        assert found.rows[0].said == pytest.approx(float((plain > 0).double().mean()))
        assert [(row.direction, row.strength) for row in found.rows[1:3]] == [("drawn", 1.0), ("drawn", 4.0)]
        assert [row.direction for row in found.rows[3:]] == ["random 0, as long as drawn"] * 2
        vectors = [direction.vector] * 2 + [direction.random_control(0).vector] * 2
        for row, vector in zip(found.rows[1:], vectors, strict=True):

            def put(x: Tensor, hook: Any, change: Tensor = row.strength * vector) -> Tensor:
                return x + change

            logits = model.run_with_hooks(task.pairs.clean_tokens, fwd_hooks=[(literal.hook("resid_post", 1), put)])
            values = task.measure(logits)
            above = [value > threshold[5] + 0.25 * (threshold[6] - threshold[5]) for value in values.tolist()]
            assert row.said == pytest.approx(float((values > 0).double().mean()))
            assert row.hits == pytest.approx(sum(above) / 8)
            labels = torch.tensor([False] * 8 + [True] * 8)
            assert row.area == pytest.approx(area_under_roc(torch.cat([plain, values]), labels))
            assert row.wrote is None
        assert len({(row.area, row.hits, row.said) for row in found.rows}) > 2
    assert "25% false alarms" in str(found)


def test_a_direction_towards_the_report_is_noticed_and_phrases_are_counted(bundled_model: Any) -> None:
    model = bundled_model
    words = [" the", " a"]
    yes, no = (int(model.to_single_token(word)) for word in words)
    tokens = torch.randint(200, (4, 5), generator=torch.Generator().manual_seed(0))
    corrupt = tokens.clone()
    corrupt[:, 1] += 1
    task = Task.from_tokens(tokens, corrupt, [yes] * 4, [no] * 4)
    site = Site("resid_post", model.cfg.n_layers - 1)
    towards = (model.W_U[:, yes] - model.W_U[:, no]).detach()
    direction = replace(direction_of(model, 40 * towards / towards.norm()), site=site)
    found = study_detection(
        model, task, direction, strengths=[1.0, -1.0], n_random=0, phrases=["THE"], n_generated=2, rate=0.3
    )
    assert [row.said for row in found.rows[1:]] == [1.0, 0.0]
    assert [row.area for row in found.rows[1:]] == [1.0, 0.0]
    assert found.rows[1].wrote == 1.0
    assert "the" in found.texts[1]
    assert len(found.texts) == 3


def test_refused_before_a_forward(tiny_gpt2_64: Any) -> None:
    task, direction = build_task(n=4), direction_of(tiny_gpt2_64)
    for wrong, message in (
        ({"task": build_task(n=3)}, "at least 4"), ({"strengths": [0.0]}, "other than 0"), ({"strengths": []}, "other"),
        ({"rate": 1.0}, "between 0 and 1"), ({"phrases": "wait"}, "a list of texts"), ({"n_random": -1}, "n_random"),
        ({"n_generated": 0}, "n_generated"), ({"phrases": ["wait"]}, "tokenizer"),
        ({"direction": direction_of(tiny_gpt2_64, torch.ones(5))}, "width|numbers"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            study_detection(tiny_gpt2_64, **{"task": task, "direction": direction, **wrong})
