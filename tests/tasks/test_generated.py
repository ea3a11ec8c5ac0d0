"""Tasks at generated positions: the model's own words, fixed, then explained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.errors import InputError

STORE = "When Mary and John went to the store, {} gave a necklace"
PARK = "When Tom and Anna went to the park, {} gave a book to"
PAIRS = [
    {"clean": STORE.format("John"), "corrupt": STORE.format("Mary")},
    {"clean": PARK.format("Anna"), "corrupt": PARK.format("Tom")},
]


def test_the_task_is_what_the_model_writes(bundled_model: Any) -> None:
    task = mw.tasks.from_generation(bundled_model, PAIRS[:1])
    tokens = bundled_model.to_tokens(PAIRS[0]["clean"])
    n = task.pairs.clean_tokens.shape[1] - tokens.shape[1]
    assert n > 0, "the first generated token differs already, so this says nothing about later ones"
    with torch.no_grad():
        for _ in range(n):
            tokens = torch.cat([tokens, bundled_model(tokens)[:, -1:].argmax(dim=-1)], dim=1)
        assert torch.equal(task.pairs.clean_tokens, tokens)
        assert int(bundled_model(tokens)[0, -1].argmax()) == int(task.pairs.correct[0, 0])
        assert int(bundled_model(task.pairs.corrupt_tokens)[0, -1].argmax()) == int(task.pairs.incorrect[0, 0])
    assert torch.equal(task.pairs.corrupt_tokens[:, -n:], tokens[:, -n:])
    assert task.accuracy(bundled_model) == 1.0
    again = mw.tasks.from_generation(bundled_model, PAIRS[:1], at=n + 1)
    assert again.pairs.fingerprint() == task.pairs.fingerprint()
    with pytest.raises(InputError, match="at generated token 1 both prompts go on with"):
        mw.tasks.from_generation(bundled_model, PAIRS[:1], at=1)


def test_pairs_at_their_own_first_difference_run_together(bundled_model: Any) -> None:
    task = mw.tasks.from_generation(bundled_model, PAIRS)
    assert len(task) == 2
    assert mw.attribute(bundled_model, task, ["resid_pre"])["resid_pre"].values.isfinite().all()


def test_what_cannot_be_explained_is_refused(bundled_model: Any) -> None:
    with pytest.raises(InputError, match="counts generated tokens, 1 to 32; got 0"):
        mw.tasks.from_generation(bundled_model, PAIRS, at=0)
    with pytest.raises(InputError, match="both prompts go on alike for 32 tokens"):
        mw.tasks.from_generation(bundled_model, [{"clean": "The cat", "corrupt": "The cat"}])
