"""Metrics: ``(logits, pairs) -> (batch,)``, never averaged, read at the last real token of each prompt.

| name | value per pair | linear in the logits | pairs per question |
|---|---|---|---|
| `logit_difference` | mean logit of the correct answers minus mean logit of the incorrect ones | yes | 1 |
| `probability_difference` | summed probability of the correct minus of the incorrect answers | no | 1 |
| `kl_divergence` | KL(clean run ‖ this run) in nats; 0 for the clean run itself | no | 1, and a clean run |
| `log_probability` | log of the summed probability of the correct answers, in nats | no | 1 |
| `first_token` | `logit_difference` of the first tokens of answers of several | yes | 1 |
| `first_difference` | `logit_difference` of the first tokens that differ, after what all answers share | yes | 1 |
| `sequence_difference` | mean log P(correct answer) minus mean log P(incorrect answer), in nats | no | answers |
| `sequence_difference_per_token` | the same with each log P divided by its answer's number of tokens | no | answers |
| `sequence_probability` | summed P(correct answer) | no | answers |
| `sequence_probability_difference` | summed P(correct answer) minus summed P(incorrect answer) | no | answers |

A call costs its number of pairs times its passes; "answers" stands for the different beginnings of a question's answers
(all but their last tokens), mostly 2.

P(answer) is the product of the probabilities of its tokens after the prompt and the answer's earlier tokens. The four
metrics of sequences read every column of an answer; the value of a pair is its part of the question's, times the
question's number of pairs (see `continuations`), so that means over pairs are means over questions.

Positive effects mean that the clean value raises the metric; for `kl_divergence`, where the clean run is the minimum,
useful places therefore have negative effects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..shapes import Logits, PerExample
from ..statistics import kl_nats
from .pairs import ABSENT, PromptPairs

Takes = Literal["one", "first", "differing", "whole"]

MetricFunction = Callable[[Logits, PromptPairs], Tensor]
"""``(logits, pairs) -> (batch,)``."""


@dataclass(frozen=True)
class Metric:
    """A named metric.

    `linear` in the logits; `reads_final`: reads nothing but ``pairs.final(logits)`` (of whole answers
    ``pairs.read(logits)``), so that logits of other positions need not be computed; `reads_answers`: reads of those
    nothing but the correct and incorrect tokens' logits, so that other columns of the unembedding need not be computed
    either (a metric that claims so and reads others meets NaN there, which is an error); `needs_reference`: the pairs
    must carry the clean run's log-probabilities. `takes`: what of an answer of several tokens is read: nothing
    (``"one"``: such answers are refused), its ``"first"`` token, the first ``"differing"`` one, or the ``"whole"``.
    """

    name: str
    function: MetricFunction
    linear: bool = False
    reads_final: bool = False
    reads_answers: bool = False
    needs_reference: bool = False
    takes: Takes = "one"

    def __post_init__(self) -> None:
        if self.reads_answers and not self.reads_final:
            raise InputError(
                f"metric {self.name!r} reads answers only, so it reads final logits only: set reads_final=True"
            )

    def __call__(self, logits: Logits, pairs: PromptPairs) -> Tensor:
        """The metric as its author wrote it; `Task.measure` checks what it returns."""
        return self.function(logits, pairs)


def _logit_difference(logits: Logits, pairs: PromptPairs) -> PerExample:
    final = pairs.final(logits)
    return _mean_at(final, pairs.correct) - _mean_at(final, pairs.incorrect)


def _probability_difference(logits: Logits, pairs: PromptPairs) -> PerExample:
    probabilities = pairs.final(logits).softmax(dim=-1)
    return _sum_at(probabilities, pairs.correct) - _sum_at(probabilities, pairs.incorrect)


def _log_probability(logits: Logits, pairs: PromptPairs) -> PerExample:
    log_probabilities = pairs.final(logits).log_softmax(dim=-1)
    index, present = _index(pairs.correct, log_probabilities)
    picked = log_probabilities.gather(-1, index).masked_fill(~present, -torch.inf)
    return picked.logsumexp(dim=-1)


def _kl_divergence(logits: Logits, pairs: PromptPairs) -> PerExample:
    if pairs.reference_logprobs is None:
        raise InputError(
            "kl_divergence compares with the clean run, whose log-probabilities these pairs do not carry. "
            "Use task.with_metric('kl_divergence', model)."
        )
    reference = pairs.reference_logprobs.to(logits.device)
    return kl_nats(reference, pairs.final(logits).log_softmax(dim=-1))


def log_probabilities_of_answers(logits: Logits, pairs: PromptPairs) -> Float[Tensor, "batch n_answers"]:
    """log P of each answer that a pair reads, in nats; raises `InputError` for pairs that read single tokens."""
    if pairs.continuations is None:
        raise InputError(
            "metrics of sequences need pairs that carry whole answers. Build the task with that metric, e.g. "
            "from_file(model, path, metric='sequence_difference')."
        )
    return pairs.continuations.log_probabilities(pairs.read(logits)).sum(dim=-1)


def _weighed(values: Float[Tensor, "batch n_answers"], pairs: PromptPairs, *, mean: bool, both: bool) -> PerExample:
    """The pair's part of the question: correct answers less incorrect ones, times the pairs of a question."""
    assert pairs.continuations is not None
    tables = pairs.continuations.to(values.device)
    sides = tables.sides if both else tables.sides.clamp(min=0)
    weights = (sides / tables.counts if mean else sides).to(values)
    return (weights * values).sum(dim=-1) * tables.n_pairs


def _sequence_difference(logits: Logits, pairs: PromptPairs) -> PerExample:
    return _weighed(log_probabilities_of_answers(logits, pairs), pairs, mean=True, both=True)


def _sequence_difference_per_token(logits: Logits, pairs: PromptPairs) -> PerExample:
    values = log_probabilities_of_answers(logits, pairs)
    assert pairs.continuations is not None
    n = pairs.continuations.present.sum(dim=-1).clamp(min=1).to(values)
    return _weighed(values / n, pairs, mean=True, both=True)


def _sequence_probability(logits: Logits, pairs: PromptPairs) -> PerExample:
    return _weighed(log_probabilities_of_answers(logits, pairs).exp(), pairs, mean=False, both=False)


def _sequence_probability_difference(logits: Logits, pairs: PromptPairs) -> PerExample:
    return _weighed(log_probabilities_of_answers(logits, pairs).exp(), pairs, mean=False, both=True)


logit_difference = Metric("logit_difference", _logit_difference, linear=True, reads_final=True, reads_answers=True)
probability_difference = Metric("probability_difference", _probability_difference, reads_final=True)
log_probability = Metric("log_probability", _log_probability, reads_final=True)
kl_divergence = Metric("kl_divergence", _kl_divergence, reads_final=True, needs_reference=True)
first_token = replace(logit_difference, name="first_token", takes="first")
first_difference = replace(logit_difference, name="first_difference", takes="differing")
sequence_difference = Metric("sequence_difference", _sequence_difference, reads_final=True, takes="whole")
sequence_difference_per_token = Metric(
    "sequence_difference_per_token", _sequence_difference_per_token, reads_final=True, takes="whole"
)
sequence_probability = Metric("sequence_probability", _sequence_probability, reads_final=True, takes="whole")
sequence_probability_difference = Metric(
    "sequence_probability_difference", _sequence_probability_difference, reads_final=True, takes="whole"
)

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        logit_difference, probability_difference, log_probability, kl_divergence, first_token, first_difference,
        sequence_difference, sequence_difference_per_token, sequence_probability, sequence_probability_difference,
    )
}  # fmt: skip


def find_metric(metric: str | Metric | MetricFunction) -> Metric:
    """The metric of that name, or the given callable as a `Metric`."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise UnknownNameError("metric", metric, METRICS)
        return METRICS[metric]
    if not callable(metric):
        raise InputError(f"a metric is a name or a callable (logits, pairs) -> (batch,); got {type(metric).__name__}")
    return Metric(getattr(metric, "__name__", type(metric).__name__), metric)


def accuracy(logits: Logits, pairs: PromptPairs) -> Bool[Tensor, " batch"]:
    """Whether the best correct answer has a higher logit (of several tokens: log-probability) than every incorrect one;
    a question's pairs say the same.
    """
    if pairs.continuations is not None:
        return _questions_right(log_probabilities_of_answers(logits, pairs), pairs)
    final = pairs.final(logits)
    best = []
    for answers in (pairs.correct, pairs.incorrect):
        index, present = _index(answers, final)
        best.append(final.gather(-1, index).masked_fill(~present, -torch.inf).amax(dim=-1))
    return best[0] > best[1]


def _questions_right(values: Float[Tensor, "batch n_answers"], pairs: PromptPairs) -> Bool[Tensor, " batch"]:
    assert pairs.continuations is not None
    tables = pairs.continuations.to(values.device)
    best, rival = (
        tables.by_question(values.masked_fill(tables.sides != side, -torch.inf)).amax(dim=(1, 2)) for side in (1, -1)
    )
    return (best > rival).repeat_interleave(pairs.n_per_question)


def _index(answers: Int[Tensor, "batch n"], like: Tensor) -> tuple[Int[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
    answers = answers.to(like.device)
    return answers.clamp(min=0), answers != ABSENT


def _sum_at(values: Float[Tensor, "batch d_vocab"], answers: Int[Tensor, "batch n"]) -> PerExample:
    index, present = _index(answers, values)
    return (values.gather(-1, index) * present).sum(dim=-1)


def _mean_at(values: Float[Tensor, "batch d_vocab"], answers: Int[Tensor, "batch n"]) -> PerExample:
    return _sum_at(values, answers) / (answers != ABSENT).sum(dim=-1).to(values.device)
