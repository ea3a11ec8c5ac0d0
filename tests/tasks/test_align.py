"""Spans of prompts of different length, found from their tokens."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from mechwork.errors import InputError
from mechwork.tasks import from_file
from mechwork.tasks.alignment import align
from mechwork.tasks.task import Task
from tests.tasks.test_from_file import ROWS, write

PROMPTS = strategies.lists(strategies.integers(0, 4), min_size=1, max_size=12)


@hypothesis.given(PROMPTS, PROMPTS)
def test_spans_partition_both_prompts_and_common_runs_are_equal(clean: list[int], corrupt: list[int]) -> None:
    clean, corrupt = [9, *clean], [9, *corrupt]
    spans = align(clean, corrupt)
    for side, prompt in zip(spans, (clean, corrupt), strict=True):
        assert sorted(p for positions in side.values() for p in positions) == list(range(len(prompt)))
        assert [p for positions in side.values() for p in positions] == list(range(len(prompt)))
    assert list(spans[0]) == list(spans[1])
    for name, positions in spans[0].items():
        if name.startswith(("start", "same")):
            assert [clean[p] for p in positions] == [corrupt[p] for p in spans[1][name]]


def test_prompts_of_one_length_correspond_by_position() -> None:
    clean, corrupt = align([1, 2, 3, 4, 5], [1, 3, 4, 4, 6])
    assert clean == corrupt == {"start": [0], "differs": [1, 2], "same": [3], "END": [4]}


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(InputError, match="without one token in common"):
        align([1, 2, 9], [3, 4, 5, 9])


def test_a_file_with_different_lengths_is_aligned_and_shows_it(bundled_model: Any, tmp_path: Any) -> None:
    longer = "When Tom and Anna and the girl went to the store, Anna gave a drink to"
    task = from_file(bundled_model, write(tmp_path / "pairs.jsonl", [ROWS[0], {**ROWS[1], "corrupt": longer}]))
    assert not task.pairs.aligned
    said = task.describe(2)
    assert "aligned" in said
    assert "[ girl]" in said
    index = task.pairs.alignment()[1]
    clean, corrupt = task.prompt_texts(1)
    same = [i for i, at in enumerate(index.tolist()) if at >= 0 and clean[i] == corrupt[at]]
    assert len(same) >= len(clean) - 1


def test_a_description_marks_what_differs_from_the_corresponding_token() -> None:
    """The tokens after the longer subject stand at other columns, and are the same all the same."""
    clean, corrupt = [3, 14, 15, 92, 65], [3, 14, 16, 17, 92, 65]
    spans, others = align(clean, corrupt)
    said = Task.from_tokens([clean], [corrupt], [1], [2], spans=[spans], corrupt_spans=[others]).describe()
    assert "clean     3 14[ 15] 92 65" in said
    assert "corrupt   3 14[ 16][ 17] 92 65" in said
