"""The task is found by its name, everywhere; train and test share no template, and its pairs are exchanged."""

from __future__ import annotations

from typing import Any

import mechwork as mw
from mechwork import bundled
from mechwork.tasks import TASKS, find_task


def test_it_is_a_task_like_any_other(bundled_model: Any) -> None:
    assert list(TASKS)[-1] == "called"
    task = find_task("called")(bundled_model, n=8, seed=1)
    assert mw.tasks.called is TASKS["called"]
    assert (len(task), len(task.train), len(task.test)) == (8, 4, 4)
    assert {"A", "B", "END"} <= set(task.pairs.spans)
    for row in range(len(task)):
        right, wrong = task.answer_texts[row]
        assert task.prompt(row).index(wrong) < task.prompt(row).index(right)
        assert task.prompt(row, corrupt=True).index(right) < task.prompt(row, corrupt=True).index(wrong)


def test_its_templates_are_disjoint() -> None:
    parts = bundled.load_json("tasks", "called.json")["templates"]
    assert sum(map(len, parts.values())) == len({text for part in parts.values() for text in part})
