"""Which tokens of an answer a metric reads, and what has to follow the prompts so that they can be read.

| a metric takes | prompts are followed by | read |
|---|---|---|
| one token | nothing | the answer, which must be one token |
| the first token | nothing | each answer's first token; refused when a correct and an incorrect answer share it |
| the differing token | the tokens that all answers of the question share | the next token of each |
| the whole | all but the answer's last token, a pair per different beginning | every token (`continuations`) |

What follows is the same after the clean and the corrupt prompt. Answers are tokenised by themselves: they start a new
token after the prompt, leading space included. The appended tokens are the span `ANSWER`; `END` stays the prompt's
last token, except under the differing token, where it is the token that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InputError
from .continuations import Continuations, beginnings, pad_questions, tabulate
from .encode import answer_token, plain_ids
from .metrics import Metric
from .padding import token_id
from .pairs import END, Spans

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ANSWER = "ANSWER"
"""The span of the answer's tokens that follow the prompt."""

SEVERAL = (
    "Use metric='sequence_difference' (whole answers) or 'first_difference' (the first token that differs), a shorter "
    "word, or check the leading space."
)
"""What to do about an answer of several tokens."""

Ids = tuple[int, ...]
AnswerIds = tuple[list[Ids], list[Ids]]
"""Correct and incorrect answers of a question."""
AnswerTexts = tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True)
class Asked:
    """Prompts as token ids, and their spans."""

    clean: list[list[int]]
    corrupt: list[list[int]]
    spans: Sequence[Spans] | None
    corrupt_spans: Sequence[Spans] | None

    def followed_by(self, origin: Sequence[int], added: Sequence[Ids], *, end_is_last: bool) -> Asked:
        """Row by row: the prompts of question `origin`, followed by `added`."""
        after = [
            ([[*side[i], *ids] for i, ids in zip(origin, added, strict=True)],
             [_following(spans[i] if spans else {}, len(side[i]), len(ids), end_is_last=end_is_last)
              for i, ids in zip(origin, added, strict=True)])
            for side, spans in ((self.clean, self.spans), (self.corrupt, self.corrupt_spans))
        ]  # fmt: skip
        return Asked(after[0][0], after[1][0], after[0][1], after[1][1])


@dataclass(frozen=True)
class Answers:
    """Token ids per pair, and where whole answers are read."""

    correct: list[list[int]]
    incorrect: list[list[int]]
    continuations: Continuations | None = None


def arrange(
    asked: Asked, answers: Sequence[AnswerIds], metric: Metric, texts: Sequence[AnswerTexts]
) -> tuple[Asked, list[int], Answers]:
    """Pairs from questions: prompts with what has to follow them, the question each pair is of, and its answers.

    `texts` are the answers in words. Raises `InputError` for an empty answer, one of several tokens under a metric of
    one, answers that share what the metric reads, and an answer that is both correct and incorrect.
    """
    for row, question in enumerate(answers):
        _check(question, texts[row], row)
    every = list(range(len(answers)))
    if metric.takes in ("one", "first"):
        firsts = [[[ids[0] for ids in side] for side in question] for question in answers]
        for row, (correct, incorrect) in enumerate(firsts):
            if metric.takes == "one" and (long := [ids for side in answers[row] for ids in side if len(ids) > 1]):
                raise InputError(f"{metric.name} reads answers of one token; pair {row} has {long[0]}. {SEVERAL}")
            if metric.takes == "first" and set(correct) & set(incorrect):
                raise InputError(
                    f"first_token needs answers whose first tokens differ; those of pair {row}, {_said(texts[row])}, "
                    "share it. Use metric='first_difference' or 'sequence_difference'."
                )
        return asked, every, Answers([c for c, _ in firsts], [i for _, i in firsts])
    if metric.takes == "differing":
        shared = [_shared(question) for question in answers]
        after = [_next(question, len(ids), texts[row], row)
                 for row, (question, ids) in enumerate(zip(answers, shared, strict=True))]  # fmt: skip
        asked = asked.followed_by(every, shared, end_is_last=True) if any(shared) else asked
        return asked, every, Answers([c for c, _ in after], [i for _, i in after])
    questions, n_pairs = pad_questions([beginnings(*question) for question in answers])
    rows = [(i, one) for i, question in enumerate(questions) for one in question]
    origin = [i for i, _ in rows]
    asked = asked.followed_by(origin, [one.beginning for _, one in rows], end_is_last=False)
    first = [[[ids[0] for ids in side] for side in answers[i]] for i in origin]
    tables = tabulate([one for _, one in rows], n_pairs)
    return asked, origin, Answers([c for c, _ in first], [i for _, i in first], tables)


def nested_ids(correct: Any, incorrect: Any, n: int) -> list[AnswerIds]:
    """A user's nested lists, ``[pair][answer][token]``, as answers; raises `InputError` for anything else."""
    sides = []
    for name, side in (("correct", correct), ("incorrect", incorrect)):
        rows = side.tolist() if isinstance(side, Tensor) else side
        try:
            sides.append([[tuple(token_id(t, name) for t in answer) for answer in answers] for answers in rows])
        except TypeError:
            raise InputError(
                f"answers of several tokens are given as [pair][answer][token id], e.g. {name}=[[[5, 6]]]; got {side!r}"
            ) from None
        if len(sides[-1]) != n:
            raise InputError(f"{name} answers must be one row per pair; got {len(sides[-1])} rows for {n} pairs")
    return list(zip(*sides, strict=True))


def answer_ids(model: TransformerBridge, texts: AnswerTexts, metric: Metric, row: int) -> AnswerIds:
    """The token ids of a question's answers; raises `InputError` for several tokens under a metric of one."""
    if metric.takes == "one":
        for text in (*texts[0], *texts[1]):
            answer_token(model, text, f" of pair {row}", SEVERAL)
    correct, incorrect = ([tuple(plain_ids(model, text)) for text in side] for side in texts)
    return correct, incorrect


def _check(question: AnswerIds, texts: AnswerTexts, row: int) -> None:
    for side in question:
        if not side or not all(side):
            raise InputError(f"an answer has at least one token; pair {row} has the answers {_said(texts)}")
        if len(set(side)) < len(side):
            raise InputError(f"the accepted answers of a pair differ; pair {row} has one twice: {_said(texts)}")
    if set(question[0]) & set(question[1]):
        raise InputError(f"correct and incorrect answers must differ; pair {row} has one in both: {_said(texts)}")


def _shared(question: AnswerIds) -> Ids:
    """The first tokens that all answers have in common."""
    answers = [*question[0], *question[1]]
    n = 0
    while all(len(ids) > n for ids in answers) and len({ids[n] for ids in answers}) == 1:
        n += 1
    return answers[0][:n]


def _next(question: AnswerIds, n: int, texts: AnswerTexts, row: int) -> tuple[list[int], list[int]]:
    """The token after the first `n` of each answer."""
    if any(len(ids) == n for side in question for ids in side):
        raise InputError(
            f"first_difference needs answers of which none is the beginning of all others; pair {row} has "
            f"{_said(texts)}. Use metric='sequence_difference'."
        )
    correct, incorrect = ([ids[n] for ids in side] for side in question)
    if set(correct) & set(incorrect):
        raise InputError(
            f"first_difference needs correct and incorrect answers that differ in one place; pair {row} has "
            f"{_said(texts)}. Use metric='sequence_difference', or fewer answers."
        )
    return correct, incorrect


def _said(texts: AnswerTexts) -> str:
    return f"{', '.join(map(repr, texts[0]))} rather than {', '.join(map(repr, texts[1]))}"


def _following(spans: Spans, n: int, n_added: int, *, end_is_last: bool) -> Spans:
    """The spans of a prompt of `n` tokens followed by `n_added`."""
    taken = {position for positions in spans.values() for position in positions}
    end = n + n_added - 1 if end_is_last else n - 1
    added = [p for p in range(n, n + n_added) if p != end]
    return {**spans, **({END: [end]} if end not in taken else {}), **({ANSWER: added} if added else {})}
