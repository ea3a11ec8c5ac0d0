"""A probe on line against lists and sums, the clusters it chooses, and neurons' separability against scipy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import f_oneway
from torch import Tensor

import mechwork as mw
from mechwork.directions import (
    ClusteredVectors,
    Examples,
    Labelled,
    OnlineProbe,
    SeparabilityStudy,
    fit_clusters,
    record_examples,
    study_separability,
    train_online,
)
from mechwork.directions.separability import nearest_mean_accuracy
from mechwork.errors import InputError, MetricError
from mechwork.sites import Site
from tests.reference.online_probe import online_pass


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_one_pass_is_that_of_lists_and_sums() -> None:
    x, targets = draw(40, 5), torch.arange(40) % 3
    x[targets == 1, 0] += 2
    x[:, 4] = 7.0  # never varies
    found = train_online(x, targets, 3, rate=2.0)
    weights, biases, said = online_pass(x.tolist(), targets.tolist(), 3, 2.0)
    np.testing.assert_allclose(found.probe.weights.numpy(), weights, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.probe.biases.numpy(), biases, rtol=0, atol=1e-9)
    assert found.right == sum(int(a == b) for a, b in zip(said, targets.tolist(), strict=True))
    again = OnlineProbe(5, 3, rate=2.0)
    assert [again.learn(row, int(k)) for row, k in zip(x, targets, strict=True)] == said
    assert np.abs(weights).max() > 0.05


def test_it_learns_what_can_be_learnt() -> None:
    x, targets = draw(200, 8, seed=1), torch.arange(200) % 2
    x[targets == 1, :2] += 2.5
    found = train_online(x, targets, 2)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    lot = train_online(x, targets[order], 2)
    assert found.as_they_came > 0.85 > 0.65 > lot.as_they_came
    assert float((found.probe.judge(x) == targets).double().mean()) > 0.9


def test_clusters_chosen_by_a_probe_on_line(bundled_model: Any, tmp_path: Any) -> None:
    examples, site = Examples.of_task(mw.tasks.pronoun(bundled_model, n=96).train), Site("resid_post", 3)
    found = fit_clusters(bundled_model, examples, site, 2, online=True, n_controls=2)
    assert found.agreement > found.control + 0.2
    assert found.as_they_came > found.control_as_they_came + 0.2
    assert "on line" in str(ClusteredVectors.load(found.save(tmp_path / "on_line")))
    whole = fit_clusters(bundled_model, examples, site, 2, n_controls=1)
    torch.testing.assert_close(found.vectors, whole.vectors)
    assert not torch.equal(found.weights, whole.weights)
    assert "on line" not in str(whole)


def test_separability_is_that_of_scipy_and_a_loop(tiny_gpt2_64: Any, tmp_path: Any) -> None:
    prompts = [[3 * i % 90, 5 * i % 90, (11, 40, 73)[i % 3]] for i in range(60)]
    data = Labelled.of_tokens(prompts, [("a", "b", "c")[i % 3] for i in range(60)])
    sites = [Site("mlp_post", 0), Site("mlp_post", 2)]
    found = study_separability(tiny_gpt2_64, data, sites, n_controls=2)
    fitted, tested = data.split_rows(seed=0)
    x = record_examples(tiny_gpt2_64, data, sites).double()
    for i in range(2):
        for unit in range(0, x.shape[2], 16):
            values = [x[i, fitted, unit][data.targets[fitted] == k].numpy() for k in range(3)]
            f, n = f_oneway(*values).statistic, len(fitted)
            assert float(found.eta2[i, unit]) == pytest.approx(2 * f / (2 * f + n - 3))
            away = [np.mean(values[k]) - np.mean(np.concatenate(values[:k] + values[k + 1 :])) for k in range(3)]
            k = int(np.argmax(np.abs(away)))
            assert int(found.outstanding[i, unit]) == (k + 1) * (1 if away[k] > 0 else -1)
        best = found.rows[i].best
        means = [float(x[i, fitted, best][data.targets[fitted] == k].mean()) for k in range(3)]
        right: dict[int, list[bool]] = {0: [], 1: [], 2: []}
        for row in tested.tolist():
            nearest = int(np.argmin([abs(float(x[i, row, best]) - mean) for mean in means]))
            right[int(data.targets[row])].append(nearest == int(data.targets[row]))
        assert found.rows[i].accuracy == pytest.approx(np.mean([np.mean(part) for part in right.values()]))
    assert found.rows[0].separating > found.rows[0].by_lot
    assert sum(found.counts().values()) == sum(row.separating for row in found.rows)
    assert found.top(1)[0][2] == float(found.eta2.max())
    assert "units separate a, b, c" in str(SeparabilityStudy.load(found.save(tmp_path / "neurons")))
    assert nearest_mean_accuracy(torch.tensor([0.0, 1.0, 0.1, 0.9]), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1]),
                                 torch.tensor([2, 3]), ("a", "b")) == 1.0  # fmt: skip


def test_contracts(tiny_gpt2_64: Any) -> None:
    numbers = Labelled.of_tokens([[1, 2], [2, 3], [3, 4]], [1.0, 2.0, 3.0])
    classes = Labelled.of_tokens([[1, 2], [2, 3], [3, 4], [4, 5]], ["a", "a", "b", "b"])
    with pytest.raises(InputError, match="numbers, not classes"):
        study_separability(tiny_gpt2_64, numbers)
    with pytest.raises(InputError, match="two lots"):
        study_separability(tiny_gpt2_64, classes, n_controls=1)
    with pytest.raises(InputError, match="one site or more"):
        study_separability(tiny_gpt2_64, classes, [])
    with pytest.raises(InputError, match="two classes or more"):
        OnlineProbe(3, 1)
    with pytest.raises(InputError, match="classes are 0 to 1"):
        OnlineProbe(3, 2).learn(torch.zeros(3), 2)
    with pytest.raises(MetricError, match="not finite"):
        OnlineProbe(3, 2).learn(torch.full((3,), torch.inf), 1)
    assert OnlineProbe(3, 2).as_they_came != OnlineProbe(3, 2).as_they_came
