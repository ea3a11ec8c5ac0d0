"""Pairs: layouts, spans, alignment, slices, and everything that is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechwork.errors import InputError
from mechwork.tasks import ioi
from mechwork.tasks import pairs as pairs_module
from mechwork.tasks.pairs import PromptPairs
from mechwork.tasks.task import Task

CLEAN, CORRUPT = [[1, 2, 3, 4], [5, 6, 7]], [[1, 9, 3, 4], [5, 8, 7]]


def pairs(**settings: Any) -> PromptPairs:
    return PromptPairs.from_tokens(CLEAN, CORRUPT, [1, 2], [3, 4], **settings)


def test_right_padding_and_the_answer_position() -> None:
    made = pairs(pad_token=99)
    assert made.clean_tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 99]]
    assert made.mask.tolist() == [[True] * 4, [True, True, True, False]]
    logits = torch.arange(2 * 4 * 5.0).reshape(2, 4, 5)
    assert torch.equal(made.final(logits), torch.stack([logits[0, 3], logits[1, 2]]))


def test_spans_partition_every_prompt() -> None:
    made = pairs(spans=[{"A": [1]}, {"A": [1]}])
    assert list(made.spans) == ["start", "A", "A+", "END"]
    total = torch.stack(list(made.spans.values())).sum(dim=0)
    assert torch.equal(total.bool(), made.mask)
    assert int(total.max()) == 1


def test_slices_are_pairs_as_wide_as_their_prompts() -> None:
    made = pairs(spans=[{"A": [1]}, {"A": [1]}], templates=["x", "y"])[[1]]
    assert made.clean_tokens.shape == (1, 3)
    assert made.templates == ("y",)
    assert made.spans["A"].tolist() == [[False, True, False]]
    assert [len(b) for b in pairs().batches(1)] == [1, 1]
    with pytest.raises(InputError, match="no pairs"):
        pairs()[5:]


def test_cells() -> None:
    labels, masks = pairs().cells("all")
    assert labels == ("all",)
    assert torch.equal(masks[0], pairs().mask)
    with pytest.raises(InputError, match="no spans"):
        pairs().cells("each")
    labels, masks = pairs()[:1].cells("each")
    assert labels == ("0", "1", "2", "3")
    assert masks.shape == (4, 1, 4)


def test_fingerprints_follow_the_data() -> None:
    assert pairs().fingerprint() == pairs().fingerprint()
    assert pairs().fingerprint() != pairs()[:1].fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], [[1, 2]], [3], [4]), "identical"),
        (([[1, 2, 3]], [[1, 9]], [3], [4]), "3 and 2"),
        (([[1, 2]], [[1, 3], [1, 4]], [3], [4]), "as many corrupt"),
        (([[]], [[]], [3], [4]), "at least one token"),
        (([], [], [], []), "at least one token"),
        (([[1, 2]], [[1, 3]], [3, 4], [4]), "one row per pair"),
        (([[1, 2]], [[1, 3]], [4], [4]), "must differ"),
        ((torch.ones(1, 2), torch.zeros(1, 2), [3], [4]), "integer token ids"),
    ],
)
def test_bad_pairs_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptPairs.from_tokens(*arguments)


@pytest.mark.parametrize(("spans", "message"), [({"A": [7]}, "names position 7"), ({"A": [1], "B": [1]}, "overlap")])
def test_bad_spans_are_refused(spans: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Task.from_tokens([[1, 2, 3]], [[1, 4, 3]], [5], [6], spans=[spans])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))
def test_alignment_matches_spans_from_the_right(n_clean: int, n_corrupt: int, tail: int) -> None:
    """A span of different sizes on the two sides, then a common tail: ends match ends."""
    clean = [1, *range(10, 10 + n_clean), *range(50, 50 + tail), 2]
    corrupt = [1, *range(20, 20 + n_corrupt), *range(50, 50 + tail), 2]
    made = PromptPairs.from_tokens(
        [clean], [corrupt], [3], [4],
        spans=[{"A": range(1, 1 + n_clean)}], corrupt_spans=[{"A": range(1, 1 + n_corrupt)}],
    )  # fmt: skip
    index = made.alignment()[0, : len(clean)].tolist()
    assert index[0] == 0
    assert index[-1] == len(corrupt) - 1
    for offset in range(1, tail + 2):
        assert index[-offset] == len(corrupt) - offset
    assert index[n_clean] == n_corrupt


def test_splits_and_descriptions() -> None:
    task = Task.from_tokens(CLEAN, CORRUPT, [1, 2], [3, 4])
    assert task.train is task
    assert "[ 2]" in task.describe()
    split = Task("x", task.pairs, splits=("train", "test"))
    assert len(split.train) == len(split.test) == 1
    assert split.train.pairs.clean_tokens.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(InputError, match="no test pairs"):
        _ = Task("x", task.pairs, splits=("train", "train")).test


@pytest.mark.parametrize("token", [1.5, -1, True, "a", None])
def test_token_ids_are_whole_numbers_from_0(token: Any) -> None:
    with pytest.raises(InputError, match="whole numbers from 0"):
        pairs_module.token_id(token, "prompt 0")
    with pytest.raises(InputError, match="whole numbers from 0"):
        Task.from_tokens(torch.tensor([[-3, 2]]), torch.tensor([[1, 3]]), [1], [2])
    with pytest.raises(InputError, match="whole numbers from 0"):
        Task.from_tokens([[1, 2]], [[1, 3]], [-4], [2])


def test_single_prompts_and_accuracy(bundled_model: Any) -> None:
    task = ioi(bundled_model, n=8, seed=0)
    for row in (0, -1):
        assert len(task.pairs.prompt(row)) == int(task.pairs.lengths[row])
        assert bundled_model.tokenizer.decode(task.pairs.prompt(row, corrupt=True)) == task.prompt(row, corrupt=True)
    for row in (8, -9):
        with pytest.raises(InputError, match="0 to 7"):
            task.pairs.prompt(row)
    with torch.no_grad():
        final = task.pairs.final(bundled_model(task.pairs.clean_tokens))
    right = [max(final[i, list(c)]) > max(final[i, list(w)]) for i, (c, w) in enumerate(
        zip(task.pairs.correct.tolist(), task.pairs.incorrect.tolist(), strict=True)
    )]  # fmt: skip
    assert task.accuracy(bundled_model) == sum(map(bool, right)) / 8 > 0.5
