"""Probes: where each kind must win, thresholds, control tasks by type, one class refused; the host's sparse probes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.directions import (
    KINDS,
    Examples,
    best_threshold,
    probes,
    record_examples,
    record_positions,
    study_probes,
    sweep_sparse_probe,
    train_probe,
)
from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.sites import Site
from tests.families import build_task
from tests.reference import literal

SITE = Site("resid_post", 1)


def draw(n: int, n_pos: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, n_pos, 6, generator=generator, dtype=torch.float64)
    return x, torch.ones(n, n_pos, dtype=torch.bool), generator


def right(kind: str, data: Any) -> float:
    """Accuracy on the second half of a probe fitted on the first."""
    x, where, labels = data
    half = len(x) // 2
    probe = train_probe(x[:half], where[:half], labels[:half], kind)
    return float(((probe.scores(x[half:], where[half:]) > 0) == labels[half:]).double().mean())


def test_two_layers_see_an_exclusive_or_and_one_does_not() -> None:
    x, where, _ = draw(400, 1, 0)
    data = x, where, (x[:, 0, 0] > 0) ^ (x[:, 0, 1] > 0)
    assert right("two_layer", data) > 0.85
    assert right("linear", data) < 0.65


def test_pooled_probes_find_the_one_position_that_says_it() -> None:
    x, where, generator = draw(300, 24, 1)
    place = torch.randint(24, (300,), generator=generator)
    labels = torch.arange(300) % 2 == 0
    x[torch.arange(300), place, 0] += 8.0  # "look here"
    x[torch.arange(300), place, 1] += torch.where(labels, 2.5, -2.5)
    data = x, where, labels
    assert right("attention_pooled", data) > 0.9
    assert right("linear", data) < 0.8
    alarm, _, generator = draw(300, 24, 2)
    alarm[labels, place[labels], 2] += 8.0  # only the positive class has it, anywhere
    assert right("max_pooled", (alarm, where, labels)) > 0.9


@pytest.mark.parametrize("kind", list(KINDS))
def test_unmarked_positions_do_not_count(kind: str) -> None:
    x, where, _ = draw(30, 5, 3)
    labels = x[:, 0, 0] > 0
    where[:, 3:] = False
    probe = train_probe(x, where, labels, kind)
    other = x.clone()
    other[:, 3:] = 1e3
    torch.testing.assert_close(probe.scores(other, where), probe.scores(x, where))
    again = train_probe(x, where, labels, kind)
    assert all(torch.equal(again.parts[name], part) for name, part in probe.parts.items())
    assert float(probe.scores(x, where).std()) > 1e-3


def rolled(p: Any, window: Any) -> float:
    """The attention-weighted mean of one window."""
    weights = [float((v @ p["q"]).exp()) for v in window]
    return sum(a * float(v @ p["w"]) for a, v in zip(weights, window, strict=True)) / sum(weights)


def test_scores_are_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "WINDOW", 2)
    x, where, _ = draw(20, 4, 4)
    labels = x[:, 0, 0] + x[:, 1, 0] > 0
    for kind in KINDS:
        probe = train_probe(x, where, labels, kind)
        p = probe.parts
        for row in range(3):
            z = [(v - probe.mean) / probe.spread for v in x[row]]
            middle = sum(z[1:], z[0]) / 4
            expected = {
                "linear": lambda p=p, m=middle: m @ p["w"] + p["b"],
                "two_layer": lambda p=p, m=middle: (m @ p["W"] + p["c"]).clamp(min=0) @ p["v"] + p["b"],
                "attention_pooled": lambda p=p, z=z: sum(
                    float((v @ p["q"]).exp()) * float(v @ p["w"]) for v in z
                ) / sum(float((v @ p["q"]).exp()) for v in z) + p["b"],
                "max_pooled": lambda p=p, z=z: max(float(v @ p["w"]) for v in z) + p["b"],
                "multimax": lambda p=p, z=z: sum(max(float(v @ w) for v in z) for w in p["W"]) + p["b"],
                "rolling_pooled": lambda p=p, z=z: max(rolled(p, z[max(0, t - 1) : t + 1]) for t in range(4)) + p["b"],
            }[kind]()  # fmt: skip
            assert float(probe.scores(x, where)[row]) == pytest.approx(float(expected), abs=1e-9)


def test_thresholds_stand_in_the_gap() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, 5.0, 6.0]).double()
    assert best_threshold(scores, torch.tensor([False, False, False, True, True])) == pytest.approx(3.5)
    uneven = torch.tensor([True, False, True, True, True])  # one negative: its side counts as much as the four
    assert best_threshold(scores, uneven) == pytest.approx(1.5)


def test_a_control_by_type_can_be_remembered(bundled_model: Any) -> None:
    """A noun's label by lot is known again in other sentences with the same noun, where the noun itself is read."""
    task = mw.tasks.agreement(bundled_model, n=256).train
    at_noun = Examples.of_task(task, "NOUN", types="NOUN")
    place = Site("resid_post", 0)
    study = study_probes(bundled_model, at_noun, [place], ["linear"], n_controls=3)
    row = study.of("linear", place)
    assert row.control > 0.65
    by_group = study_probes(bundled_model, replace(at_noun, types=None), [place], ["linear"], n_controls=3)
    assert by_group.rows[0].control < row.control - 0.05
    assert "type of prompt" in str(study)
    assert "group" in str(by_group)


def test_gender_stands_at_the_end_and_somewhere(bundled_model: Any) -> None:
    task = mw.tasks.pronoun(bundled_model, n=96).train
    she = int(task.pairs.correct[0, 0])
    labels = torch.cat([task.pairs.correct[:, 0] == she, task.pairs.correct[:, 0] != she])
    anywhere = replace(Examples.of_task(task, "all"), labels=labels)
    study = study_probes(bundled_model, anywhere, [Site("resid_post", 1)], ["linear", "attention_pooled"], n_controls=1)
    assert min(row.accuracy for row in study.rows) > 0.9
    sweep = sweep_sparse_probe(
        bundled_model, replace(Examples.of_task(task), labels=labels), Site("resid_post", 3), (1, 8)
    )
    assert sweep.results[1].metrics.accuracy > 0.9
    assert len(sweep.random_coordinate_controls) == 2


def test_positions_are_recorded_as_they_are(tiny_gpt2_64: Any) -> None:
    task = build_task(n=3)
    found = record_positions(tiny_gpt2_64, Examples.of_task(task, "all"), SITE)
    cache = literal.cached(tiny_gpt2_64, task.pairs.clean_tokens)[literal.hook("resid_post", 1)]
    torch.testing.assert_close(found[:3], cache, rtol=0, atol=1e-12)
    ends = Examples.of_task(task)
    at_end = record_positions(tiny_gpt2_64, ends, SITE)
    torch.testing.assert_close(at_end.sum(dim=1), record_examples(tiny_gpt2_64, ends, [SITE])[0])


def test_contracts(tiny_gpt2: Any) -> None:
    x, where, _ = draw(8, 2, 5)
    with pytest.raises(InputError, match="two classes"):
        train_probe(x, where, torch.ones(8, dtype=torch.bool))
    with pytest.raises(UnknownNameError, match="kind of probe"):
        train_probe(x, where, torch.arange(8) > 3, "three_layer")
    with pytest.raises(MetricError, match="not finite"):
        train_probe(x / 0, where, torch.arange(8) > 3)
    probe = train_probe(x, where, torch.arange(8) > 3, "linear")
    with pytest.raises(InputError, match="6 numbers; got 5"):
        probe.scores(x[..., :5], where)
    with pytest.raises(InputError, match="two classes"):
        best_threshold(torch.zeros(3), torch.ones(3, dtype=torch.bool))
    examples = Examples.of_task(build_task(n=8))
    with pytest.raises(UnknownNameError, match="kind of probe"):
        study_probes(tiny_gpt2, examples, [SITE], ["lin"])
    with pytest.raises(InputError, match="sparse probes at"):
        sweep_sparse_probe(tiny_gpt2, examples, SITE, (1000,))
    with pytest.raises(InputError, match="types are read at a span"):
        Examples.of_task(build_task(n=3), types="NAME")
