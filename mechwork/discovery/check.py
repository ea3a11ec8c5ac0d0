"""Is the data fit for a discovery? Looked at before any long step, and by ``mechwork check``.

| asked | red | yellow |
|---|---|---|
| answers | accuracy below chance + `MARGIN` | accuracy below 80 % |
| gap = m(clean) - m(corrupt) | mean not positive: the result would be invalid | mean gap known to no better than 25 % |
| alignment | the prompts of a pair differ in length | no named spans and prompts of several lengths |
| duplicates | | a pair occurs twice, or in both halves |
| number | | one pair, or fewer than 8 |

Accuracy: the best correct answer above every incorrect one; chance = n_correct / (n_correct + n_incorrect).
Pairs needed: n with 1.96 sd(gap) / (mean gap sqrt(n)) = 0.1. Cost: 2 forwards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..lenses.prompts import token_text
from ..models.anatomy import device_of
from ..models.borrow import run_tail
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table, table_rows
from ..tasks.metrics import accuracy
from ..tasks.pairs import ABSENT
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MARGIN = 0.1
"""How far above chance a model must answer for its circuit to be looked for."""
GOOD, FEW, WIDE, WANTED = 0.8, 8, 0.25, 0.1
N_ANSWERS = 3

Level = Literal["green", "yellow", "red"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where nothing needs to be done."""

    what: str
    level: Level
    said: str
    remedy: str = ""


@dataclass(frozen=True)
class AnswerShares:
    """What the model answers to one clean prompt: its token ids, the probabilities of the correct and the incorrect
    answer.
    """

    tokens: tuple[int, ...]
    correct: float
    incorrect: float


@dataclass(frozen=True, eq=False)
class DataCheck(Result):
    """What is said of the pairs. `accuracy`, `chance`, `clean` and `corrupt` (mean metric) are of all pairs; `example`
    is of the first test pair, where it has one correct and one incorrect answer, of one token each.
    """

    rows: tuple[Finding, ...]
    accuracy: float
    chance: float
    clean: float
    corrupt: float
    provenance: Provenance
    example: AnswerShares | None = None

    @property
    def level(self) -> Level:
        """The worst of all findings."""
        levels = {row.level for row in self.rows}
        return "red" if "red" in levels else "yellow" if "yellow" in levels else "green"

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is red."""
        return tuple(row for row in self.rows if row.level == "red")

    def _table(self) -> Table:
        """One row per finding."""
        return table_rows(self.rows)

    def __repr__(self) -> str:
        return "\n".join(
            f"{row.level:<7} {row.what:<11} {row.said}" + (f"\n{'':20}{row.remedy}" if row.remedy else "")
            for row in self.rows
        )


def check_data(model: TransformerBridge, task: Task, *, min_accuracy: float | None = None) -> DataCheck:
    """Look at the pairs, and at what the model answers to them. `min_accuracy` replaces chance + `MARGIN`."""
    first = task.splits.index("test") if "test" in task.splits else 0
    clean, right, answered, (row, logits) = _run(model, task, first)
    corrupt, _, _, _ = _run(model, task, first, corrupt=True)
    rate, chance = float(right.mean()), _chance(task)
    least = chance + MARGIN if min_accuracy is None else min_accuracy
    answers = _answers(model, task, rate, chance, least, answered)
    rows = (_count(task), _alignment(task), _duplicates(task), answers, *_gap(task, clean, corrupt))
    provenance = build_provenance(method="data check", model=identify_model(model), task=task.provenance())
    return DataCheck(
        rows, rate, chance, float(clean.mean()), float(corrupt.mean()), provenance, _example(task, row, logits)
    )


def _example(task: Task, row: int, logits: Tensor) -> AnswerShares | None:
    pairs = task.pairs
    if pairs.continuations is not None or any(
        (side[row] != ABSENT).sum() != 1 for side in (pairs.correct, pairs.incorrect)
    ):
        return None
    shares = logits.double().softmax(dim=-1)
    correct, incorrect = (float(shares[side[row].max()]) for side in (pairs.correct, pairs.incorrect))
    return AnswerShares(tuple(pairs.clean_tokens[row, : int(pairs.lengths[row])].tolist()), correct, incorrect)


def _run(
    model: TransformerBridge, task: Task, first: int, *, corrupt: bool = False
) -> tuple[Tensor, Tensor, list[int], tuple[int, Tensor]]:
    """Metric and correctness per question, best (first) token per pair, in batches of 16; and the logits of one pair
    from `first` on, the first that the model gets right, if any.
    """
    metrics, right, best, shown = [], [], [], dict[bool, tuple[int, Tensor]]()
    for rows in torch.arange(len(task)).split(task.pairs.whole(16)):
        part = task[rows.tolist()]
        pairs = part.pairs.to(device_of(model))  # as wide as the longest prompt of the batch
        if corrupt:  # the answer is read at the end of the corrupt prompt
            pairs = pairs.corrupt_as_host()
        tail = pairs.n_tail if part.metric.reads_final else None
        with torch.no_grad():
            logits = run_tail(model, pairs.clean_tokens, tail)
        metrics.append(part.measure(logits, pairs).cpu())
        right.append(accuracy(logits, pairs).float().cpu())
        said = pairs.read(logits)[:, -1]  # an answer's first token
        best += said.argmax(dim=-1).tolist()
        for i, row in enumerate(rows.tolist()):
            if row >= first:
                shown.setdefault(bool(right[-1][i] == 1), (row, said[i].cpu()))
    per_question = task.pairs.per_question
    return (
        per_question(torch.cat(metrics).double()),
        per_question(torch.cat(right)),
        best,
        shown.get(True) or shown[False],
    )


def _chance(task: Task) -> float:
    n_correct, n_incorrect = (
        (side != ABSENT).sum(dim=1).double() for side in (task.pairs.correct, task.pairs.incorrect)
    )
    return float((n_correct / (n_correct + n_incorrect)).mean())


def _count(task: Task) -> Finding:
    n = len(task)
    if n == 1:
        return Finding(
            "number", "yellow", "one pair: no interval and no test on other data", "Add pairs; 32 are a good start."
        )
    if n < FEW:
        return Finding(
            "number", "yellow", f"{n} pairs", f"Add pairs: below {FEW} intervals are wide and means cannot be used."
        )
    return Finding("number", "green", f"{n} pairs")


def _alignment(task: Task) -> Finding:
    pairs = task.pairs
    if not pairs.aligned and pairs.spans:
        alone = int((pairs.alignment() < 0)[pairs.mask].sum())
        return Finding(
            "alignment", "yellow",
            f"the two prompts of a pair differ in length and are aligned by spans; {alone} of "
            f"{int(pairs.mask.sum())} clean tokens correspond to none",
            "describe() shows the alignment. Prompts of one length leave nothing out.",
        )  # fmt: skip
    if not pairs.aligned:
        return Finding(
            "alignment", "red", "the two prompts of a pair differ in length",
            "Edges compare position by position: reword the longer prompt of each pair.",
        )  # fmt: skip
    if not pairs.one_length and not pairs.spans:
        return Finding(
            "alignment", "yellow", "several lengths and no named spans: effects are of all positions at once",
            "For effects by position, bring prompts to one number of tokens.",
        )  # fmt: skip
    return Finding("alignment", "green", "one length" if pairs.one_length else "aligned by named spans")


def _duplicates(task: Task) -> Finding:
    prompts = [
        (tuple(a), tuple(b))
        for a, b in zip(task.pairs.clean_tokens.tolist(), task.pairs.corrupt_tokens.tolist(), strict=True)
    ]
    n = task.pairs.n_per_question  # a question's pairs begin alike, and may repeat
    prompts = prompts[::n]
    twice = len(prompts) - len(set(prompts))
    splits = task.splits[::n] or ("",) * len(prompts)
    halves = {split: {p for p, s in zip(prompts, splits, strict=True) if s == split} for split in set(splits)}
    shared = len(halves.get("train", set()) & halves.get("test", set()))
    if shared:
        return Finding(
            "duplicates",
            "yellow",
            f"{shared} pairs are in train and in test",
            "Take them out of one: the test is not held out.",
        )
    if twice:
        return Finding(
            "duplicates", "yellow", f"{twice} pairs are repetitions", "Take them out: intervals count them twice."
        )
    return Finding("duplicates", "green", "none")


def _answers(
    model: TransformerBridge, task: Task, rate: float, chance: float, least: float, answered: list[int]
) -> Finding:
    said = f"the model answers {rate:.0%} correctly (chance {chance:.0%})"
    if rate >= max(least, min(GOOD, 1.0)):
        return Finding("answers", "green", said)
    wrong = Counter(answered).most_common(N_ANSWERS)
    instead = ", ".join(f"{token_text(model, token)!r} ({n} of {len(task)})" for token, n in wrong)
    said += f"; its most frequent answers: {instead}"
    if rate < least:
        return Finding(
            "answers", "red", said,
            f"Below {least:.0%} there is nothing to explain: try another task, model or wording, or the other --bos.",
        )  # fmt: skip
    return Finding("answers", "yellow", said, "The circuit is of a behaviour that often fails.")


def _gap(task: Task, clean: Tensor, corrupt: Tensor) -> list[Finding]:
    gap = clean - corrupt
    if task.metric.name == "kl_divergence":
        gap = -gap  # the clean run is the minimum
    mean, n = float(gap.mean()), len(gap)
    said = (
        f"{task.metric.name} {float(clean.mean()):+.2f} on clean prompts, {float(corrupt.mean()):+.2f} on corrupt ones"
    )
    if mean <= 0:
        return [
            Finding("gap", "red", f"{said}: clean is not above corrupt, so every share of the gap is invalid",
                    "Exchange the two prompts, or correct and incorrect; or the model does not have the behaviour.")
        ]  # fmt: skip
    if n == 1:
        return [Finding("gap", "green", said)]
    spread = float(gap.std()) / mean
    width, needed = 1.96 * spread / n**0.5, max(2, round((1.96 * spread / WANTED) ** 2))
    said += f"; the mean gap is known to {width:.0%}, {needed} pairs would give {WANTED:.0%}"
    if width > WIDE:
        return [Finding("gap", "yellow", said, "More pairs, or more alike ones, make the intervals useful.")]
    return [Finding("gap", "green", said)]
