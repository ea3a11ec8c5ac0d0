"""Metrics: ``(logits, pairs) -> (batch,)``, never averaged, read at the last real token of each prompt.

| name | value per pair | linear in the logits |
|---|---|---|
| `logit_difference` | mean logit of the correct answers minus mean logit of the incorrect ones | yes |
| `probability_difference` | summed probability of the correct minus of the incorrect answers | no |
| `kl_divergence` | KL(clean run ‖ this run) in nats over the vocabulary; 0 for the clean run itself | no |
| `log_probability` | log of the summed probability of the correct answers, in nats | no |

Positive effects mean that the clean value raises the metric; for `kl_divergence`, where the clean run is the minimum,
useful places therefore have negative effects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..shapes import Logits, PerExample
from ..statistics import kl_nats
from .pairs import ABSENT, PromptPairs

MetricFunction = Callable[[Logits, PromptPairs], Tensor]
"""``(logits, pairs) -> (batch,)``."""


@dataclass(frozen=True)
class Metric:
    """A named metric.

    `linear` in the logits; `reads_final`: reads nothing but ``pairs.final(logits)``, so that logits of other positions
    need not be computed; `reads_answers`: reads of those nothing but the correct and incorrect tokens' logits, so that
    other columns of the unembedding need not be computed either (a metric that claims so and reads others meets NaN
    there, which is an error); `needs_reference`: the pairs must carry the clean run's log-probabilities.
    """

    name: str
    function: MetricFunction
    linear: bool = False
    reads_final: bool = False
    reads_answers: bool = False
    needs_reference: bool = False

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


logit_difference = Metric("logit_difference", _logit_difference, linear=True, reads_final=True, reads_answers=True)
probability_difference = Metric("probability_difference", _probability_difference, reads_final=True)
log_probability = Metric("log_probability", _log_probability, reads_final=True)
kl_divergence = Metric("kl_divergence", _kl_divergence, reads_final=True, needs_reference=True)

METRICS: dict[str, Metric] = {
    m.name: m for m in (logit_difference, probability_difference, log_probability, kl_divergence)
}


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
    """Whether the best correct answer has a higher logit than every incorrect one."""
    final = pairs.final(logits)
    best = []
    for answers in (pairs.correct, pairs.incorrect):
        index, present = _index(answers, final)
        best.append(final.gather(-1, index).masked_fill(~present, -torch.inf).amax(dim=-1))
    return best[0] > best[1]


def _index(answers: Int[Tensor, "batch n"], like: Tensor) -> tuple[Int[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
    answers = answers.to(like.device)
    return answers.clamp(min=0), answers != ABSENT


def _sum_at(values: Float[Tensor, "batch d_vocab"], answers: Int[Tensor, "batch n"]) -> PerExample:
    index, present = _index(answers, values)
    return (values.gather(-1, index) * present).sum(dim=-1)


def _mean_at(values: Float[Tensor, "batch d_vocab"], answers: Int[Tensor, "batch n"]) -> PerExample:
    return _sum_at(values, answers) / (answers != ABSENT).sum(dim=-1).to(values.device)
