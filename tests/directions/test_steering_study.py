"""Ways to steer and their study: numbers by hand, random directions beside them, overflow by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.directions import (
    METHODS,
    AsFar,
    Direction,
    Examples,
    fit_direction,
    steering_write,
    study_steering,
    transport_write,
)
from mechwork.directions.bench import repetition
from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.interventions import Write, intervene, replace_at
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import build_task
from tests.reference import literal

SITE = Site("resid_post", 1)


@pytest.fixture
def fitted(tiny_gpt2_64: Any) -> tuple[Any, Task, Direction]:
    task = build_task(n=6)
    return tiny_gpt2_64, task, fit_direction(tiny_gpt2_64, Examples.of_task(task), SITE)


@pytest.mark.parametrize("method", list(METHODS))
def test_strength_zero_is_nothing_and_one_is_the_method(fitted: tuple[Any, Task, Direction], method: str) -> None:
    _, _, d = fitted
    x = torch.randn(4, 3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + d.boundary * d.unit
    nothing = replace_at(steering_write(d, method, 0.0), x, 0)
    torch.testing.assert_close(nothing, x)
    moved = replace_at(steering_write(d, method, 1.0), x, 0)
    below = d.coordinate(x) < d.boundary
    assert float((moved - x).abs().max()) > 1e-6
    if method.endswith("below"):
        assert torch.equal(moved[~below], x[~below])
        assert bool(below.any())
        assert bool((~below).any())
    targets = {
        "project_to": torch.full_like(d.coordinate(x), d.high),
        "project_out": torch.zeros_like(d.coordinate(x)),
        "mirror_below": torch.where(below, 2 * d.boundary - d.coordinate(x), d.coordinate(x)),
        "clamp": d.coordinate(x).clamp(min=d.high),
        "scale": 2 * d.coordinate(x),
        "add": d.coordinate(x) + d.high - d.low,
    }
    if method in targets:
        torch.testing.assert_close(d.coordinate(moved), targets[method])
    if method.startswith("rotate"):
        torch.testing.assert_close(moved.norm(dim=-1), x.norm(dim=-1))


def test_rotation_takes_the_one_class_mean_to_the_other(fitted: tuple[Any, Task, Direction]) -> None:
    _, _, d = fitted
    assert d.centre is not None
    across = d.centre - (d.centre @ d.unit) * d.unit
    negative, positive = across + d.low * d.unit, across + d.high * d.unit
    turned = replace_at(steering_write(d, "rotate", 1.0), negative[None, None], 0)[0, 0]
    torch.testing.assert_close(turned / turned.norm(), positive / positive.norm())


def test_transport_takes_mean_and_spread_to_mean_and_spread(fitted: tuple[Any, Task, Direction]) -> None:
    from mechwork.directions import record_examples

    model, task, _ = fitted
    examples = Examples.of_task(task)
    x = record_examples(model, examples, [SITE])[0]
    moved = replace_at(transport_write(model, examples, SITE)(1.0), x[~examples.labels][None], 0)[0]
    torch.testing.assert_close(moved.mean(dim=0), x[examples.labels].mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.std(dim=0), x[examples.labels].std(dim=0), rtol=1e-4, atol=1e-4)


def test_a_study_says_what_a_hook_gives(fitted: tuple[Any, Task, Direction]) -> None:
    model, task, d = fitted
    other, text = build_task(n=4), task.pairs.clean_tokens[:2]
    study = study_steering(model, task, d, methods=["add"], strengths=[0.5, 2.0], others=[other], text=text, n_random=1)
    row = study.of("add")[1]

    def steered(tokens: torch.Tensor) -> torch.Tensor:
        hook = (literal.hook("resid_post", 1), lambda x, hook: x + 2 * d.vector)
        with torch.no_grad():
            return model.run_with_hooks(tokens, fwd_hooks=[hook])

    with torch.no_grad():
        clean = task.measure(model(task.pairs.clean_tokens))
        corrupt = task.measure(model(task.pairs.corrupt_tokens))
        plain = [model(tokens).log_softmax(-1) for tokens in (other.pairs.clean_tokens, text)]
    reached = task.measure(steered(task.pairs.corrupt_tokens))
    assert row.success == pytest.approx(float((reached - corrupt).mean() / (clean - corrupt).mean()))
    moved = [steered(tokens).log_softmax(-1) for tokens in (other.pairs.clean_tokens, text)]
    divergences = [(p.exp() * (p - q)).sum(-1) for p, q in zip(plain, moved, strict=True)]
    expected = (divergences[0][:, -1].mean() + divergences[1].mean()) / 2
    assert row.kl == pytest.approx(float(expected))
    spread = [-(q.exp() * q).sum(-1) + (p.exp() * p).sum(-1) for p, q in zip(plain, moved, strict=True)]
    assert row.entropy_shift == pytest.approx(float((spread[0][:, -1].mean() + spread[1].mean()) / 2))
    assert row.entropy_shift != 0
    assert study.of("add", "random 0")[1].entropy_shift != row.entropy_shift
    surprisal = -moved[1][:, :-1].gather(-1, text[:, 1:, None]).mean()
    assert row.perplexity == pytest.approx(float(surprisal.exp()))
    assert abs(row.success) > 1e-3
    assert row.success_interval[0] <= row.success <= row.success_interval[1]
    assert study.best("add", max_kl=0.0) == 0.0
    assert study.best("add", max_kl=1e9) == max(0.0, *(r.success for r in study.of("add")))
    assert study.controls == ("random 0",)
    assert len(study.to_dataframe()) == 4
    assert "success" in str(study)


def test_controls_are_moved_as_far_and_continuations_judged(bundled_model: Any) -> None:
    """AsFar moves every state as far as the method does; repetition and oddness are those of continuations made by
    hand.
    """
    task = mw.tasks.pronoun(bundled_model, n=32)
    direction = fit_direction(bundled_model, Examples.of_task(task.train), Site("resid_post", 4))
    text = mw.tasks.ioi(bundled_model, n=32).train.pairs.clean_tokens[:4, :12]
    study = study_steering(
        bundled_model, task.test, direction, methods=["mirror_below"], strengths=[2.0], text=text, n_random=0,
        n_as_far=1,
        n_generated=6,
    )  # fmt: skip
    assert study.controls == ("as far 0",)
    row = study.of("mirror_below")[0]
    with intervene(bundled_model, [Write(direction.site, steering_write(direction, "mirror_below", 2.0))]):
        grown = bundled_model.generate(
            text[:, :8], max_new_tokens=6, do_sample=False, stop_at_eos=False, use_past_kv_cache=False, verbose=False
        )
    grams = [[tuple(r[i : i + 3]) for i in range(4)] for r in grown[:, 8:].tolist()]
    assert row.repetition == pytest.approx(sum(1 - len(set(g)) / 4 for g in grams) / 4)
    with torch.no_grad():
        log_p = bundled_model(grown).log_softmax(dim=-1)
    own = torch.stack([log_p[:, i - 1].gather(-1, grown[:, i : i + 1])[:, 0] for i in range(8, 14)])
    assert row.oddness == pytest.approx(float((-own.mean()).exp()), rel=1e-4)
    assert study.plain_oddness is not None
    assert row.oddness != pytest.approx(study.plain_oddness, rel=1e-3)
    assert "oddness" in str(study)
    x = torch.randn(2, 3, len(direction.vector))
    write = steering_write(direction, "mirror_below", 2.0)
    far = replace_at(AsFar(write, direction.random_control(1).unit), x, 0) - x
    torch.testing.assert_close(far.norm(dim=-1), (replace_at(write, x, 0) - x).norm(dim=-1))
    assert float(far.norm()) > 1
    with pytest.raises(InputError, match="at least 8 tokens"):
        study_steering(bundled_model, task.test, direction, text=text[:, :6], n_generated=6)


def test_repetition_counts_trigrams() -> None:
    assert repetition(torch.tensor([[1, 2, 3, 1, 2, 3], [1, 2, 3, 4, 5, 6]])) == pytest.approx((1 / 4 + 0) / 2)
    assert repetition(torch.tensor([[7] * 5])) == pytest.approx(1 - 1 / 3)
    assert repetition(torch.tensor([[1, 2]])) == 0


def test_gender_is_steered_by_its_direction_and_not_by_random_ones(bundled_model: Any) -> None:
    """Mirroring only what is on the wrong side does most at least cost."""
    task = mw.tasks.pronoun(bundled_model, n=128)
    she = int(task.train.pairs.correct[0, 0])

    def only(part: Task) -> Task:
        return part[[i for i in range(len(part)) if int(part.pairs.correct[i, 0]) == she]]

    direction = fit_direction(bundled_model, Examples.of_task(only(task.train)), Site("resid_post", 4))
    other = mw.tasks.agreement(bundled_model, n=32).test
    study = study_steering(
        bundled_model, only(task.test), direction, methods=["add", "mirror_below"], strengths=[1.0], others=[other],
        n_random=2,
    )  # fmt: skip
    add, mirror = study.of("add")[0], study.of("mirror_below")[0]
    assert min(add.success, mirror.success) > 0.8
    assert mirror.accuracy > 0.95
    assert mirror.kl < add.kl / 5
    for method in ("add", "mirror_below"):
        assert max(study.of(method, control)[0].success for control in study.controls) < 0.4
    assert mirror.other_accuracy == pytest.approx(study.plain_accuracy, abs=0.03)


def test_generation_is_steered_and_undone(bundled_model: Any) -> None:
    task = mw.tasks.pronoun(bundled_model, n=64).train
    direction = fit_direction(bundled_model, Examples.of_task(task), Site("resid_post", 4))
    tokens = task.pairs.clean_tokens[:2]
    plain = bundled_model.generate(tokens, max_new_tokens=3, do_sample=False, verbose=False)
    with intervene(bundled_model, [Write(direction.site, steering_write(direction, "add", 8.0))]):
        moved = bundled_model.generate(tokens, max_new_tokens=3, do_sample=False, verbose=False)
    again = bundled_model.generate(tokens, max_new_tokens=3, do_sample=False, verbose=False)
    assert torch.equal(plain, again)
    assert not torch.equal(plain, moved)


def test_contracts(fitted: tuple[Any, Task, Direction]) -> None:
    model, task, d = fitted
    with pytest.raises(UnknownNameError, match="nearest: add"):
        steering_write(d, "ad")
    with pytest.raises(InputError, match="finite number"):
        steering_write(d, "add", float("inf"))
    with pytest.raises(InputError, match="side effects"):
        study_steering(model, task, d)
    with pytest.raises(UnknownNameError, match="way to steer"):
        study_steering(model, task, d, methods=["ad"], others=[task])
    with pytest.raises(MetricError, match=r"overflows float64 \(.*\), first in layer 1"):
        study_steering(model, task, d, methods=["scale"], strengths=[1e308], others=[task], n_random=0)
    bare = Direction(d.vector, SITE)
    with pytest.raises(InputError, match="mean of the examples"):
        steering_write(bare, "rotate")
