"""One mechanism or several: the split against Gaussian clouds, and a model in which two are planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.circuits import Mechanisms, study_mechanisms
from mechwork.circuits.ground_truth.weights import BlockWeights, Blueprint, HeadWeights, NamedStream
from mechwork.circuits.testing.mechanisms import split_p, split_profiles
from mechwork.errors import InputError
from mechwork.tasks.task import Task

N = 6


def two_mechanisms(size: float = 6.0) -> Any:
    """One position; one head answers letters, the other digits, each knowing nothing of the other kind."""
    s = NamedStream(letter=N, digit=N, out=2 * N)
    embed = torch.cat([s.write("letter", torch.eye(N)), s.write("digit", torch.eye(N))])
    write = s.write("out", size * torch.eye(2 * N))
    heads = [HeadWeights(v=s.read("letter"), o=write[:N]), HeadWeights(v=s.read("digit"), o=write[N:])]
    return Blueprint(
        name="two mechanisms", embed=embed, pos=torch.zeros(1, s.d_model), unembed=s.read("out"),
        blocks=[BlockWeights(heads)],
    ).build()  # fmt: skip


def symbols(*, digits: bool) -> Task:
    """Every ordered pair of two letters (and of two digits), in turn for finding and for testing."""
    pairs = [(a, b) for a in range(N) for b in range(N) if a != b]
    pairs += [(a + N, b + N) for a, b in pairs] if digits else []
    clean, corrupt = [list(x) for x in zip(*pairs, strict=True)]
    task = Task.from_tokens([[x] for x in clean], [[x] for x in corrupt], clean, corrupt)
    return replace(task, splits=tuple("train" if i % 2 else "test" for i in range(len(pairs))))


def test_two_planted_mechanisms_are_found_where_the_mixture_is_faithful(tmp_path: Path) -> None:
    model, task = two_mechanisms(), symbols(digits=True)
    both = study_mechanisms(model, task, n_edges=4, preset="eap")
    whole = {"input->a0.h0<v>", "a0.h0->logits", "input->a0.h1<v>", "a0.h1->logits"}
    assert set(both.circuits["mixture"].edges) == whole
    assert both.verdict == "several", both
    assert both.hides
    found = study_mechanisms(model, task, n_edges=2, preset="eap")
    circuits = {frozenset(found.circuits[name].edges) for name in ("cluster 1", "cluster 2")}
    assert circuits == {
        frozenset({"input->a0.h0<v>", "a0.h0->logits"}), frozenset({"input->a0.h1<v>", "a0.h1->logits"}),
    }  # fmt: skip
    letters = (torch.arange(len(task.train)) < len(task.train) // 2).long()
    assert torch.equal(found.members, letters) or torch.equal(found.members, 1 - letters)
    for row in found.rows:
        if row.circuit.startswith("cluster") and row.pairs.startswith("cluster"):
            assert row.faithfulness == pytest.approx(float(row.circuit == row.pairs), abs=1e-6)
    assert found.overlaps == {"cluster 2, cluster 1": 0.0}
    again = Mechanisms.load(found.save(tmp_path / "found"))
    assert str(again) == str(found)
    assert "several" in found.to_html()


def test_one_mechanism_is_one() -> None:
    found = study_mechanisms(two_mechanisms(), symbols(digits=False), n_edges=2, preset="eap")
    assert found.verdict == "one", found
    assert list(found.circuits) == ["mixture"]
    assert not found.hides


def test_clouds_are_split_at_most_at_the_nominal_rate_and_two_are_found(seed: int) -> None:
    """SigClust on one Gaussian cloud of unequal variances; conservative, since sampled covariances spread more."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(2, 0.1, 12).double()
    ps = [split_p(torch.randn(24, 12, generator=generator).double() * scale, 19, generator)[0] for _ in range(60)]
    assert sum(p <= 0.05 for p in ps) <= 8  # 60 at 5 %: 8 or fewer in 99.5 % of cases
    rows = torch.randn(24, 12, generator=generator).double() * scale
    rows[:12, 3] += 12
    members, splits = split_profiles(rows, 39, 0.05, 2, seed)
    assert splits[0][1] <= 0.05
    assert len(set(members[:12].tolist())) == 1
    assert set(members[12:].tolist()) == {1 - int(members[0])}


def test_nothing_to_say_is_said() -> None:
    model, task = two_mechanisms(), symbols(digits=True)
    few = study_mechanisms(model, task[:8], n_edges=2)
    assert few.verdict == "inconclusive"
    assert "24 would do" in few.reason
    flat = study_mechanisms(two_mechanisms(size=0.0), task, n_edges=2, preset="eap")
    assert flat.verdict == "inconclusive"
    assert "metric" in flat.reason
    with pytest.raises(InputError, match="clouds"):
        study_mechanisms(model, task, n_null=5)
