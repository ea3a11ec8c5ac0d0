"""Intervals and p-values against their definitions written out, and against what must hold."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechwork
from mechwork.errors import InputError
from mechwork.patching import patch
from mechwork.statistics import (
    average_ranks,
    bootstrap_agreement,
    bootstrap_interval,
    bootstrap_weights,
    holm,
    kl_nats,
    ordinal_ranks,
    pearson,
    percentile_interval,
    sign_flip_p,
    spearman,
)
from mechwork.tasks.task import Task


def test_sign_flips_of_few_pairs_are_exact() -> None:
    effects = torch.tensor([[1.0, -3.0], [2.0, 1.0], [0.5, 1.0], [1.5, 0.5]]).double()
    expected = []
    for column in effects.T.tolist():
        observed = abs(sum(column))
        patterns = list(itertools.product((-1, 1), repeat=4))
        expected.append(
            sum(abs(sum(s * e for s, e in zip(p, column, strict=True))) >= observed - 1e-12 for p in patterns) / 16
        )
    assert sign_flip_p(effects).tolist() == pytest.approx(expected)
    assert expected[0] == 2 / 16
    assert expected[1] > 0.5


def test_sign_flips_of_many_pairs_are_uniform_without_effect_and_small_with_one(seed: int) -> None:
    noise = torch.randn(64, 500)
    p = sign_flip_p(noise, n=500)
    assert 0.4 < float(p.mean()) < 0.6
    assert 0.02 < float((p < 0.05).float().mean()) < 0.09
    assert float(sign_flip_p(noise + 2, n=500).max()) == pytest.approx(1 / 501)


def test_intervals_cover_as_often_as_they_say(seed: int) -> None:
    sample = 1.5 + torch.randn(50, 400).double()
    low, high = bootstrap_interval(sample, level=0.9, n=1000)
    covered = ((low <= 1.5) & (high >= 1.5)).double().mean()
    assert 0.84 < float(covered) < 0.94
    torch.testing.assert_close((high - low).mean(), torch.tensor(2 * 1.645 / 50**0.5).double(), rtol=0.06, atol=0)


def test_one_value_has_an_interval_of_no_width() -> None:
    low, high = bootstrap_interval(torch.full((5, 2, 3), 2.0))
    assert low.shape == (2, 3)
    assert torch.equal(low, high)


def test_holm_by_hand() -> None:
    assert holm(torch.tensor([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_methods_of_an_effect_are_deterministic(tiny_gpt2: Any, tiny_task: Task) -> None:
    effect = patch(tiny_gpt2, tiny_task, ["resid_pre"])["resid_pre"]
    low, high = effect.interval()
    assert low.shape == effect.values.shape
    assert torch.equal(low, effect.interval()[0])
    assert bool((low <= effect.values + 1e-6).all())
    assert bool((effect.values <= high + 1e-6).all())
    assert effect.p_values().shape == effect.values.shape
    assert float(effect.p_values().min()) >= 2 / 8


def test_refused() -> None:
    wrong: list[dict[str, Any]] = [{"level": 1.0}, {"n": 1}]
    for arguments in wrong:
        with pytest.raises(InputError, match="between 0 and 1"):
            bootstrap_interval(torch.ones(3, 2), **arguments)
    with pytest.raises(InputError, match="two pairs"):
        bootstrap_interval(torch.ones(1, 2))
    with pytest.raises(InputError, match="at least 1"):
        sign_flip_p(torch.ones(2, 2), n=0)


def test_ranks_correlations_and_divergence_by_hand() -> None:
    assert average_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert ordinal_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [0.75, 0.25, 1.0, 0.5]
    a, b = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([1.0, 8.0, 9.0]).double()
    assert pearson(a, b) == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]), abs=1e-12)
    assert spearman(a, b) == pytest.approx(1.0)
    assert math.isnan(pearson(a, torch.ones(3).double()))
    p, q = torch.randn(2, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
    assert float(expected.min()) > 0.1
    torch.testing.assert_close(kl_nats(p, q), expected, rtol=1e-12, atol=0)


def test_the_divergence_and_the_ranks_are_written_once() -> None:
    package = Path(mechwork.__file__).parent
    texts = {file.relative_to(package).as_posix(): file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    again = re.compile(r"\.exp\(\) \* \(\w+(?:\.\w+)* - ")
    assert [name for name, text in texts.items() if again.search(text)] == ["statistics.py"]


def test_resampling_weights_are_shares() -> None:
    weights = bootstrap_weights(5, 100, seed=3)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(100))
    low, high = percentile_interval(torch.arange(101.0)[:, None], 0.9)
    assert (low.item(), high.item()) == pytest.approx((5.0, 95.0))


def test_agreement_intervals_are_those_of_single_resamples() -> None:
    """Every number of every resample is the plain function's, ties included."""
    generator = torch.Generator().manual_seed(2)
    b = torch.randint(-3, 4, (12,), generator=generator).double()
    a = b + torch.randint(-1, 2, (12,), generator=generator)
    found = bootstrap_agreement(a, b, level=0.9, n=200, seed=7)
    drawn = torch.randint(12, (200, 12), generator=torch.Generator().manual_seed(7))
    literal = {
        "pearson": [pearson(a[rows], b[rows]) for rows in drawn],
        "spearman": [spearman(a[rows], b[rows]) for rows in drawn],
        "relative_error": [float((a[rows] - b[rows]).norm() / b[rows].norm()) for rows in drawn],
    }
    for name, values in literal.items():
        ends = np.quantile(values, [0.05, 0.95])
        assert found[name] == pytest.approx(tuple(ends), rel=1e-9)
        assert ends[0] < ends[1]
    assert all(low != low for low, _ in bootstrap_agreement(a[:2], b[:2]).values())
    with pytest.raises(InputError, match="level"):
        bootstrap_agreement(a, b, level=1.0)
