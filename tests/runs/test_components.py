"""Component studies against their literal form, on every architecture; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError
from mechwork.models.anatomy import block_norm
from mechwork.runs import study_components
from mechwork.tasks.task import Task
from tests.families import build_task
from tests.reference import components as literal


def study_task(model: Any) -> Task:
    task = build_task()
    tokens = task.pairs.clean_tokens.clone()
    tokens[:, 3] = tokens[:, 1]  # so that there are copies to look at
    return Task.from_tokens(tokens, task.pairs.corrupt_tokens, task.pairs.correct, task.pairs.incorrect)


def test_every_family_agrees_with_the_literal_form(family_model64: Any) -> None:
    model, task = family_model64, study_task(family_model64)
    nodes = ["input", "a0.h1", "m1", "a1.h0", "logits"]
    study = study_components(model, task, nodes, n_examples=2)
    assert [row.node for row in study.rows] == ["a0.h1", "m1", "a1.h0"]
    for row in study.rows:
        expected = literal.activations(model, task, row.node)
        peaks = sorted((max(values) for values in expected), reverse=True)
        assert peaks[0] > 0
        for example, peak in zip(row.examples, peaks, strict=False):
            assert example.values == pytest.approx(expected[example.row], rel=1e-3, abs=1e-9)
            assert max(example.values) == pytest.approx(peak, rel=1e-3)
            assert example.values[example.peak] == max(example.values)
        if row.node.startswith("m"):
            assert (row.looks, row.copying) == ({}, None)
            continue
        layer, head = int(row.node[1]), int(row.node[-1])
        assert row.looks == pytest.approx(literal.looks(model, task, layer, head), abs=1e-9)
        assert row.looks["earlier copy"] > 0
        if block_norm(model, layer, "ln1_post") is None:
            assert row.copying is not None
            assert row.copying == pytest.approx(literal.copying(model, layer, head), abs=1e-6)
            assert abs(row.copying) > 1e-6
        else:
            assert row.copying is None


def test_promoted_tokens_of_a_bundled_model(bundled_model: Any) -> None:
    from mechwork.tasks import ioi

    task = ioi(bundled_model, n=8).test
    study = study_components(bundled_model, task, ["a5.h1", "m5"], n_tokens=5)
    for row in study.rows:
        logits = literal.direct_logits(bundled_model, task, row.node)
        for sign, found in ((1, row.promoted), (-1, row.suppressed)):
            top = (sign * logits).topk(5)
            assert [token for token, _ in found] == [bundled_model.tokenizer.decode([i]) for i in top.indices.tolist()]
            assert [value for _, value in found] == pytest.approx((sign * top.values).tolist(), rel=1e-3)
    assert study.prompt == task.prompt_texts(0)[0]
    assert list(study.to_dataframe()["node"]) == ["a5.h1", "m5"]


def test_what_is_not_a_component_is_refused(tiny_gpt2_64: Any) -> None:
    task = build_task()
    for node in ("a9.h0", "m9", "mx", "head"):
        with pytest.raises(InputError, match="are written"):
            study_components(tiny_gpt2_64, task, [node])
    with pytest.raises(InputError, match="pairs 0 to"):
        study_components(tiny_gpt2_64, task, ["m0"], row=99)
    assert torch.is_tensor(task.pairs.clean_tokens)
