"""Stepping through a recorded run gives the run itself, from any block and any position on, for several copies
at once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import UnsupportedModelError
from mechwork.runs.frame import Frame, build_frame, keep_attention_calls, take_columns
from mechwork.runs.record import record_run
from mechwork.tasks.task import Task
from tests.families import borrowed, rounding


def frame_of(model: Any, task: Task) -> Frame:
    with keep_attention_calls(model) as calls:
        run = record_run(model, task.pairs, ["resid_pre", "resid_post"])
    with torch.no_grad():
        return build_frame(model, [*run.layers["resid_pre"], run.layers["resid_post"][-1]], calls)


def test_steps_give_the_recorded_run(family_model64: Any, family: str, tiny_task: Task) -> None:
    if family == "opt":
        with pytest.raises(UnsupportedModelError, match="run alone"):
            frame_of(family_model64, tiny_task)
        return
    with borrowed(family_model64) as model, torch.no_grad():
        frame = frame_of(model, tiny_task)
        for layer, start in ((0, 0), (1, 4), (2, 9), (0, 7)):
            x = frame.resid_pre[layer][:, start:].repeat(3, 1, 1)
            for at in range(layer, frame.n_layers):
                x = frame.step(at, x, start)
            expected = frame.resid_pre[-1][:, start:].repeat(3, 1, 1)
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-11 if rounding(family_model64) < 1e-6 else 1e-5)
            assert float(expected.abs().max()) > 1


def test_one_column_of_a_step(family_model64: Any, family: str, tiny_task: Task) -> None:
    if family == "opt":
        pytest.skip("its blocks do not run alone: test_steps_give_the_recorded_run")
    with torch.no_grad():
        frame = frame_of(family_model64, tiny_task)
        columns = torch.tensor([[5, 2], [0, 1], [3, 4]])
        one = frame.step(2, frame.resid_pre[2][:, 4:], 4, columns)
    torch.testing.assert_close(
        one,
        take_columns(frame.resid_pre[3][:, 4:], columns),
        rtol=0,
        atol=1e-11 if rounding(family_model64) < 1e-6 else 1e-5,
    )


def test_a_scaled_residual_is_found_out(tiny_gpt2_64: Any, tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Frame.step
    monkeypatch.setattr(Frame, "step", lambda self, *args: 0.99 * step(self, *args))
    with pytest.raises(UnsupportedModelError, match="one by one"):
        frame_of(tiny_gpt2_64, tiny_task)


def test_calls_that_are_not_understood_are_refused(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    with keep_attention_calls(tiny_gpt2_64) as calls:
        run = record_run(tiny_gpt2_64, tiny_task.pairs, ["resid_pre", "resid_post"])
    stream = [*run.layers["resid_pre"], run.layers["resid_post"][-1]]
    with pytest.raises(UnsupportedModelError, match="no cache"):
        build_frame(tiny_gpt2_64, stream, [None, *calls[1:]])
    assert calls[0] is not None
    calls[0].arguments["alibi"] = torch.ones(3)
    with pytest.raises(UnsupportedModelError, match="unknown here"):
        build_frame(tiny_gpt2_64, stream, calls)


def test_nothing_is_left_behind_after_an_exception(tiny_gpt2_64: Any) -> None:
    with borrowed(tiny_gpt2_64), pytest.raises(KeyboardInterrupt), keep_attention_calls(tiny_gpt2_64):
        raise KeyboardInterrupt
