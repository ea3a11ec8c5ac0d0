"""What steering is judged on: the unsteered model's answers, kept to compare every steered run with.

Side effects, each beside what the unsteered model does:

    KL           KL(plain || steered) of the next token in nats, at the last token of other tasks' clean prompts and at
                 every position of a text; the mean over tasks and text
    entropy      of the next token in nats, at the same positions, a mean in the same way
    accuracy     on the other tasks
    perplexity   of the text
    repetition   of greedy continuations of the text's first `OPENING` tokens: 1 - distinct trigrams / trigrams
    oddness      of those continuations: their perplexity under the unsteered model, a proxy for incoherence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, MetricError
from ..interventions import Steering, as_interventions, guard_overflow, intervene
from ..models.anatomy import check_ready, device_of
from ..models.borrow import run_tail
from ..runs.record import metric_of, run_to_metric
from ..shapes import Tokens
from ..sites import Site
from ..statistics import kl_nats
from ..tasks.metrics import accuracy
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPENING = 8
"""Tokens of each row of the text that are continued."""


@dataclass(frozen=True)
class SideEffects:
    """What a run does elsewhere; None for what was not asked for."""

    other_accuracy: float
    perplexity: float | None
    repetition: float | None
    oddness: float | None
    entropy: float


@dataclass(frozen=True, eq=False)
class SteeringBench:
    """What the unsteered model does; `clean` and `corrupt` are the metric per pair."""

    model: TransformerBridge
    task: Task
    site: Site
    others: Sequence[Task]
    text: Int[Tensor, "text_row text_pos"] | None
    n_generated: int
    clean: Float[Tensor, " batch"]
    corrupt: Float[Tensor, " batch"]
    plain: list[Tensor]
    side_effects: SideEffects

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: TransformerBridge,
        task: Task,
        site: Site,
        others: Sequence[Task],
        text: Tokens | None,
        n_generated: int = 0,
    ) -> SteeringBench:
        """Run the unsteered model once on everything. Raises `InputError` for text too short to be continued,
        `MetricError` when clean and corrupt prompts have the same mean metric.
        """
        anatomy = check_ready(model)
        if text is not None and (text.ndim != 2 or text.is_floating_point()):
            raise InputError(f"text is token ids [row, pos]; got {text.dtype} {tuple(text.shape)}")
        if n_generated and (text is None or text.shape[1] < OPENING or OPENING + n_generated > anatomy.n_ctx):
            raise InputError(
                f"continuations need rows of text of at least {OPENING} tokens, and {OPENING} + n_generated tokens in "
                "the context of "
                f"{anatomy.n_ctx}; got n_generated={n_generated} and "
                f"{'no text' if text is None else f'rows of {text.shape[1]}'}"
            )
        text = None if text is None else text.to(device_of(model))
        pairs = task.pairs.to(device_of(model))
        clean = metric_of(model, task, pairs).cpu()
        host = pairs.corrupt_as_host()
        corrupt = metric_of(model, task, host).cpu()
        if abs(float(clean.mean() - corrupt.mean())) <= 1e-6 * max(1e-12, float(clean.abs().max())):
            raise MetricError("success is undefined: clean and corrupt prompts have the same mean metric")
        plain, effects = _elsewhere(model, others, text, n_generated)
        if n_generated and text is not None:
            effects = _judged(model, effects, _continue(model, text, n_generated))
        return cls(model, task, site, others, text, n_generated, clean, corrupt, plain, effects)

    @property
    def baseline(self) -> tuple[float, float]:
        """(corrupt, clean) mean metric."""
        return float(self.corrupt.mean()), float(self.clean.mean())

    @torch.no_grad()
    def run(self, write: Steering, name: str) -> tuple[Float[Tensor, " batch"], float, float, SideEffects]:
        """(metric per pair, accuracy on the task, KL, side effects) under a write; `name` is for the message of an
        overflow.

        Raises `MetricError`, naming the layer, when activations overflow.
        """
        host = self.task.pairs.corrupt_as_host().to(device_of(self.model))
        with (
            intervene(self.model, as_interventions(self.site, write)),
            guard_overflow(self.model, f"steering by {name}"),
        ):
            logits = run_to_metric(self.model, self.task, host)
            found, effects = _elsewhere(self.model, self.others, self.text, self.n_generated)
            continued = (
                None
                if self.text is None or not self.n_generated
                else _continue(self.model, self.text, self.n_generated)
            )
        if continued is not None:
            effects = _judged(self.model, effects, continued)
        kl = [float(kl_nats(p, q).clamp(min=0).mean()) for p, q in zip(self.plain, found, strict=True)]
        right = float(accuracy(logits, host).float().mean())
        return self.task.measure(logits, host).cpu(), right, sum(kl) / len(kl), effects

    def success(self, reached: Float[Tensor, " batch"], seed: int, n: int = 1000) -> tuple[float, tuple[float, float]]:
        """(success, 95 % bootstrap over pairs, numerator and denominator resampled together)."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(reached), (n, len(reached)), generator=generator)
        ratios = (reached - self.corrupt)[rows].mean(dim=1) / (self.clean - self.corrupt)[rows].mean(dim=1)
        low, high = ratios.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        gap = self.clean.mean() - self.corrupt.mean()
        return float((reached.mean() - self.corrupt.mean()) / gap), (low, high)


def _elsewhere(
    model: TransformerBridge, others: Sequence[Task], text: Tokens | None, n_generated: int
) -> tuple[list[Tensor], SideEffects]:
    """Log-probabilities at the last token of every other task's clean prompts and of the whole text, and what they
    amount to.
    """
    found, right, perplexity = [], [], None
    for other in others:
        pairs = other.pairs.to(device_of(model))
        logits = run_tail(model, pairs.clean_tokens, pairs.n_tail)
        found.append(pairs.final(logits).log_softmax(dim=-1))
        right.append(float(accuracy(logits, pairs).float().mean()))
    if text is not None:
        found.append(model(text).log_softmax(dim=-1))
        perplexity = _perplexity(found[-1], text)
    spread = [float(-(one.exp() * one).nan_to_num(0.0).sum(dim=-1).mean()) for one in found]
    entropy = sum(spread) / len(spread) if spread else float("nan")
    return found, SideEffects(sum(right) / len(right) if right else float("nan"), perplexity, None, None, entropy)


def _continue(model: TransformerBridge, text: Int[Tensor, "batch pos"], n: int) -> Int[Tensor, "batch grown"]:
    opening = text[:, :OPENING]
    grown = model.generate(
        opening, max_new_tokens=n, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
    )
    return cast(Any, grown)


def _judged(model: TransformerBridge, effects: SideEffects, continued: Tokens) -> SideEffects:
    """The side effects with what the continuations are like, read by the model as it now runs."""
    new = continued[:, OPENING:]
    log_p = model(continued).log_softmax(dim=-1)[:, OPENING - 1 :]
    return replace(effects, repetition=repetition(new), oddness=_perplexity(log_p, continued[:, OPENING - 1 :]))


def repetition(tokens: Int[Tensor, "row pos"], n: int = 3) -> float:
    """1 - distinct `n`-grams / `n`-grams, the mean over rows; 0 for rows shorter than `n`."""
    shares = []
    for row in tokens.tolist():
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares)


def _perplexity(log_p: Float[Tensor, "batch pos d_vocab"], text: Tokens) -> float:
    """exp of the mean surprisal of every token but the first of each row."""
    own = log_p[:, :-1].gather(-1, text[:, 1:, None].to(log_p.device))
    return float((-own.mean()).exp())
