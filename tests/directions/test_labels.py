"""Labels of any kind: several classes, a third one that is neither, numbers; and probes under shift, in a cascade."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.directions import (
    Examples,
    Labelled,
    fit_classes,
    fit_direction,
    fit_probe,
    fit_ridge,
    lengthen,
    record_examples,
    study_cascade,
    study_classes,
    study_flips,
    study_shift,
    threshold_at,
    train_probe,
)
from mechwork.directions.classes import ClassFit, fit_class_probe
from mechwork.directions.ridge import solve_ridge
from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.sites import Site
from mechwork.statistics import area_under_roc

SITE = Site("resid_post", 3)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_task(model: Any, n: int = 64) -> Labelled:
    """Sentences about women, about men, and about neither."""
    people, things = mw.tasks.pronoun(model, n=n).train, mw.tasks.agreement(model, n=n // 2).train
    she = people.pairs.correct[:, 0] == people.pairs.correct[0, 0]
    rows = she.nonzero().flatten().tolist(), (~she).nonzero().flatten().tolist()
    tokens = [people.pairs.prompt(row) for part in rows for row in part]
    tokens += [things.pairs.prompt(row) for row in range(len(things))]
    labels = ["first"] * len(rows[0]) + ["second"] * len(rows[1]) + ["neither"] * len(things)
    return Labelled.of_tokens(tokens, labels)


def test_class_probe_is_at_its_minimum_and_two_classes_are_the_probe() -> None:
    """The gradient of the written-out loss is zero; with two classes the weights differ by the binary probe's."""
    x, targets = draw(60, 4), torch.arange(60) % 3
    x[targets == 1, 0] += 1.0
    x[targets == 2, 1] -= 1.0
    found = fit_class_probe(x, targets, 3, penalty=0.05)
    mean, spread = x.mean(dim=0), x.std(dim=0, unbiased=False)
    weights = (found.weights * spread).requires_grad_()
    biases = (found.biases + found.weights @ mean).requires_grad_()
    total = 0.025 * weights.pow(2).sum()
    for row, target in zip((x - mean) / spread, targets.tolist(), strict=True):
        scores = torch.stack([row @ weights[k] + biases[k] for k in range(3)])
        total = total - (scores[target].exp() / scores.exp().sum()).log() / 60
    with torch.enable_grad():
        gradients = torch.autograd.grad(total, [weights, biases])
    assert max(float(g.abs().max()) for g in gradients) < 1e-7
    assert float((found.judge(x) == targets).double().mean()) > 0.5
    labels = targets == 0
    both = fit_class_probe(x, labels.long(), 2, penalty=0.05)
    # softmax splits w over two rows, w/2 and -w/2, so that its penalty is half as large
    alone, bias = fit_probe(x, labels, penalty=0.025)
    torch.testing.assert_close(both.weights[1] - both.weights[0], alone, rtol=0, atol=1e-6)
    assert float(both.biases[1] - both.biases[0]) == pytest.approx(bias, abs=1e-6)


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_ridge_is_least_squares_of_the_augmented_rows(shape: tuple[int, int]) -> None:
    """numpy's least squares of [z; sqrt(n penalty) I] w = [t; 0]: more rows than columns, and fewer."""
    import numpy as np

    x, t, penalty = draw(*shape), draw(shape[0], seed=1) * 3 + 7, 0.2
    weights, bias = solve_ridge(x, t, penalty)
    z = ((x - x.mean(dim=0)) / x.std(dim=0, unbiased=False)).numpy()
    rows = np.vstack([z, np.eye(shape[1]) * (shape[0] * penalty) ** 0.5])
    expected = np.linalg.lstsq(rows, np.concatenate([(t - t.mean()).numpy(), np.zeros(shape[1])]), rcond=None)[0]
    np.testing.assert_allclose((weights * x.std(dim=0, unbiased=False)).numpy(), expected, rtol=0, atol=1e-10)
    assert float((x @ weights + bias).mean()) == pytest.approx(float(t.mean()))


def test_three_classes_on_a_model(bundled_model: Any, tmp_path: Any) -> None:
    data = of_task(bundled_model)
    found = fit_classes(bundled_model, data, SITE)
    assert found.classes == ("first", "second", "neither")
    assert found.accuracy > 0.8 > 0.6 > found.control
    torch.testing.assert_close(found.confusion.sum(dim=1), torch.ones(3, dtype=torch.float64))
    x = record_examples(bundled_model, data, [SITE])[0].double()
    means = {name: x[data.rows_of(name)].mean(dim=0) for name in data.classes}
    one = found.direction("second", "first")
    torch.testing.assert_close(one.vector, means["first"] - means["second"])
    assert one.low < one.boundary < one.high
    assert one.cosine(fit_direction(bundled_model, data.between("first", "second"), SITE)) == pytest.approx(1, abs=1e-6)
    assert ClassFit.load(found.save(tmp_path / "classes")).accuracy == found.accuracy
    assert "taken for" in str(found)
    by_site = study_classes(bundled_model, data, [Site("resid_post", 0), SITE], n_controls=1)
    assert by_site.rows[1].accuracy == pytest.approx(found.accuracy)
    flips = study_flips(bundled_model, data, SITE, "first", "second", "neither", n_controls=2)
    assert [row.third_class for row in flips.rows[:3]] == ["left out", "called first", "called second"]
    assert flips.rows[0].flipped == 0
    assert all(0 <= row.flipped <= 1 for row in flips.rows)
    assert len(flips.rows) == 5


def test_a_number_is_predicted_and_by_lot_it_is_not(bundled_model: Any) -> None:
    """How many tokens a prompt has is written in the stream at its end."""
    task = mw.tasks.pronoun(bundled_model, n=64)
    rows = [task.pairs.prompt(row)[: 3 + row % 5] for row in range(len(task))]
    data = Labelled.of_tokens(rows, [float(len(row)) for row in rows], name="length")
    found = fit_ridge(bundled_model, data, SITE)
    assert found.r2 > 0.5 > 0.1 > found.control
    assert found.rank_correlation > 0.7
    x = record_examples(bundled_model, data, [SITE])[0].double()
    raised = found.predict(x + found.direction.vector) - found.predict(x)
    torch.testing.assert_close(raised, data.targets.std(unbiased=False).expand_as(raised))
    at = found.direction.unit.double() * found.direction.boundary
    side = x - (x @ found.direction.unit.double())[:, None] * found.direction.unit.double()
    middle = found.predict(side + at)
    torch.testing.assert_close(middle, data.targets.mean().expand_as(middle))


def test_thresholds_at_a_rate_and_the_area() -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.35]).double()
    labels = torch.tensor([False, False, False, False, True, True, True])
    for rate, expected in ((0.0, 0.4), (0.25, 0.3), (0.5, 0.2)):
        at = threshold_at(scores, labels, rate)
        assert at == pytest.approx(expected)
        assert float((scores[~labels] > at).double().mean()) <= rate
    pairs = [(float(p > n) + 0.5 * float(p == n)) for p in scores[labels] for n in scores[~labels]]
    assert area_under_roc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(InputError, match="show no rate below"):
        threshold_at(scores, labels, 0.1)


def test_probes_under_shift_and_in_a_cascade(bundled_model: Any) -> None:
    task = mw.tasks.pronoun(bundled_model, n=192)
    right = task.pairs.correct[:, 0]
    task = task[(right == right[0]).nonzero().flatten().tolist()]  # women against men, not against the other
    examples = Examples.of_task(task, "all")
    filler = mw.tasks.agreement(bundled_model, n=4).pairs.prompt(0)
    longer = lengthen(examples, filler, 12)
    assert longer.tokens.shape[1] == examples.tokens.shape[1] + 12
    assert torch.equal(longer.where.sum(dim=1), examples.where.sum(dim=1) + 12)
    assert torch.equal(lengthen(Examples.of_task(task), filler, 3).where.sum(dim=1), torch.ones(len(examples)).long())
    kinds = ["linear", "max_pooled"]
    study = study_shift(bundled_model, examples, {"longer": longer}, SITE, kinds=kinds, rate=0.1, n_controls=1)
    assert len(study.rows) == 4
    row = study.of("linear")
    assert row.area > 0.8 > row.control_area
    assert study.of("linear", "longer").area < row.area + 1e-9
    assert "10.0% false positives" in str(study)
    cheap, dear = ("linear", Site("resid_post", 0)), ("linear", SITE)
    cascade = study_cascade(bundled_model, examples, cheap, dear, asked=(0.0, 0.5, 1.0))
    first, middle, last = cascade.rows
    assert (first.asked, last.asked) == (0.0, 1.0)
    assert first.cost == pytest.approx(1 / 6) and last.cost == pytest.approx(4 / 6)  # noqa: PT018
    assert first.cost < middle.cost < last.cost
    assert first.by_lot == first.accuracy
    assert last.by_lot == last.accuracy
    assert cascade.cheapest(0.5) == first
    with pytest.raises(InputError, match="no row is as accurate"):
        cascade.cheapest(1.01)
    with pytest.raises(InputError, match="no earlier"):
        study_cascade(bundled_model, examples, dear, cheap)


def test_labels_are_never_made_binary_in_silence(bundled_model: Any) -> None:
    prompts, where = [[1, 2], [3, 4], [5, 6], [7, 8]], torch.ones(4, 2, dtype=torch.bool)
    groups, three = torch.arange(4), torch.tensor([0, 1, 2, 1])
    for refused in (
        lambda: Examples(torch.tensor(prompts), three, where, groups),
        lambda: train_probe(draw(4, 2, 3), where, three),
    ):
        with pytest.raises((InputError, TypeError), match="labels"):
            refused()
    mixed: Any = ["a", 1.0, "a", 2.0]
    cases: list[tuple[str, Any]] = [
        ("at least 2 prompts", lambda: Labelled.of_tokens(prompts, ["a", "a", "a", "b"])),
        ("two classes or more", lambda: Labelled.of_tokens(prompts, ["a"] * 4)),
        ("all the same", lambda: Labelled.of_tokens(prompts, [1.0] * 4)),
        ("finite numbers", lambda: Labelled.of_tokens(prompts, [1.0, float("nan"), 2.0, 3.0])),
        ("got both", lambda: Labelled.of_tokens(prompts, mixed)),
        ("Examples.of_tokens", lambda: Labelled.of_tokens(prompts, [True, False, True, False])),
        ("one label", lambda: Labelled.of_tokens(prompts, ["a", "b"])),
    ]
    numbers = Labelled.of_tokens(prompts, [1.0, 2.0, 3.0, 4.0])
    classes = Labelled.of_tokens(prompts, ["a", "b", "a", "b"])
    two = classes.between("a", "b")
    cases += [
        ("numbers, not classes", lambda: fit_classes(bundled_model, numbers, SITE)),
        ("fit_classes tells", lambda: fit_ridge(bundled_model, classes, SITE)),
        ("twice", lambda: classes.between("a", "a")),
        ("not classes", lambda: numbers.against_rest("a")),
        ("three different", lambda: study_flips(bundled_model, classes, SITE, "a", "b", "a")),
        ("has none", lambda: fit_class_probe(draw(4, 3), torch.tensor([0, 0, 2, 2]), 3)),
        ("above 0", lambda: solve_ridge(draw(4, 3), draw(4), 0.0)),
        ("another name", lambda: study_shift(bundled_model, two, {"held out": two}, SITE)),
    ]
    for words, call in cases:
        with pytest.raises((InputError, TypeError), match=words):
            call()
    with pytest.raises(UnknownNameError, match="class"):
        classes.between("a", "c")
    with pytest.raises(MetricError, match="finite"):
        solve_ridge(draw(4, 3), torch.tensor([1.0, 2.0, 3.0, float("inf")]))
    assert classes[torch.tensor([0, 2, 1, 3])].classes == ("a", "b")
    assert replace(classes, name="x").sha256() == classes.sha256()
    assert bool(classes.against_rest("a").labels.any())
