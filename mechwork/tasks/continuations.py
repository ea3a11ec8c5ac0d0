"""Whole answers: every token of a continuation, read where it follows the prompt and the tokens before it.

    log P(answer | prompt) = sum over k of log p(token k | prompt, tokens before k)          (teacher-forced)

Answers that go on differently cannot share a prompt, so a question has a pair of prompts per different beginning: the
clean and the corrupt prompt, each followed by all but the last token of the answer. A pair's metric is its answers'
part of the question's, times the number of pairs; the *mean over a question's pairs is the question's metric*, and so
the mean over a task's pairs is the mean over its questions, of effects and scores too. Questions with fewer beginnings
repeat one whose answers do not count. Cost: a question costs as much as its pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError

ABSENT = -1
"""Pads tables of token ids."""


@dataclass(frozen=True, eq=False)
class Continuations(Readable):
    """Which token is read where. `tokens[row, answer, k]` is read `backs[row, answer, k]` columns before the row's last
    one; `ABSENT` pads.

    `sides`: 1 for a correct answer, -1 for an incorrect one, 0 for padding. `counts`: how many answers of that side the
    question has. `questions`: which question a row is of; `n_pairs`: how many pairs each has, one after another.
    """

    backs: Int[Tensor, "batch n_answers n_read"]
    tokens: Int[Tensor, "batch n_answers n_read"]
    sides: Int[Tensor, "batch n_answers"]
    counts: Int[Tensor, "batch n_answers"]
    questions: Int[Tensor, " batch"]
    n_pairs: int = 1

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Continuations:
        picked = {name: getattr(self, name)[rows.to(self.sides.device)] for name in TENSORS}
        return replace(self, **picked)

    def to(self, device: torch.device | str) -> Continuations:
        """The same tables on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    @property
    def present(self) -> Bool[Tensor, "batch n_answers n_read"]:
        """Where there is a token."""
        return self.tokens != ABSENT

    @property
    def read_backs(self) -> Int[Tensor, "batch n_columns"]:
        """The columns that are read, counted back from the last; rows that read fewer repeat their first one."""
        furthest = self.backs.masked_fill(~self.present, 0).flatten(1).amax(dim=1, keepdim=True)
        return torch.arange(int(furthest.max()) + 1, device=furthest.device).minimum(furthest)

    def log_probabilities(
        self, read: Float[Tensor, "batch n_columns d_vocab"]
    ) -> Float[Tensor, "batch n_answers n_read"]:
        """log p of every token, from the logits at `read_backs`; 0 where there is none. Nats."""
        tables = self.to(read.device)
        log_p = read.log_softmax(dim=-1)
        rows = torch.arange(len(read), device=read.device)[:, None, None]
        found = log_p[rows, tables.backs.clamp(min=0), tables.tokens.clamp(min=0)]
        return torch.where(tables.present, found, 0.0)

    def by_question(self, values: Float[Tensor, "batch *rest"]) -> Float[Tensor, "question n_pairs *rest"]:
        """Values of pairs, question by question; raises `InputError` when a question is not whole."""
        ids = self.questions.tolist()
        groups = [ids[i : i + self.n_pairs] for i in range(0, len(ids), self.n_pairs)]
        if any(len(group) < self.n_pairs or len(set(group)) > 1 for group in groups):
            raise InputError(
                f"the {self.n_pairs} pairs of a question are judged together; take whole questions, as task[:n] and "
                "pairs.batches do"
            )
        return values.unflatten(0, (-1, self.n_pairs))


TENSORS = ("backs", "tokens", "sides", "counts", "questions")


def require_one_token(found: Continuations | None, what: str) -> None:
    """Raises `InputError` for pairs that carry whole answers, which no one difference of logits stands for."""
    if found is not None:
        raise InputError(
            f"{what} is read off one difference of logits; these pairs carry whole answers. Build the task with "
            "metric='first_difference'."
        )


@dataclass(frozen=True)
class Begun:
    """One pair of a question: what follows both prompts, and the answers (token ids, side, count) that begin so."""

    beginning: tuple[int, ...]
    answers: tuple[tuple[tuple[int, ...], int, int], ...]


def beginnings(correct: Sequence[tuple[int, ...]], incorrect: Sequence[tuple[int, ...]]) -> list[Begun]:
    """The pairs of a question, one per different beginning of its answers; answers are token ids.

    >>> [one.beginning for one in beginnings([(5, 6)], [(7,)])]
    [(5,), ()]
    """
    found: dict[tuple[int, ...], list[tuple[tuple[int, ...], int, int]]] = {}
    for side, answers in ((1, correct), (-1, incorrect)):
        for ids in answers:
            found.setdefault(ids[:-1], []).append((ids, side, len(answers)))
    return [Begun(beginning, tuple(answers)) for beginning, answers in found.items()]


def pad_questions(questions: Sequence[Sequence[Begun]]) -> tuple[list[list[Begun]], int]:
    """Questions of one number of pairs: those with fewer repeat their first beginning, with answers that do not count.
    Also that number.
    """
    n = max(len(question) for question in questions)
    padded = []
    for question in questions:
        silent = Begun(question[0].beginning, tuple((ids, 0, 1) for ids, _, _ in question[0].answers))
        padded.append([*question, *[silent] * (n - len(question))])
    return padded, n


def tabulate(rows: Sequence[Begun], n_pairs: int) -> Continuations:
    """The tables of some pairs."""
    n_answers = max(len(row.answers) for row in rows)
    n_read = max(len(ids) for row in rows for ids, _, _ in row.answers)
    tokens = torch.full((len(rows), n_answers, n_read), ABSENT)
    backs = torch.full_like(tokens, ABSENT)
    sides, counts = torch.zeros(len(rows), n_answers, dtype=torch.long), torch.ones(len(rows), n_answers).long()
    for r, row in enumerate(rows):
        for a, (ids, side, count) in enumerate(row.answers):
            tokens[r, a, : len(ids)] = torch.tensor(ids)
            backs[r, a, : len(ids)] = torch.arange(len(ids) - 1, -1, -1)
            sides[r, a], counts[r, a] = side, count
    questions = torch.arange(len(rows)) // n_pairs
    return Continuations(backs, tokens, sides, counts, questions, n_pairs)
