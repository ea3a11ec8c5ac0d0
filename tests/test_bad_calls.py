"""Obvious mistakes: each either works, or is refused with the contract, what was received and the remedy."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.circuits import learn_circuit
from mechwork.directions import Examples
from mechwork.errors import InputError, MetricError, UnknownNameError, check_whole
from mechwork.tasks.task import Task


def unchecked(function: Any) -> Any:
    """The function as users call it, without the type checks that the tests add."""
    return inspect.unwrap(function)


def test_what_now_works(bundled_model: Any) -> None:
    task = mw.tasks.ioi(bundled_model, n=8, seed=0)
    by_spec = mw.ablate(bundled_model, task, mw.AblationSpec(["a3.h2"], "zero"))
    assert mw.ablate(bundled_model, task, ["a3.h2"]).spec == mw.AblationSpec(["a3.h2"])
    assert by_spec.effect != 0
    assert torch.equal(mw.record_run(bundled_model, task).logits, mw.record_run(bundled_model, task.pairs, []).logits)
    prompt = task.prompt(0).removeprefix(bundled_model.tokenizer.bos_token or "")
    alone = mw.record_attention(bundled_model, prompt, ["a3.h2"])
    paired = mw.record_attention(bundled_model, task, ["a3.h2"])
    torch.testing.assert_close(alone.patterns, paired.patterns)
    assert alone.tokens == paired.tokens
    assert len(mw.record_attention(bundled_model, prompt).heads) == 24
    assert mw.read_lens(bundled_model, prompt, lens="logit").lens == "logit lens"
    effects = mw.attribute(bundled_model, task, ["z", "resid_pre"])
    assert effects.top(3) == sorted(effects["z"].top(3) + effects["resid_pre"].top(3), key=lambda row: -abs(row[1]))[:3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: mw.ablate(m, t, mw.AblationSpec(["a0.h1"], "zero", positions=[999])), r"0 to 9; got \[999\]"),
        (lambda m, t: learn_circuit(m, t, 5, n_steps=-1), "got -1"),
        (lambda m, t: unchecked(mw.attribute_tokens)(m, b"Mary", 3), "no bytes"),
        (lambda m, t: unchecked(mw.evaluate)(m, None, t), "scores or circuit"),
        (lambda m, t: unchecked(Examples.of_tokens)(Examples, [[1], [2], [3]], [0, 1, 2]), "True or False"),
        (lambda m, t: unchecked(mw.record_run)(m, t.pairs, "resid_pre"), "list of kinds"),
        (lambda m, t: unchecked(mw.record_attention)(m, t, "a0.h1"), "heads is a list"),
        (lambda m, t: mw.attribute(m, t, ["z"]).top(0), "at least 1"),
        (lambda m, t: t.describe(0), "pairs to show"),
        (lambda m, t: unchecked(mw.record_attention)(m, t, []), r"None for all; got \[\]"),
        (lambda m, t: unchecked(check_whole)("n_edges", 3.5, least=1), "n_edges is a whole number, at least 1"),
        (lambda m, t: unchecked(check_whole)("n", True), "n is a whole number; got True"),
        (lambda m, t: unchecked(check_whole)("seed", "x"), "seed is a whole number; got 'x'"),
    ],
)  # fmt: skip
def test_what_is_refused(tiny_gpt2: Any, tiny_task: Task, call: Callable[[Any, Task], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_gpt2, tiny_task)


def test_counts_of_random_circuits(tiny_gpt2: Any, tiny_task: Task) -> None:
    scores = mw.score_edges(tiny_gpt2, tiny_task)
    wrongs: tuple[dict[str, Any], ...] = ({"n_random": -1}, {"n_same_degree": -1})
    for wrong in wrongs:
        with pytest.raises(InputError, match="count circuits"):
            mw.evaluate(tiny_gpt2, tiny_task, scores, **wrong)
    with pytest.raises(InputError, match="in this order"):
        unchecked(mw.evaluate)(tiny_gpt2, scores, tiny_task)


def test_a_lens_that_is_none(tiny_gpt2: Any) -> None:
    with pytest.raises(UnknownNameError, match="known: logit"):
        mw.read_lens(tiny_gpt2, torch.tensor([[1, 2]]), lens="tuned")


def test_nothing_agrees_with_nan(tiny_gpt2: Any, tiny_task: Task) -> None:
    effect = mw.attribute(tiny_gpt2, tiny_task, ["z"])["z"]
    broken = effect.per_example.clone()
    broken[0, 0, 0] = torch.nan
    with pytest.raises(MetricError, match="NaN for some pairs"):
        mw.Effects({"z": replace(effect, per_example=broken)}).agreement(mw.Effects({"z": effect}))


PLAIN = """
import mechwork as mw
model = mw.load_model("gpt2-6l")
task = mw.tasks.ioi(model, n=4, seed=0)
scores = mw.score_edges(model, task)
calls = [
    lambda: mw.tasks.ioi(model, n=1.5),
    lambda: mw.tasks.ioi(model, n=4, seed="x"),
    lambda: scores.circuit(n_edges=3.5),
    lambda: scores.top(1.5),
    lambda: mw.evaluate(model, task, scores, n_random=1.5),
    lambda: mw.evaluate(model, task, scores, seed="x"),
    lambda: mw.score_edges(model, task, ig_steps=2.5),
    lambda: mw.attribute(model, task, ["z"], ig_steps=2.5),
]
for call in calls:
    try:
        call()
    except mw.errors.InputError as error:
        print("is a whole number" in str(error))
"""


def test_counts_and_seeds_are_whole_numbers() -> None:
    """In a process of its own, without the type checks that the tests add inside the package too."""
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 8


def test_half_of_a_surrogate_pair_is_no_text(bundled_model: Any) -> None:
    half = "\udcff"
    for call in (
        lambda: mw.read_lens(bundled_model, half, "logit"),
        lambda: mw.tasks.from_text(bundled_model, "The cat", "The dog", half, " a"),
        lambda: mw.lenses.open_text(bundled_model, [half]).rows(0, 1),
        lambda: mw.attribute_tokens(bundled_model, half, 3),
    ):
        with pytest.raises(InputError, match=r"half of a surrogate pair is no character; got '.udcff'"):
            call()
