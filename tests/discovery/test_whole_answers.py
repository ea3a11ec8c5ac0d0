"""Plans and summaries of tasks whose questions have several pairs, and of folders that were begun."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

from mechwork.discovery.found import Discovery
from mechwork.discovery.plan import FEWEST, Plan, Step, _halve, extend_plan
from mechwork.discovery.settings import Settings
from mechwork.discovery.shape import Shape
from mechwork.discovery.stages import STAGES
from mechwork.discovery.summary import _stream_data
from tests.families import build_hard_task
from tests.tasks.test_continuations import build


def test_halving_keeps_questions_and_not_only_pairs(tiny_gpt2: Any) -> None:
    shape = Shape.of(tiny_gpt2, build(), Settings(), again=False)
    assert shape.n_per_question == 2
    halved = _halve(replace(shape, n_train=20, n_test=64))
    assert (halved.n_train, halved.n_test) == (2 * FEWEST, 32)
    assert _halve(replace(shape, n_train=20, n_test=64, n_per_question=1)).n_train == 10


def test_pairs_of_different_length_plan_no_knockouts(tiny_gpt2: Any) -> None:
    """Completeness and minimality compare position by position, so a plan for all stages leaves them out."""
    for aligned in (True, False):
        shape = Shape.of(tiny_gpt2, build_hard_task(aligned=aligned), Settings(), again=False)
        for name in ("completeness", "minimality"):
            assert STAGES[name].possible(shape) == aligned


def test_a_begun_folder_can_be_given_a_budget() -> None:
    """Its ledger names the stored task among what is done."""
    plan = Plan((Step("check", 1.0, 1.0, 0), Step("scores", 2.0, 2.0, 0)), 8, 8, 1.0)
    assert extend_plan(plan, plan, ("task", "check")).stages == ("check", "scores")


def test_a_stream_without_direct_shares_is_summarised() -> None:
    """Of whole answers no one difference of logits is the metric, so none is attributed."""
    found = MagicMock(spec=Discovery, tables=(), named=("lens",))
    found.__getitem__.return_value.top.return_value = [("a0.h0", 1.0)]
    assert _stream_data(found) == {"lenses": {}, "direct": {}}
    found.named = ("lens", "direct")
    assert _stream_data(found)["direct"] == {"a0.h0": 1.0}
