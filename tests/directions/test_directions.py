"""Directions: fits against the formula on vectors recorded by hand, boundaries, splits, controls, files, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.directions import (
    Direction,
    Examples,
    fit_direction,
    fit_directions,
    fit_probe,
    measure_separation,
    record_examples,
)
from mechwork.errors import ArtefactError, InputError, MetricError, UnknownNameError
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import build_model, build_task
from tests.reference import literal

SITE = Site("resid_post", 1)


def recorded(model: Any, task: Task) -> Tensor:
    """Vectors at the last token, clean prompts first, from the host's cache."""
    ends = task.pairs.lengths - 1
    rows = torch.arange(len(task))
    tokens = (task.pairs.clean_tokens, task.pairs.corrupt_tokens)
    return torch.cat([literal.cached(model, t)[literal.hook("resid_post", 1)][rows, ends] for t in tokens]).detach()


def test_the_mean_difference_is_that(family_model64: Any, tiny_task: Task) -> None:
    x = recorded(family_model64, tiny_task)
    n = len(tiny_task)
    found = fit_direction(family_model64, Examples.of_task(tiny_task), SITE)
    expected = x[:n].mean(dim=0) - x[n:].mean(dim=0)
    torch.testing.assert_close(found.vector, expected, rtol=0, atol=1e-10)
    unit = expected / expected.norm()
    assert found.high == pytest.approx(float((x[:n] @ unit).mean()), abs=1e-9)
    assert found.low == pytest.approx(float((x[n:] @ unit).mean()), abs=1e-9)
    assert found.boundary == pytest.approx((found.high + found.low) / 2)
    assert found.centre is not None
    torch.testing.assert_close(found.centre, x.mean(dim=0), rtol=0, atol=1e-10)
    assert found.norm > 1e-3


def test_the_principal_difference_is_the_first_axis_of_pairs(tiny_gpt2_64: Any) -> None:
    task = build_task(n=6)
    x = recorded(tiny_gpt2_64, task)
    found = fit_direction(tiny_gpt2_64, Examples.of_task(task), SITE, "principal_difference")
    gram = (x[:6] - x[6:]).T @ (x[:6] - x[6:])
    axis = torch.linalg.eigh(gram).eigenvectors[:, -1]
    assert abs(float(axis @ found.unit)) == pytest.approx(1, abs=1e-9)
    assert found.high > found.low


def test_a_probe_stands_at_the_minimum_of_its_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64) * torch.tensor([1, 3, 0.1, 10, 1]).double()
    labels = x[:, 0] + 0.2 * x[:, 1] + 0.3 * torch.randn(60, generator=generator, dtype=torch.float64) > 0
    weights, bias = fit_probe(x, labels, penalty=0.05)
    spread = x.std(dim=0, unbiased=False)
    w = (weights * spread).requires_grad_(True)
    b = torch.tensor(bias + float(weights @ x.mean(dim=0)), dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        logits = (x - x.mean(dim=0)) / spread @ w + b
        loss = torch.nn.functional.softplus(torch.where(labels, -logits, logits)).mean() + 0.025 * w.pow(2).sum()
        slopes = torch.autograd.grad(loss, [w, b])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-6
    assert float(((x @ weights + bias > 0) == labels).double().mean()) > 0.85
    assert float(weights.abs().max()) > 0.1


def test_a_span_is_averaged(tiny_gpt2_64: Any) -> None:
    task = build_task(n=3)
    where = torch.zeros_like(task.pairs.clean_tokens, dtype=torch.bool)
    where[:, 2:5] = True
    examples = replace(Examples.of_task(task), where=torch.cat([where, where]))
    found = record_examples(tiny_gpt2_64, examples, [SITE])[0]
    cache = literal.cached(tiny_gpt2_64, task.pairs.clean_tokens)[literal.hook("resid_post", 1)]
    torch.testing.assert_close(found[:3], cache[:, 2:5].mean(dim=1).detach(), rtol=0, atol=1e-12)


def test_splits_keep_groups_together() -> None:
    examples = Examples.of_task(build_task(n=10))
    first, second = examples.split(0.7, seed=3)
    assert not set(first.groups.tolist()) & set(second.groups.tolist())
    assert len(first) == 14
    assert len(second) == 6
    again, _ = examples.split(0.7, seed=3)
    assert torch.equal(again.tokens, first.tokens)


def test_gender_is_decodable_after_it_is_moved_and_labels_by_lot_are_not(bundled_model: Any) -> None:
    task = mw.tasks.pronoun(bundled_model, n=128).train
    she = int(task.pairs.correct[0, 0])
    task = task[[i for i in range(len(task)) if int(task.pairs.correct[i, 0]) == she]]
    sites = [Site("resid_post", 0), Site("resid_post", 3)]
    for how in ("mean_difference", "probe"):
        before, after = measure_separation(bundled_model, Examples.of_task(task), sites, how)
        assert after.accuracy == 1.0
        assert after.selectivity > 0.25
        assert before.accuracy < 0.8  # layer 0 has hardly moved it to the last token
    a, b = fit_directions(bundled_model, Examples.of_task(task), [sites[1], Site("resid_post", 4)])
    assert a.cosine(b) > 0.5


def test_a_direction_survives_its_file(tiny_gpt2: Any, tmp_path: Path) -> None:
    direction = fit_direction(tiny_gpt2, Examples.of_task(build_task(n=4)), SITE, "probe")
    again = Direction.load(direction.save(tmp_path / "gender"))
    assert torch.equal(again.vector, direction.vector)
    assert again.centre is not None
    assert (again.site, again.boundary, again.low, again.high, again.name) == (
        direction.site, direction.boundary, direction.low, direction.high, direction.name,
    )  # fmt: skip
    again.check(tiny_gpt2)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtefactError, match="no safetensors"):
        Direction.load(tmp_path / "other.safetensors")


def test_other_models_are_refused_unless_told(tiny_gpt2: Any) -> None:
    direction = fit_direction(tiny_gpt2, Examples.of_task(build_task(n=4)), SITE)
    other = build_model("llama", torch.float32)
    with pytest.raises(InputError, match="fitted in another model"):
        direction.check(other)
    direction.transferred().check(other)
    with pytest.raises(InputError, match="layer"):
        replace(direction.transferred(), site=Site("resid_post", 9)).check(other)


def test_controls_are_as_long_and_elsewhere(tiny_gpt2: Any) -> None:
    direction = fit_direction(tiny_gpt2, Examples.of_task(build_task(n=4)), SITE)
    control = direction.random_control(1)
    assert control.norm == pytest.approx(direction.norm)
    assert abs(control.cosine(direction)) < 0.9
    assert torch.equal(control.vector, direction.random_control(1).vector)
    back = direction.reversed()
    assert back.cosine(direction) == pytest.approx(-1)
    assert (back.low, back.high) == (-direction.high, -direction.low)


def test_contracts(tiny_gpt2: Any) -> None:
    task = build_task(n=4)
    examples = Examples.of_task(task)
    with pytest.raises(UnknownNameError, match="nearest: probe"):
        fit_direction(tiny_gpt2, examples, SITE, "prob")
    with pytest.raises(InputError, match="one vector per position"):
        fit_direction(tiny_gpt2, examples, Site("pattern", 0, 1))
    with pytest.raises(InputError, match="two classes"):
        replace(examples, labels=torch.ones(8, dtype=torch.bool))
    with pytest.raises(InputError, match="at least one position"):
        replace(examples, where=torch.zeros_like(examples.where))
    with pytest.raises(InputError, match="END, all, one of the spans"):
        Examples.of_task(task, "S2")
    with pytest.raises(InputError, match="empty prompt"):
        Examples.of_tokens([[1], []], [True, False])
    with pytest.raises(InputError, match="finite and of positive length"):
        Direction(torch.zeros(32), SITE)
    with pytest.raises(InputError, match="finite and of positive length"):
        Direction(torch.full((32,), float("nan")), SITE)
    with pytest.raises(InputError, match="factor above 0"):
        Direction(torch.ones(32), SITE).scaled(-1)
    same = Examples.of_tokens([[1, 2], [1, 2]], [True, False])
    with pytest.raises(MetricError, match="same mean"):
        fit_direction(tiny_gpt2, same, SITE)
    with pytest.raises(InputError, match="groups with prompts of both classes"):
        fit_direction(tiny_gpt2, Examples.of_tokens([[1, 2], [3, 4]], [True, False]), SITE, "principal_difference")
