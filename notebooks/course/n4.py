"""Exercises of notebook 4, Attribution patching and where it lies."""

from __future__ import annotations

import math
from typing import Any

from .build import AVERAGED_TWICE, Case, judges, trials
from .exercise import Exercise, add, close


def _metric(x: float) -> float:
    return 1 / (1 + math.exp(-12 * (x - 0.5)))


def _slope(x: float) -> float:
    return 12 * _metric(x) * (1 - _metric(x))


def _estimate(answer: Any) -> str | None:
    if close(answer, _slope(0), 0.02):
        return None
    if close(answer, _metric(1) - _metric(0), 0.02):
        return "this is the true effect. The straight line does not know it."
    if close(answer, _slope(0.5), 0.02):
        return "this is the slope in the middle. Attribution patching takes it at the corrupt run."
    if close(answer, _metric(0), 0.02):
        return "this is the metric at the start, not what the line adds on its way."
    return "the line's effect is its slope at 0, times the way from 0 to 1."


def _steps(answer: Any) -> str | None:
    effect = _metric(1) - _metric(0)

    def off(n: int) -> float:
        return abs(sum(_slope((k + 0.5) / n) for k in range(n)) / n / effect - 1)

    truth = next(n for n in range(1, 50) if all(off(m) <= 0.05 for m in range(n, 50)))
    if int(answer) == truth:
        return None
    if int(answer) < truth:
        larger = next(m for m in range(int(answer), truth) if off(m) > 0.05)
        return f"with {larger} steps the estimate is off by {off(larger):.0%}."
    return "a smaller number is enough."


def _n_cells(answer: Any, exact: Any) -> str | None:
    values, gap = exact["mlp_out"].values, exact.baseline.gap
    if int(answer) == int((values.abs() > 0.01 * gap).sum()):
        return None
    if int(answer) == values.numel():
        return "these are all cells. How many are larger than 1 % of the gap?"
    if int(answer) == int((values.abs() > 0.01).sum()):
        return "1 % of the gap, not 0.01: the gap is 27 logits or so."
    return "count the cells whose absolute value is above 0.01 times the gap."


def _passes(answer: Any) -> str | None:
    n = int(answer)
    if n == 12:
        return None
    return {
        5: "these are the backward passes alone.",
        10: "the two runs that are recorded first, clean and corrupt, are missing.",
        3: "this is one step.",
        15: "the two runs are recorded once, not once per step.",
    }.get(n, "two forward passes first, then one forward and one backward pass per step.")


ATTRIBUTION = """
import torch


def attribution(model, task, layer):
    name, kept = f"blocks.{layer}.hook_resid_pre", {}

    def keep(stream, hook):
        kept["x"] = stream.detach().requires_grad_()
        return kept["x"]

    with torch.no_grad():
        clean = model.run_with_cache(task.pairs.clean_tokens, names_filter=name)[1][name]
    logits = model.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=[(name, keep)])
    (slope,) = torch.autograd.grad(task.measure(logits).sum(), kept["x"])
    return ((clean - kept["x"].detach()) * slope).sum(-1).mean(0)
"""

INTEGRATED = """
import torch


def integrated_gradients(model, task, n_steps):
    name = "blocks.0.hook_resid_pre"
    with torch.no_grad():
        clean = model.run_with_cache(task.pairs.clean_tokens, names_filter=name)[1][name]
        corrupt = model.run_with_cache(task.pairs.corrupt_tokens, names_filter=name)[1][name]
    total = torch.zeros_like(clean)
    for k in range(n_steps):
        point = (corrupt + (k + 0.5) / n_steps * (clean - corrupt)).requires_grad_()
        logits = model.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=[(name, lambda x, hook: point)])
        total += torch.autograd.grad(task.measure(logits).sum(), point)[0]
    return ((clean - corrupt) * total / n_steps).sum(-1).mean(0)
"""


@judges
def _attribution() -> list[Case]:
    import mechwork as mw

    cases = []
    for name, model, task in trials():
        estimates = mw.attribute(model, task, ["resid_pre"], rules="gradient", positions="each")["resid_pre"]
        at_clean = mw.attribute(model, task, ["resid_pre"], rules="gradient", positions="each", direction="noise")[
            "resid_pre"
        ]
        for layer in (0, 3):
            truth, n = estimates.values[layer], len(task)
            mistakes = (
                ("this is summed over pairs; the mean is asked for.", truth * n),
                (AVERAGED_TWICE, truth / n),
                ("the slope was taken at the clean run.", at_clean.values[layer]),
                (
                    "this is the mean of the absolute values: signs are lost.",
                    estimates.per_example[:, layer].abs().mean(0),
                ),
            )
            cases.append(Case(f"{name}, layer {layer}", model, (model, task, layer), truth, mistakes))
    return cases


@judges
def _integrated() -> list[Case]:
    import mechwork as mw

    cases = []
    for name, model, task in trials(("gpt2-6l", "llama-6l")):
        settings = {"rules": "gradient", "positions": "each"}
        start = mw.attribute(model, task, ["resid_pre"], **settings)["resid_pre"].values[0]
        for n_steps in (2, 5):
            truth = mw.attribute(model, task, ["resid_pre"], ig_steps=n_steps, **settings)["resid_pre"].values[0]
            mistakes = (
                ("the slope is the one at the start: exercise 4.5 again.", start),
                ("the slopes are added up; their mean is asked for.", truth * n_steps),
                ("this is summed over pairs; the mean is asked for.", truth * len(task)),
                (AVERAGED_TWICE, truth / len(task)),
            )
            cases.append(Case(f"{name}, {n_steps} steps", model, (model, task, n_steps), truth, mistakes))
    return cases


add(
    Exercise(
        "4.1",
        _estimate,
        hint="slope(0) times the distance.",
        solution="estimate = slope(0) * (1 - 0)",
        why="About 0.03, where the truth is nearly 1: the line starts on the flat part and never learns of the step.",
    ),
    Exercise(
        "4.2",
        _steps,
        hint="Read the printed table, or compare integrated(n) with true_effect for every n.",
        solution=(
            "n_steps = next(n for n in range(1, 50) "
            "if all(abs(integrated(m) / true_effect - 1) <= 0.05 for m in range(n, 50)))"
        ),
        why="A handful of points is enough for one step this steep; a steeper one would need more.",
    ),
    Exercise(
        "4.3",
        _n_cells,
        hint="A comparison of the absolute values with a hundredth of the gap, summed.",
        solution='n_cells = int((exact["mlp_out"].values.abs() > 0.01 * exact.baseline.gap).sum())',
        why="The next cell shows what is left of the correlation without the largest of them.",
    ),
    Exercise(
        "4.4",
        _passes,
        hint="First two runs are recorded. Then, per step, how many passes in each direction?",
        solution="passes = 2 + 5 + 5",
        why="Four times the passes of the plain estimate; still far fewer than one run per cell.",
    ),
    Exercise(
        "4.5",
        _attribution,
        hint="Record the clean stream first. In the corrupt run, the hook keeps a leaf tensor and returns it. Pairs "
        "do not know of each other, so the gradient of their summed metric holds every pair's own slope.",
        solution=ATTRIBUTION,
        why="Two forward passes and one backward pass, for every place of the model at once if you hook them all.",
    ),
    Exercise(
        "4.6",
        _integrated,
        hint="In the loop, the hook ignores what it gets and returns the point on the way. Slopes add up in "
        "a tensor of zeros.",
        solution=INTEGRATED,
        why="The clean and the corrupt run are recorded once; each point costs one forward and one backward pass.",
    ),
)
