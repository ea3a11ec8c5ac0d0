"""Rules that choose edges: integer programming against every set of edges, sure signs, the ratio rule, and what the
leaderboard says of them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mechwork.circuits import EdgeSpace, FaithfulnessCurve, Leaderboard, run_leaderboard, score_edges, sure_first
from mechwork.circuits.graph.prune import prune
from mechwork.circuits.graph.select import select, select_positive
from mechwork.errors import InputError, UnknownNameError
from mechwork.statistics import bootstrap_weights
from tests.families import build_model, build_task
from tests.reference.selection import best_connected

STEPS: list[tuple[int, int]] = []
"""What the leaderboard below told of its progress."""
SPACES = {"grouped": EdgeSpace(1, 2, 1), "attention only": EdgeSpace(2, 1, 1, attn_only=True)}


@pytest.mark.parametrize("name", SPACES)
def test_integer_programming_equals_trying_every_set(name: str, seed: int) -> None:
    space = SPACES[name]
    values = torch.randn(space.n_writers, space.n_readers, dtype=torch.float64) * space.mask
    found = []
    for n in (2, 3, 5):
        for by, rank in (("integer", values.abs()), ("integer_signed", values)):
            mask = select(space, values, n, by=by)  # type: ignore[arg-type]
            assert torch.equal(prune(space, mask), mask)
            assert int(mask.sum()) <= n
            best = best_connected(space, rank, n)
            found.append(best)
            assert float(rank[mask].sum()) == pytest.approx(best, rel=2e-3)
            pruned = prune(space, select(space, values, n, by="signed" if "signed" in by else "absolute"))
            assert float(rank[pruned].sum()) <= best + 1e-9
    assert max(found) > 1


def test_the_ratio_rule_takes_what_helps_first() -> None:
    space = SPACES["grouped"]
    values = torch.zeros(space.n_writers, space.n_readers)
    values[space.mask] = torch.tensor([-9.0, 1, -8, 2, 3, -7, 0.5, 4, 0.1, -6, 0.2])
    chosen = values[select_positive(space, values, 4, share=0.5)].tolist()
    assert sorted(chosen) == [-9.0, -8.0, 3.0, 4.0]
    assert torch.equal(select_positive(space, values, 4, share=0.0), select(space, values, 4))
    assert torch.equal(select_positive(space, values, 4, share=1.0), select(space, values, 4, by="signed"))
    with pytest.raises(InputError, match="from 0 to 1"):
        select_positive(space, values, 4, share=1.5)


def test_unsure_edges_come_last(tiny_gpt2: Any) -> None:
    scores = score_edges(tiny_gpt2, build_task(n=6), preset="eap", keep="pairs")
    assert scores.per_example is not None
    found = sure_first(scores, n_resamples=40)
    mask = scores.space.mask
    old, new = scores.values[mask], found.values[mask]
    weights = bootstrap_weights(6, 40, 0)
    sure = []
    for i, j in mask.nonzero().tolist():
        column = scores.per_example[:, i, j].tolist()
        means = [sum(w * x for w, x in zip(row, column, strict=True)) for row in weights.tolist()]
        agree = sum((mean > 0) == (float(scores.values[i, j]) > 0) and mean != 0 for mean in means)
        sure.append(agree / 40 >= 0.95)
    known = torch.tensor(sure)
    assert 0 < int(known.sum()) < len(known)
    torch.testing.assert_close(new[known], old[known])
    assert float(new[~known].abs().max()) < float(new[known].abs().min())
    assert torch.equal(new.sign(), old.sign())
    with pytest.raises(InputError, match="more than half"):
        sure_first(scores, share=0.3)


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    task = build_task(n=12)
    split = replace(task, splits=("train",) * 6 + ("test",) * 6)
    return run_leaderboard(
        build_model("gpt2"), split, presets=["eap", "eap-ig"], n_random=1,
        progress=lambda done, total, what: STEPS.append((done, total)),
    )  # fmt: skip


def test_progress_counts_up_to_its_total(board: Leaderboard) -> None:
    """Two scored, six tested."""
    assert len(board.curves) == 6
    assert [(i, 8) for i in range(1, 9)] == [s for s in dict.fromkeys(STEPS) if s[0]], "it may tell a step again"


def test_rules_stand_beside_the_scores_they_choose_by(board: Leaderboard) -> None:
    names = {s.method for s in board.standings}
    assert names == {"eap", "eap-ig", "eap-ig, greedy", "eap-ig, positive", "eap-ig, sure", "eap-ig, integer"}
    best = min(board.standings, key=lambda s: s.cmd_log)
    for row in board.standings:
        assert 0 <= row.accuracy <= 1
        assert 0 < row.kl < math.inf
        if row is not best:
            assert row.behind == pytest.approx(row.cmd_log - best.cmd_log)
            assert row.behind_interval[0] <= row.behind_interval[1]
    assert "chosen: " in str(board)


def test_differences_are_paired(board: Leaderboard) -> None:
    """Each resample draws the same pairs for both: a method differs from itself by nothing, and literally."""
    assert board.difference("eap", "eap") == (0.0, (0.0, 0.0))
    a, b = board.curves["eap"], board.curves["eap-ig"]
    weights = bootstrap_weights(6, 1000, 0).double()[:3]

    def cmd(curve: FaithfulnessCurve, w: torch.Tensor) -> float:
        c, e, m = (x.double() @ w for x in (curve.per_example, curve.empty_per_example, curve.model_per_example))
        x, y = torch.tensor(curve.fractions).double(), (1 - (c - e) / (m - e)).abs()
        return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())

    literal = [cmd(a, w) - cmd(b, w) for w in weights]
    found = (a.resampled_areas("cmd") - b.resampled_areas("cmd"))[:3].tolist()
    assert found == pytest.approx(literal)
    assert any(abs(x) > 1e-6 for x in literal)
    with pytest.raises(UnknownNameError, match="method"):
        board.difference("eap", "relp")


def test_the_cheapest_that_is_not_worse_is_chosen_and_overshoot_stands_back(board: Leaderboard) -> None:
    rows = tuple(replace(s, seconds=5.0 if s.method == "eap" else 1.0, overshoot=0.0) for s in board.standings)
    same = dict.fromkeys(board.curves, board.curves["eap"])
    equal = replace(board, standings=rows, curves=same)
    assert equal.chosen[0].method != "eap"
    over = tuple(replace(s, overshoot=0.0 if s.method == "eap" else 0.5) for s in rows)
    found, why = replace(equal, standings=over).chosen
    assert found.method == "eap"
    assert "5 that overshoot" in why


def test_contracts(tiny_gpt2: Any) -> None:
    task = build_task(n=4)
    split = replace(task, splits=("train", "train", "test", "test"))
    with pytest.raises(UnknownNameError, match="rule of selection"):
        run_leaderboard(tiny_gpt2, split, presets=["eap-ig"], rules=["best"])
    with pytest.raises(InputError, match="not among the presets"):
        run_leaderboard(tiny_gpt2, split, presets=["eap"], rules=["greedy"])
