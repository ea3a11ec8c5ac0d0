"""Axes against signals: canonical correlation against scipy's generalised eigenproblem, ICA against planted sources."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.linalg
import torch

from mechwork.directions import Labelled, SignalAxes, fit_axes, record_examples
from mechwork.directions.axes import canonical, find_independent, whitening
from mechwork.errors import InputError, UnknownNameError
from mechwork.sites import Site

SITE = Site("resid_post", 1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_canonical_correlation_is_scipys() -> None:
    z, noise = draw(200, 5), draw(200, 3, seed=1)
    s = z[:, :3] @ draw(3, 3, seed=2) + noise
    a, b = canonical(z, s, 1e-12)
    x, y = (z - z.mean(0)).numpy(), ((s - s.mean(0)) / s.std(0, unbiased=False)).numpy()
    xx, yy, xy = x.T @ x / 200, y.T @ y / 200, x.T @ y / 200
    squares = scipy.linalg.eigh(xy @ scipy.linalg.inv(yy) @ xy.T, xx, eigvals_only=True)[::-1][:3]
    found = [
        float(torch.corrcoef(torch.stack([z @ a[:, i], s / s.std(0, unbiased=False) @ b[:, i]]))[0, 1])
        for i in range(3)
    ]
    assert found == pytest.approx((squares**0.5).tolist(), abs=1e-8)


def test_independent_sources_are_found_again() -> None:
    even = torch.rand(4000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sources = torch.stack([draw(4000).sign() + 0.1 * draw(4000, seed=1), draw(4000, seed=2).pow(3), even], dim=1)
    x = sources @ draw(3, 3, seed=4)
    centre, whiten = whitening(x, 3)
    z = (x - centre) @ whiten
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)
    W = find_independent(z)
    torch.testing.assert_close(W.T @ W, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)
    table = torch.corrcoef(torch.cat([z @ W, sources], dim=1).T)[:3, 3:].abs()
    assert float(table.max(dim=1).values.min()) > 0.98
    assert sorted(table.argmax(dim=1).tolist()) == [0, 1, 2]
    w = W[:, 0]  # a fixed point of the one-unit rule, told row by row
    new = sum((row * (row @ w).tanh() - (1 - (row @ w).tanh() ** 2) * w for row in z), torch.zeros(3)) / len(z)
    assert abs(float(new @ w / new.norm())) == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("how", ["cca", "ica"])
def test_a_signal_of_the_states_is_found_and_noise_is_not(tiny_gpt2_64: Any, how: str, tmp_path: Any) -> None:
    model = tiny_gpt2_64
    prompts = torch.randint(97, (60, 6), generator=torch.Generator().manual_seed(0)).tolist()
    data = Labelled.of_tokens(prompts, [float(i) for i in range(60)])
    x = record_examples(model, data, [SITE])[0].double()
    train, _ = data.split_rows(seed=0)
    centre, whiten = whitening(x[train], 6)
    z = (x - centre) @ whiten
    planted = z @ (find_independent(z[train])[:, 0] if how == "ica" else draw(6))
    signals = torch.stack([draw(60, seed=9), planted + 0.1 * draw(60, seed=8)], dim=1)
    found = fit_axes(model, data, signals, SITE, how, names=("noise", "planted"), n_components=6, n_axes=1)
    assert found.signals == ("planted",)
    assert abs(found.held_out[0]) > 0.6 > found.control[0]
    moved = found.coordinates(x + found.direction().vector) - found.coordinates(x)
    torch.testing.assert_close(moved[:, 0], torch.ones(60, dtype=torch.float64), rtol=0, atol=1e-4)
    assert SignalAxes.load(found.save(tmp_path / "axes")).held_out == found.held_out
    assert "by lot" in str(found)


def test_bad_input_is_refused(tiny_gpt2_64: Any) -> None:
    prompts = torch.randint(97, (20, 5), generator=torch.Generator().manual_seed(0)).tolist()
    data, signals = Labelled.of_tokens(prompts, [float(i) for i in range(20)]), draw(20, 2)

    def refused(words: str, given: Any, how: str = "cca", error: Any = InputError, **settings: Any) -> None:
        with pytest.raises(error, match=words):
            fit_axes(tiny_gpt2_64, data, given, SITE, how, **settings)

    refused("way to find axes", signals, "pca", UnknownNameError)
    refused("one row per prompt", signals[:19])
    refused("finite", signals.where(signals > -9, signals) * float("nan"))
    refused("does not vary", torch.cat([signals, torch.ones(20, 1)], dim=1))
    refused("components are 1 to 13", signals, n_components=14)
    refused("a name", signals, names=("one",))
