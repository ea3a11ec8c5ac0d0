"""Metrics against their definitions written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError, UnknownNameError
from mechwork.tasks.metrics import METRICS, accuracy, find_metric
from mechwork.tasks.task import Task
from tests.families import build_task


def example() -> tuple[torch.Tensor, Task]:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).double()
    task = Task.from_tokens([[1, 2, 3], [4, 5, 6]], [[1, 9, 3], [4, 9, 6]], [[1, 2], [3, -1]], [[0], [5]])
    return logits, task


def test_definitions() -> None:
    logits, task = example()
    final, p = logits[:, -1], logits[:, -1].softmax(-1)
    expected = {
        "logit_difference": [final[0, 1:3].mean() - final[0, 0], final[1, 3] - final[1, 5]],
        "probability_difference": [p[0, 1] + p[0, 2] - p[0, 0], p[1, 3] - p[1, 5]],
        "log_probability": [(p[0, 1] + p[0, 2]).log(), p[1, 3].log()],
    }
    for name, values in expected.items():
        torch.testing.assert_close(METRICS[name](logits, task.pairs), torch.stack(values))
    best = accuracy(logits, task.pairs)
    assert best.tolist() == [bool(max(final[0, 1], final[0, 2]) > final[0, 0]), bool(final[1, 3] > final[1, 5])]


def test_kl_divergence_is_zero_for_the_clean_run(tiny_gpt2_64: Any) -> None:
    task = build_task()
    with pytest.raises(InputError, match="pass the model"):
        task.with_metric("kl_divergence")
    task = task.with_metric("kl_divergence", tiny_gpt2_64)
    with torch.no_grad():
        clean, corrupt = (tiny_gpt2_64(t) for t in (task.pairs.clean_tokens, task.pairs.corrupt_tokens))
    assert float(task.measure(clean).abs().max()) < 1e-12
    p, q = clean[:, -1].softmax(-1), corrupt[:, -1].softmax(-1)
    torch.testing.assert_close(task.measure(corrupt), (p * (p / q).log()).sum(-1))
    assert float(task.measure(corrupt).min()) > 0


def test_names_and_callables() -> None:
    with pytest.raises(UnknownNameError, match="nearest: logit_difference"):
        find_metric("logit_diff")

    def mine(logits: torch.Tensor, pairs: Any) -> torch.Tensor:
        return logits[:, -1, 0]

    assert find_metric(mine).name == "mine"
