"""Metrics of whole answers by their definition: every answer by itself, token after token, one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Run = Callable[[Tensor, Tensor], Tensor]
"""(tokens of the host, tokens of the donor), each ``[1, pos]`` -> the host's logits, with whatever is done to it."""

FORMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sequence_difference": lambda log_p, n: log_p,
    "sequence_difference_per_token": lambda log_p, n: log_p / n,
    "sequence_probability": lambda log_p, n: log_p.exp(),
    "sequence_probability_difference": lambda log_p, n: log_p.exp(),
}


@dataclass(frozen=True)
class Question:
    """Two prompts and their answers as token ids."""

    clean: list[int]
    corrupt: list[int]
    correct: list[list[int]]
    incorrect: list[list[int]]

    def parts(self, name: str) -> Iterator[tuple[list[int], float]]:
        """Every answer with its weight in the metric of that name."""
        sums = "probability" in name
        for side, answers in ((1.0, self.correct), (-1.0, self.incorrect)):
            if side < 0 and name == "sequence_probability":
                continue
            for answer in answers:
                yield answer, side if sums else side / len(answers)


def log_p(logits: Tensor, answer: list[int]) -> Tensor:
    """log P(answer), where the first token is read len(answer) - 1 columns before the last."""
    n = logits.shape[1] - len(answer)
    return torch.stack([logits[0, n + k].log_softmax(-1)[token] for k, token in enumerate(answer)]).sum()


def value(question: Question, name: str, run: Run, *, denoise: bool) -> Tensor:
    """The metric of a question whose host run is `run`."""
    host, donor = (question.corrupt, question.clean) if denoise else (question.clean, question.corrupt)
    total = torch.zeros((), dtype=torch.float64)
    for answer, weight in question.parts(name):
        rows = [torch.tensor([side + answer[:-1]]) for side in (host, donor)]
        total = total + weight * FORMS[name](log_p(run(rows[0], rows[1]), answer), len(answer))
    return total


def sum_over_answers(
    question: Question, name: str, score: Callable[[Tensor, Tensor, Any], Tensor], *, denoise: bool
) -> Tensor:
    """Scores that are linear in the metric's gradient: the answers' own, added up.

    `score(host, donor, metric)` has a metric of the host's logits.
    """
    host, donor = (question.corrupt, question.clean) if denoise else (question.clean, question.corrupt)
    total: Any = 0
    for answer, weight in question.parts(name):
        rows = [torch.tensor([side + answer[:-1]]) for side in (host, donor)]

        def metric(logits: Tensor, answer: list[int] = answer, weight: float = weight) -> Tensor:
            return (weight * FORMS[name](log_p(logits, answer), len(answer)))[None]

        total = total + score(rows[0], rows[1], metric)
    return total
