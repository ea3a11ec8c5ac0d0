"""Bases, the choice of a layer, what moves a direction, and what is left of it in another model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.directions import (
    CRITERIA,
    MAPS,
    Direction,
    Examples,
    choose_layer,
    fit_basis,
    fit_direction,
    fit_directions,
    fit_stream_map,
    record_examples,
    study_stability,
    study_steering,
    templates_of,
)
from mechwork.directions.bases import basis_of
from mechwork.directions.transfer import align
from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import build_model, build_task

SITE = Site("resid_post", 1)


def she(model: Any, part: Task) -> Task:
    token = model.tokenizer(" she", add_special_tokens=False).input_ids[0]
    return part[[i for i in range(len(part)) if int(part.pairs.correct[i, 0]) == token]]


# ---- bases -----------------------------------------------------------------------------------------------------------


def test_coordinates_are_uncorrelated_and_whitened_ones_all_as_large(tiny_gpt2_64: Any) -> None:
    examples = Examples.of_task(build_task(n=20))
    x = record_examples(tiny_gpt2_64, examples, [SITE])[0]
    svd, white = (fit_basis(tiny_gpt2_64, examples, SITE, kind, shrinkage=0.0) for kind in ("svd", "whitened"))
    covariance = torch.cov(svd.coordinates(x).T)
    torch.testing.assert_close(covariance, torch.diag(svd.variances), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        torch.cov(white.coordinates(x).T), torch.eye(len(white.axes)).double(), rtol=0, atol=1e-6
    )
    for basis in (svd, white):
        torch.testing.assert_close(basis.vectors(basis.coordinates(x)), x, rtol=0, atol=1e-9)
    assert float(svd.explained[-1]) == pytest.approx(1.0)
    assert float(svd.variances[0]) > float(svd.variances[1]) > 0
    direction = svd.direction(0)
    assert direction.norm == pytest.approx(float(svd.variances[0]) ** 0.5)
    assert float(direction.coordinate(x).std()) == pytest.approx(direction.norm)


def test_bases_refuse_what_spans_nothing(tiny_gpt2: Any) -> None:
    same = torch.ones(4, 8)
    with pytest.raises(MetricError, match="all the same"):
        basis_of(same, SITE)
    with pytest.raises(MetricError, match="not finite"):
        basis_of(same / 0, SITE)
    with pytest.raises(InputError, match="vary in 3 directions; got k=4"):
        basis_of(torch.randn(4, 8), SITE, k=4)
    with pytest.raises(UnknownNameError, match="kind of basis"):
        basis_of(torch.randn(4, 8), SITE, "pca")
    basis = fit_basis(tiny_gpt2, Examples.of_task(build_task(n=4)), SITE)
    with pytest.raises(InputError, match="32 numbers; got 5"):
        basis.coordinates(torch.zeros(2, 5))


# ---- the whitened difference and the layer ---------------------------------------------------------------------------


def test_the_whitened_difference_is_fishers(tiny_gpt2_64: Any) -> None:
    examples = Examples.of_task(build_task(n=20))
    x, y = record_examples(tiny_gpt2_64, examples, [SITE])[0], examples.labels
    found = fit_direction(tiny_gpt2_64, examples, SITE, "whitened_difference")
    covariance = torch.stack([torch.cov(x[side].T, correction=0) for side in (y, ~y)]).mean(dim=0)
    ridge = 0.1 * covariance.diagonal().mean() * torch.eye(32).double()
    expected = torch.linalg.inv(covariance + ridge) @ (x[y].mean(dim=0) - x[~y].mean(dim=0))
    assert float(found.unit @ expected / expected.norm()) == pytest.approx(1.0, abs=1e-9)
    assert abs(found.cosine(fit_direction(tiny_gpt2_64, examples, SITE))) < 0.99


def test_criteria_say_what_they_say() -> None:
    coordinates = torch.tensor([1.0, 3.0, 5.0, 7.0]).double()
    labels = torch.tensor([False, False, True, True])
    assert CRITERIA["accuracy"](coordinates, labels, 4.0) == 1.0
    assert CRITERIA["accuracy"](coordinates, labels, 6.0) == 0.75
    assert CRITERIA["discriminability"](coordinates, labels, 0.0) == pytest.approx(4.0)
    assert CRITERIA["opposite_signs"](coordinates, labels, 0.0) == pytest.approx(-2.0)
    assert CRITERIA["opposite_signs"](coordinates - 4, labels, 0.0) == pytest.approx(2.0)


def test_the_layer_is_one_that_was_not_fitted_on(bundled_model: Any) -> None:
    examples = Examples.of_task(she(bundled_model, mw.tasks.pronoun(bundled_model, n=96).train))
    by_accuracy = choose_layer(bundled_model, examples, criterion="accuracy")
    assert by_accuracy.values[0] < 0.8
    assert by_accuracy.site == Site("resid_post", 1)
    assert choose_layer(bundled_model, examples).values[3] > choose_layer(bundled_model, examples).values[0] + 1
    with pytest.raises(UnknownNameError, match="criterion of a layer"):
        choose_layer(bundled_model, examples, criterion="best")
    with pytest.raises(InputError, match="at least one site"):
        choose_layer(bundled_model, examples, [])


# ---- stability -------------------------------------------------------------------------------------------------------


def test_a_clear_direction_stays_and_a_chance_one_does_not(bundled_model: Any) -> None:
    task = she(bundled_model, mw.tasks.pronoun(bundled_model, n=96).train)
    examples = Examples.of_task(task)
    found = study_stability(
        bundled_model, examples, Site("resid_post", 3), templates=templates_of(task), n=5, relabelled=(0.1, 0.4)
    )
    assert min(row.cosine for row in found.of("resample")) > 0.95
    assert max(abs(row.shift) for row in found.of("resample")) < 0.1
    little, much = (sum(row.cosine for row in found.of("relabel") if row.amount == amount) for amount in ("10%", "40%"))
    assert little > much
    assert found.of("paraphrase")
    assert {row.amount for row in found.of("paraphrase")} <= set(task.pairs.templates)
    assert all(row.accuracy > 0.9 for row in found.of("paraphrase"))
    assert "relabel 10%" in str(found)
    generator = torch.Generator().manual_seed(0)
    by_lot = replace(examples, labels=torch.rand(len(examples), generator=generator) > 0.5)
    lost = study_stability(bundled_model, by_lot, Site("resid_post", 3), n=5, relabelled=())
    assert min(row.cosine for row in lost.of("resample")) < 0.9
    with pytest.raises(InputError, match=r"shares are in \(0, 0.5\)"):
        study_stability(bundled_model, examples, SITE, relabelled=(0.7,))
    with pytest.raises(InputError, match="one template per prompt"):
        study_stability(bundled_model, examples, SITE, templates=["a"])
    with pytest.raises(UnknownNameError, match="change"):
        lost.of("paraphrase")


# ---- transfer --------------------------------------------------------------------------------------------------------


def test_a_rotation_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    y = 2.5 * x @ rotation + 3.0
    for kind in MAPS:
        torch.testing.assert_close(align(x, y, kind, ridge=0.0), 2.5 * rotation, rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="equal widths"):
        align(x, y[:, :5])


def test_a_model_carries_a_direction_into_itself(tiny_gpt2_64: Any) -> None:
    examples = Examples.of_task(build_task(n=12), "all")
    direction = fit_direction(tiny_gpt2_64, Examples.of_task(build_task(n=12)), SITE)
    maps = [
        fit_stream_map(tiny_gpt2_64, tiny_gpt2_64, examples, examples, SITE, SITE, kind, ridge=0.0) for kind in MAPS
    ]
    for found in maps:
        assert found.fit == pytest.approx(1.0)
        carried = found.carry(direction)
        torch.testing.assert_close(carried.vector, direction.vector, rtol=0, atol=1e-8)
        assert (carried.boundary, carried.low, carried.high) == pytest.approx(
            (direction.boundary, direction.low, direction.high), abs=1e-8
        )
        carried.check(tiny_gpt2_64)
    with pytest.raises(InputError, match=r"directions at resid_post\.1"):
        maps[0].carry(fit_direction(tiny_gpt2_64, Examples.of_task(build_task(n=4)), Site("resid_post", 2)))
    with pytest.raises(InputError, match="token by token"):
        fit_stream_map(tiny_gpt2_64, tiny_gpt2_64, examples, Examples.of_task(build_task(n=12)), SITE, SITE)


def test_gender_is_carried_from_one_bundled_model_into_another(bundled_model: Any) -> None:
    """By a map fitted on other tasks' prompts, which know nothing of it; a random direction is carried too."""
    large = mw.load_model("gpt2-12l")
    here, there = Site("resid_post", 3), Site("resid_post", 7)
    small_texts, large_texts = (Examples.of_task(mw.tasks.ioi(m, n=48), "all") for m in (bundled_model, large))
    direction = fit_direction(
        bundled_model, Examples.of_task(she(bundled_model, mw.tasks.pronoun(bundled_model, n=96).train)), here
    )
    task = mw.tasks.pronoun(large, n=96)
    own = fit_direction(large, Examples.of_task(she(large, task.train)), there)
    found = fit_stream_map(bundled_model, large, small_texts, large_texts, here, there)
    carried, chance = found.carry(direction), found.carry(direction.random_control(1))
    assert carried.cosine(own) > 0.3
    assert abs(chance.cosine(own)) < 0.25
    others = [mw.tasks.agreement(large, n=16).test]
    reached = [
        study_steering(
            large, she(large, task.test), d, methods=["add"], strengths=[1.0], others=others, n_random=0
        ).rows[0]
        for d in (carried, chance)
    ]
    assert reached[0].success > 0.4 > reached[1].success


# ---- other widths and layers -----------------------------------------------------------------------------------------


def test_directions_of_another_layer_or_width_are_refused(tiny_gpt2: Any) -> None:
    direction = fit_directions(tiny_gpt2, Examples.of_task(build_task(n=4)), [SITE])[0]
    with pytest.raises(InputError, match="layers of this model are 0 to 2"):
        Direction(direction.vector, Site("resid_post", 7)).check(tiny_gpt2)
    with pytest.raises(InputError, match="32 numbers in this model"):
        Direction(torch.ones(33), SITE).check(tiny_gpt2)
    with pytest.raises(InputError, match="another model"):
        direction.check(build_model("gpt2", torch.float32, seed=1))
