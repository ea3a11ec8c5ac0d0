"""Depth follows the budget; the data check says what is wrong with pairs before anything is computed."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import mechwork as mw
from mechwork.circuits.testing.evaluate import EvaluationSettings
from mechwork.discovery.check import check_data
from mechwork.discovery.plan import extend_plan, make_plan
from mechwork.discovery.settings import Settings, parse_seconds
from mechwork.discovery.size import find_size
from mechwork.discovery.stages import LEAST, STAGES
from mechwork.errors import InputError
from mechwork.render import render_report
from mechwork.render.example import find_example
from mechwork.render.findings import collect
from mechwork.tasks.task import Task


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return mw.load_model("gpt2-6l")


@pytest.fixture(scope="module")
def task(model: TransformerBridge) -> Task:
    return mw.tasks.ioi(model, n=64, seed=0)


def test_a_larger_budget_gives_a_deeper_plan_that_fits(model: TransformerBridge, task: Task) -> None:
    plans = [
        make_plan(model, task, Settings(), budget=budget, seconds=1.0, again=True) for budget in (60, 200, 400, 2000)
    ]
    for plan, budget in zip(plans, (60, 200, 400, 2000), strict=True):
        assert plan.seconds <= budget
        assert set(LEAST) <= set(plan.stages)
        assert list(plan.stages) == [name for name in STAGES if name in plan.stages]
    depths = [(plan.n_train, len(plan.stages)) for plan in plans]  # pairs go first
    assert depths == sorted(depths)
    assert len(set(depths)) > 2
    assert plans[0].n_train < plans[-1].n_train == 32
    assert "measure" in plans[-1].stages
    assert "screen" not in plans[-1].stages
    assert len(plans[0].cut(task).train) == plans[0].n_train


def test_pairs_that_scored_do_not_choose_the_size_alone(model: TransformerBridge, task: Task) -> None:
    short = make_plan(model, task, Settings(), budget=60, seconds=1.0)
    part = short.cut(task)
    assert len(part.sizing) == short.n_size >= 8
    asked = [{tuple(row) for row in one.pairs.clean_tokens.tolist()} for one in (part.train, part.sizing, part.test)]
    everywhere = {tuple(row) for row in task.train.pairs.clean_tokens.tolist()}
    assert asked[0] | asked[1] <= everywhere
    assert not asked[0] & asked[1]
    assert part.train.pairs.fingerprint() == task.train[: short.n_train].pairs.fingerprint()
    sizing = find_size(model, part, mw.score_edges(model, part.train, preset="eap"), 0.9, EvaluationSettings())
    assert "as many others" in sizing.reason
    assert sizing.provenance["others"]["sha256"] == part.sizing.pairs.fingerprint()
    chosen = next(row for row in sizing.rows if row.n_edges == sizing.n_edges)
    scores = mw.score_edges(model, part.train, preset="eap")
    found = [mw.evaluate(model, one, scores.circuit(chosen.n_edges), n_random=0) for one in (part.train, part.sizing)]
    worse = max((one.faithfulness for one in found), key=lambda value: abs(1 - value))
    assert chosen.faithfulness == pytest.approx(worse, abs=1e-5)
    whole = make_plan(model, task, Settings(), mode="thorough", seconds=1.0)
    assert whole.n_size == 0
    assert whole.cut(task).sizing.pairs.fingerprint() == task.train.pairs.fingerprint()
    by_hand = make_plan(model, task, Settings(n_edges=20), budget=60, seconds=1.0)
    assert by_hand.n_size == 0


def test_every_stage_finds_what_it_needs(model: TransformerBridge, task: Task) -> None:
    for mode in ("quick", "default", "thorough"):
        given: set[str] = set()
        for name in make_plan(model, task, Settings(), mode=mode, seconds=1.0, again=True).stages:
            assert set(STAGES[name].needs) <= given, name
            given |= set(STAGES[name].gives)


def test_a_plan_without_a_budget_is_the_same_on_every_machine(model: TransformerBridge, task: Task) -> None:
    slow, fast = (make_plan(model, task, Settings(), seconds=seconds) for seconds in (100.0, 0.001))
    assert slow.stages == fast.stages
    assert slow.n_train == fast.n_train


def test_a_budget_too_small_says_what_the_least_costs(model: TransformerBridge, task: Task) -> None:
    with pytest.raises(InputError, match=r"Give at least --budget (\d+)s") as caught:
        make_plan(model, task, Settings(), budget=1.0, seconds=1.0)
    enough = float(str(caught.value).split("--budget ")[1].split("s,")[0])
    assert make_plan(model, task, Settings(), budget=enough, seconds=1.0).stages


def test_extending_keeps_what_is_done(model: TransformerBridge, task: Task) -> None:
    old = make_plan(model, task, Settings(), mode="quick", seconds=1.0)
    new = make_plan(model, task, Settings(), mode="thorough", seconds=1.0)
    both = extend_plan(old, new, old.stages)
    assert set(both.stages) == {*old.stages, *new.stages}
    assert "curve" not in extend_plan(old, new, ()).stages


@pytest.mark.parametrize(("text", "seconds"), [("5min", 300), ("90 s", 90), ("1.5h", 5400), (7, 7), ("12", 12)])
def test_budgets_are_read(text: str | int, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("wrong", ["soon", "", 0, -3, float("nan"), "5 parsecs", True])
def test_other_budgets_are_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="budget"):
        parse_seconds(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"target": 0.0}, {"target": 1.0}, {"fraction": 2.0}, {"n_edges": 0}, {"min_accuracy": 7.0}]
)
def test_settings_refuse(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Settings(**wrong)  # type: ignore[arg-type]


def swapped(model: TransformerBridge, task: Task) -> Task:
    """The same pairs with the two prompts of each exchanged: clean is then below corrupt."""
    pairs = task.pairs
    return Task.from_tokens(
        pairs.corrupt_tokens, pairs.clean_tokens, pairs.correct[:, 0], pairs.incorrect[:, 0], name="swapped"
    )


def test_good_pairs_are_green_and_wrong_ones_red(model: TransformerBridge) -> None:
    task = mw.tasks.ioi(model, n=16, seed=0, template="When {IO} and {S1} had lunch, {S2} gave a {object} to")
    good = check_data(model, task)
    assert good.level == "green", repr(good)
    assert good.accuracy == 1.0
    assert good.chance == 0.5
    bad = check_data(model, swapped(model, task))
    assert {row.what for row in bad.problems} == {"answers", "gap"}
    assert "invalid" in repr(bad)
    assert "most frequent answers" in repr(bad)
    one = check_data(model, task[:1])
    assert one.level == "yellow"
    twice = check_data(model, task[[0, 0, 1, 2, 3, 4, 5, 6, 7]])
    assert next(row for row in twice.rows if row.what == "duplicates").level == "yellow"


def test_the_check_of_prompts_of_several_lengths_is_that_of_all_at_once(model: TransformerBridge, task: Task) -> None:
    assert len(set(task.pairs.lengths.tolist())) > 3
    check = check_data(model, task)
    assert check.accuracy == pytest.approx(task.accuracy(model))
    with torch.no_grad():
        logits = (model(task.pairs.clean_tokens), model(task.pairs.corrupt_tokens))
    hosts = (task.pairs, task.pairs.corrupt_as_host())
    clean, corrupt = (float(task.measure(*one).mean()) for one in zip(logits, hosts, strict=True))
    assert check.clean == pytest.approx(clean, rel=1e-4)
    assert check.corrupt == pytest.approx(corrupt, rel=1e-4)


def test_the_check_has_the_answers_probabilities_for_the_first_screen(model: TransformerBridge, task: Task) -> None:
    """Also of a quick plan, whose report has no lens: the model's own output for the first test pair."""
    check, pairs = check_data(model, task), task.test.pairs
    row = pairs.clean_tokens[:1, : int(pairs.lengths[0])]
    with torch.no_grad():
        shares = model(row)[0, -1].double().softmax(dim=-1)
    assert check.example is not None
    assert list(check.example.tokens) == row[0].tolist()
    assert check.example.correct == pytest.approx(float(shares[pairs.correct[0, 0]]), rel=1e-4)
    assert check.example.incorrect == pytest.approx(float(shares[pairs.incorrect[0, 0]]), rel=1e-4)
    assert check.example.correct > 0.5 > check.example.incorrect
    page, (right, wrong) = render_report(task, check), task.test.answer_texts[0]
    said = html.unescape(re.sub(r"<[^>]*>", "", page[page.index("data-mw-answer>") :].split("</p>")[0]))
    assert re.search(rf"→ {right.strip()} \d+\s%, not {wrong.strip()} [\d.]+\s%$", said), said
    assert "%" not in render_report(task, replace(check, example=None)).split("data-mw-answer>")[1].split("</p>")[0]


def test_the_first_screen_shows_a_prompt_that_the_model_gets_right(model: TransformerBridge, task: Task) -> None:
    """The first of the test pairs, where there is one; of none, the first."""
    first = task.splits.index("test")
    right = [i for i in range(first, len(task)) if task[i : i + 1].accuracy(model) == 1]
    assert right[:2] == [first, first + 1]
    # Where it is wrong, exchanged answers would be right.
    task = task[[*range(first), *right]]
    for wrong, shown in (([first], first + 1), ([*range(first, len(task))], first)):
        correct, incorrect = task.pairs.correct.clone(), task.pairs.incorrect.clone()
        correct[wrong], incorrect[wrong] = task.pairs.incorrect[wrong], task.pairs.correct[wrong]
        answers = tuple(texts[::-1] if i in wrong else texts for i, texts in enumerate(task.answer_texts))
        mixed = replace(task, pairs=replace(task.pairs, correct=correct, incorrect=incorrect), answer_texts=answers)
        check = check_data(model, mixed)
        assert check.example is not None
        assert list(check.example.tokens) == mixed.pairs.prompt(shown)
        assert (check.example.correct > check.example.incorrect) == (shown not in wrong)
        found = find_example(collect(mixed, (check,)))
        assert (found.answer, found.wrong) == mixed.answer_texts[shown]
        assert (found.p_answer, found.p_wrong) == (check.example.correct, check.example.incorrect)


def test_a_task_that_the_model_cannot_do_is_stopped_before_any_long_step(
    model: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(*_: object, **__: object) -> None:
        pytest.fail("a long step was begun")

    monkeypatch.setattr("mechwork.discovery.work.score_edges", long)
    task = mw.tasks.ioi(model, n=8, seed=0, template="When {IO} and {S1} had lunch, {S2} gave a {object} to")
    with pytest.raises(InputError, match=r"stopped before any long step.*most frequent answers"):
        mw.discover(model, swapped(model, task))
