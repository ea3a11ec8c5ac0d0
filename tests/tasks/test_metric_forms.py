"""Every metric of `mw.metrics`, by span, on prompts of several lengths that came padded on either side: patching, edges
and estimates against the definitions (one prompt, one answer, one forward or gradient at a time), in float64, on every
architecture family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.circuits import score_positions
from mechwork.patching import attribute, patch
from mechwork.tasks.alignment import align
from mechwork.tasks.answers import ANSWER
from mechwork.tasks.metrics import METRICS
from mechwork.tasks.task import Task
from tests.circuits.test_edges import tolerance
from tests.families import CHOSEN, padded, rounding
from tests.gate import fewer
from tests.reference import literal
from tests.reference.sequences import FORMS, Question, sum_over_answers, value
from tests.tasks.test_padding import batch

LAYER = 1
PLACES = ("differs", "END", ANSWER)
NAMES = tuple(METRICS)
FEW = [(family, (NAMES[i % 5], NAMES[-1 - i % 5])) for i, family in enumerate(CHOSEN)]
"""Every metric at least once over the families of the gate, two on each."""

QUESTIONS = (
    Question([3, 14, 15, 92, 65, 35, 8], [3, 14, 16, 17, 92, 65, 35, 8], [[1, 2], [1, 7]], [[1, 9]]),
    Question([27, 18, 28, 45, 9], [27, 18, 20, 28, 29, 45, 9], [[4, 5], [4, 2]], [[4, 8]]),
)
"""Answers that share their first token."""

ONE: dict[str, Callable[[Tensor, list[int], list[int]], Tensor]] = {
    "logit_difference": lambda z, right, wrong: z[right].mean() - z[wrong].mean(),
    "first_token": lambda z, right, wrong: z[right].mean() - z[wrong].mean(),
    "first_difference": lambda z, right, wrong: z[right].mean() - z[wrong].mean(),
    "probability_difference": lambda z, right, wrong: (
        (z.exp() / z.exp().sum())[right].sum() - (z.exp() / z.exp().sum())[wrong].sum()
    ),
    "log_probability": lambda z, right, wrong: (z.exp() / z.exp().sum())[right].sum().log(),
}
"""Metrics of the next token, of its logits ``[d_vocab]``; `kl_divergence` is told in `next_token`."""


def asked(name: str) -> list[tuple[list[int], list[int], list[list[int]], list[list[int]]]]:
    """Clean, corrupt, correct and incorrect of each question, with the answers that the metric takes."""
    cut = {"one": slice(1, None), "first": slice(1, None)}.get(METRICS[name].takes, slice(None))
    return [(q.clean, q.corrupt, [a[cut] for a in q.correct], [a[cut] for a in q.incorrect]) for q in QUESTIONS]


def build(model: Any, name: str, side: str) -> Task:
    clean, corrupt, right, wrong = (list(column) for column in zip(*asked(name), strict=True))
    spans = [align(a, b) for a, b in zip(clean, corrupt, strict=True)]
    if METRICS[name].takes == "one":
        right, wrong = ([[a[0] for a in one] for one in answers] for answers in (right, wrong))
    kl = name == "kl_divergence"
    task = Task.from_tokens(
        batch(clean, side), batch(corrupt, side), right, wrong, metric="logit_difference" if kl else name,
        spans=[a for a, _ in spans], corrupt_spans=[b for _, b in spans],
    )  # fmt: skip
    return task.with_metric(name, model) if kl else task


def correspondence(task: Task, host: Tensor, *, denoise: bool) -> dict[str, dict[int, int]]:
    """By span, host position -> donor position, the last to the last; found by the host's tokens."""
    pairs = task.pairs.corrupt_as_host() if denoise else task.pairs
    row = next(i for i in range(len(pairs)) if pairs.prompt(i) == host[0].tolist())
    places = {
        name: [table[name][row].nonzero().flatten().tolist() for table in (pairs.spans, pairs.corrupt_spans)]
        for name in pairs.spans.keys() & pairs.corrupt_spans.keys()  # the others correspond to nothing
    }
    return {name: dict(zip(a[::-1], b[::-1], strict=False)) for name, (a, b) in places.items()}


def moved(host: Tensor, donor: Tensor, index: dict[int, int], head: int | None = None) -> Tensor:
    new = host.clone()
    for p, q in index.items():
        if head is None:
            new[:, p] = donor[:, q]
        else:
            new[:, p, head] = donor[:, q, head]
    return new


def next_token(model: Any, name: str, row: int) -> Callable[[Tensor], Tensor]:
    """A metric of the next token, of logits ``[1, pos, d_vocab]``."""
    clean, _, right, wrong = asked(name)[row]
    if name == "kl_divergence":
        with torch.no_grad():
            log_p = model(torch.tensor([clean]))[0, -1].log_softmax(-1)
        return lambda logits: (log_p.exp() * (log_p - logits[0, -1].log_softmax(-1))).sum()[None]
    at = 1 if name == "first_difference" else 0
    return lambda logits: ONE[name](logits[0, -1], [a[at] for a in right], [a[at] for a in wrong])[None]


def ends(name: str, row: int, *, denoise: bool) -> tuple[Tensor, Tensor]:
    """Host and donor of a metric of the next token: after what all answers share, under `first_difference`."""
    clean, corrupt, right, _ = asked(name)[row]
    shared = right[0][:1] if name == "first_difference" else []
    host, donor = (corrupt, clean) if denoise else (clean, corrupt)
    return torch.tensor([[*host, *shared]]), torch.tensor([[*donor, *shared]])


def literal_value(model: Any, name: str, row: int, run: Callable[[Tensor, Tensor], Tensor], *, denoise: bool) -> Tensor:
    with torch.no_grad():
        if name in FORMS:
            return value(QUESTIONS[row], name, run, denoise=denoise)
        return next_token(model, name, row)(run(*ends(name, row, denoise=denoise)))[0]


def literal_score(model: Any, name: str, row: int, score: Callable[..., Tensor], *, denoise: bool) -> Tensor:
    if name in FORMS:
        return sum_over_answers(QUESTIONS[row], name, score, denoise=denoise)
    return score(*ends(name, row, denoise=denoise), next_token(model, name, row))


def check_patching(model: Any, task: Task, name: str, *, denoise: bool) -> None:
    effects = patch(model, task, ["resid_pre", "z"], direction="denoise" if denoise else "noise")
    spans = effects["resid_pre"].labels["pos"]
    cells = [("resid_pre", i, None, (span,)) for i, span in enumerate(spans) if span in PLACES] + [("z", 2, 2, spans)]
    for row in range(len(QUESTIONS)):
        base = literal_value(model, name, row, lambda host, donor: model(host), denoise=denoise)
        found, wanted = [], []
        for kind, at, head, where in cells:

            def run(host: Tensor, donor: Tensor, kind: str = kind, head: Any = head, where: Any = where) -> Tensor:
                by_span = correspondence(task, host, denoise=denoise)
                index = {p: q for span in where for p, q in by_span.get(span, {}).items()}
                own, other = (literal.cached(model, tokens)[literal.hook(kind, LAYER)] for tokens in (host, donor))
                new = moved(own, other, index, head)
                return literal.patch_cell(model, host, new, kind, LAYER, lambda logits: logits)

            new = literal_value(model, name, row, run, denoise=denoise)
            wanted.append(new - base if denoise else base - new)
            found.append(effects[kind].per_example[row, LAYER, at])
        check(torch.stack(found), torch.stack(wanted), padded(model, 10 * rounding(model)), base)


def check(found: Tensor, wanted: Tensor, near: float, base: Tensor) -> None:
    """Probabilities of whole answers are small here, and so is what rounding does to them: the tolerance goes along.

    `base` is the metric itself: effects are far above what float64 makes of a difference of two such values.
    """
    scale = float(wanted.abs().max())
    assert scale > 1e-10 * float(base.abs())
    assert scale > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=near * min(1.0, scale))


def check_estimates(model: Any, task: Task, name: str, *, denoise: bool) -> None:
    direction = "denoise" if denoise else "noise"
    effect = attribute(model, task, ["resid_pre"], rules="gradient", direction=direction)["resid_pre"]
    key = literal.hook("resid_pre", LAYER)
    for row in range(len(QUESTIONS)):

        def score(host: Tensor, donor: Tensor, metric: Any) -> Tensor:
            own, other = (literal.cached(model, tokens)[key] for tokens in (host, donor))
            grad = literal.gradient_at(model, host, "resid_pre", LAYER, metric)
            by_span = correspondence(task, host, denoise=denoise)
            changes = [moved(own, other, by_span.get(span, {})) - own for span in effect.labels["pos"]]
            return torch.stack([(change * grad).sum() for change in changes])

        expected = literal_score(model, name, row, score, denoise=denoise)
        found = effect.per_example[row, LAYER]
        base = literal_value(model, name, row, lambda host, donor: model(host), denoise=denoise)
        check(found, expected * (1 if denoise else -1), padded(model, 10 * tolerance(model)), base)


@pytest.mark.parametrize(("family", "names"), fewer([(family, NAMES) for family in CHOSEN], FEW))
def test_patching_and_estimates(family_model64: Any, names: tuple[str, ...]) -> None:
    """Left-padded prompts denoised, right-padded ones noised: what a task makes of either side is the same to the bit
    (`test_padding`).
    """
    for name in names:
        denoise = NAMES.index(name) % 2 == 0
        task = build(family_model64, name, "left" if denoise else "right")
        check_patching(family_model64, task, name, denoise=denoise)
        check_estimates(family_model64, task, name, denoise=not denoise)


@pytest.mark.parametrize(
    ("family", "name"), fewer([(f, m) for f in CHOSEN for m in METRICS], [("gemma2", "log_probability")])
)
def test_edges_by_span(family_model64: Any, name: str) -> None:
    model, graph = family_model64, literal.LiteralGraph(family_model64)
    task = build(model, name, "left")
    scores = score_positions(model, task, positions="spans", rules="gradient")
    space, total = scores.space, []
    for row in range(len(QUESTIONS)):

        def score(host: Tensor, donor: Tensor, metric: Any) -> Tensor:
            ours, theirs = graph.writes_of(host), graph.writes_of(donor)
            nudge = {r: torch.zeros_like(ours["input"]).requires_grad_(True) for r in space.readers}
            with torch.enable_grad():
                grads = torch.autograd.grad(
                    metric(graph.run(host, ours, lambda w, r: True, nudge)).sum(), [*nudge.values()]
                )
            by_span = correspondence(task, host, denoise=True)
            at = [by_span.get(span, {}) for span in scores.labels]
            changes = {w: [moved(ours[w], theirs[w], index) - ours[w] for index in at] for w in space.writers}
            return torch.stack([
                torch.stack([torch.stack([(changes[w][s] * g).sum() for g in grads]) for w in space.writers])
                for s in range(len(at))
            ])  # fmt: skip

        total.append(literal_score(model, name, row, score, denoise=True))
    expected = torch.stack(total).mean(dim=0) * space.mask
    scale = float(expected.abs().max())
    base = literal_value(model, name, 0, lambda host, donor: model(host), denoise=True)
    assert scale > 1e-10 * float(base.abs())  # far above what float64 makes of a difference of zero
    assert float((scores.values - expected).abs().max()) <= padded(model, 2 * tolerance(model)) * scale
