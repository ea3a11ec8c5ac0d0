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
    if close(answer, _metric(0) + _slope(0), 0.02):
        return "this is where the line stands at 1. By how much has it risen?"
    if close(answer, -_slope(0), 0.02):
        return "the sign: from corrupt to clean, this metric rises."
    return "which slope does the formula take, and how long is the way from corrupt to clean here?"


def _steps(answer: Any) -> str | None:
    effect = _metric(1) - _metric(0)

    def off(n: int) -> float:
        return abs(sum(_slope((k + 0.5) / n) for k in range(n)) / n / effect - 1)

    truth = next(n for n in range(1, 50) if all(off(m) <= 0.05 for m in range(n, 50)))
    if int(answer) == truth:
        return None
    if int(answer) < 1:
        return "at least one step is taken."
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
        7: "these are the forward passes alone.",
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


def _streams(model: Any, task: Any, layer: int) -> tuple[Any, Any]:
    """The streams that enter `layer` in the clean and the corrupt run."""
    import torch

    name = f"blocks.{layer}.hook_resid_pre"
    with torch.no_grad():
        clean, corrupt = (
            model.run_with_cache(tokens, names_filter=name)[1][name].clone()
            for tokens in (task.pairs.clean_tokens, task.pairs.corrupt_tokens)
        )
    return clean, corrupt


def _slope_at(model: Any, task: Any, layer: int, point: Any) -> Any:
    """The slope of the metric, pair by pair, where the stream that enters `layer` is `point`."""
    import torch

    point = point.detach().requires_grad_()

    def put(stream: Any, hook: Any) -> Any:
        return point

    hooks = [(f"blocks.{layer}.hook_resid_pre", put)]
    values = task.measure(model.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=hooks))
    return torch.autograd.grad(values.sum(), point)[0]


def _factors(model: Any, task: Any, layer: int) -> tuple[tuple[str, Any], ...]:
    """What is left when one of the factors of an estimate is forgotten or another."""
    clean, corrupt = _streams(model, task, layer)
    slope = _slope_at(model, task, layer, corrupt)
    factors = {
        "this is the slope times the clean stream: take the difference of the two streams.": clean,
        "this is the slope times the corrupt stream: take the difference of the two streams.": corrupt,
        "this is the slope alone: times how far the stream moves.": clean / clean,
    }
    found = [(sentence, (factor * slope).sum(-1).mean(0)) for sentence, factor in factors.items()]
    return (
        *found,
        ("signs are lost: absolute values were taken before the sum over the width.",
         ((clean - corrupt) * slope).abs().sum(-1).mean(0)),
    )  # fmt: skip


@judges
def _attribution() -> list[Case]:
    import mechwork as mw

    cases = []
    for name, model, task in trials():
        estimates = mw.attribute(model, task, ["resid_pre"], rules="gradient", positions="each")["resid_pre"]
        at_clean = mw.attribute(model, task, ["resid_pre"], rules="gradient", positions="each", direction="noise")[
            "resid_pre"
        ]
        exact = mw.patch(model, task, ["resid_pre"], positions="each")["resid_pre"]
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
                ("this is the stream that *leaves* the layer; the one that enters it is asked for.",
                 estimates.values[layer + 1]),
                ("this is layer 0, whichever is asked for.", estimates.values[0]),
                ("this is the measured effect: the library's `patch`, not an estimate.", exact.values[layer]),
                *_factors(model, task, layer),
            )  # fmt: skip
            cases.append(Case(f"{name}, layer {layer}", model, (model, task, layer), truth, mistakes))
    return cases


def _other_points(model: Any, task: Any, n: int) -> tuple[tuple[str, Any], ...]:
    """Averages over other points of the way than the midpoints."""
    clean, corrupt = _streams(model, task, 0)

    def estimate(fractions: list[float], steps: int) -> Any:
        total = sum(_slope_at(model, task, 0, corrupt + at * (clean - corrupt)) for at in fractions)
        return ((clean - corrupt) * total / steps).sum(-1).mean(0)

    middle = [(k + 0.5) / n for k in range(n)]
    return (
        ("these points start at the corrupt run and end before the clean one: take the middle of each step.",
         estimate([k / n for k in range(n)], n)),
        ("these points start behind the corrupt run and end at the clean one: take the middle of each step.",
         estimate([(k + 1) / n for k in range(n)], n)),
        ("every point is half a step or more too far: k starts at 0.", estimate([(k + 1.5) / n for k in range(n)], n)),
        ("the last point is missing.", estimate(middle[:-1], n)),
        ("only the last point counts: add the slopes up.", estimate(middle[-1:], n)),
        ("only the last point counts: add the slopes up.", estimate(middle[-1:], 1)),
        ("this is one step, whatever n_steps is.", estimate([0.5], 1)),
        ("the way starts at the clean stream here and leads away from it.", estimate([1 + at for at in middle], n)),
    )  # fmt: skip


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
                *_other_points(model, task, n_steps),
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
        hint="What are a_corrupt and a_clean in this toy? Put them into the formula above.",
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
