"""Exercises of notebook 3, Activation patching done right."""

from __future__ import annotations

from typing import Any

from .exercise import Exercise, add, same

HEADS = ((0, 3), (1, 3), (4, 1), (5, 1))


def _position(answer: Any) -> str | None:
    if int(answer) == 11:
        return None
    if int(answer) == 10:
        return "position 10 of the corrupt prompt is the comma: the word 'big' has moved everything behind it."
    if int(answer) in (2, 9):
        return "that is another token. Look for the name that stands before 'gave'."
    return "look for the name that stands before 'gave', in the right-hand column."


def _straight(answer: Any, denoise: Any, noise: Any) -> str | None:
    if answer not in denoise.metrics:
        return f"the metrics are {', '.join(denoise.metrics)}."

    def apart(metric: str) -> float:
        a, b = (effects.under(metric)["z"].normalized().values for effects in (denoise, noise))
        return max(abs(float(a[place] - b[place])) for place in HEADS)

    if answer == min(denoise.metrics, key=apart):
        return None
    return f"there, one of these heads differs by {apart(answer):.2f} of the gap between the directions. One metric does better."


def _direction(answer: Any) -> str | None:
    if same(answer, "denoise"):
        return None
    if same(answer, "noise"):
        return "noise takes one of them away. Then the other one does the work, and nothing changes."
    return "the two directions are 'denoise' and 'noise'."


def _metric(answer: Any, effect: Any) -> str | None:
    column = effect.labels["pos"].index("S2+")
    value, base = float(effect.values[4, column]), effect.baseline
    if abs(float(answer) - (base.corrupt + value)) < 0.15:
        return None
    if abs(float(answer) - value) < 0.15:
        return "this is the effect: by how much the metric rose. Where did it start?"
    if abs(float(answer) - value / base.gap) < 0.02:
        return "this is the share of the gap. The metric is in logits."
    if abs(float(answer) - (base.clean - value)) < 0.15:
        return "this would be a noised run. Here the clean value was put into the corrupt run."
    return "start from the corrupt run and add the share of the gap that came back."


add(
    Exercise(
        "3.1",
        _position,
        hint="Find the name before 'gave' in the right-hand column of the table.",
        solution="s2_in_corrupt = 11",
        why="'big' stands before it, so it moved by one. By number, we would have copied a name onto a comma.",
    ),
    Exercise(
        "3.2",
        _straight,
        hint="Compare the two lines of each metric, head by head.",
        solution='straight = "logit_difference"',
        why="The logit difference is a straight ruler; probabilities are bent near 0 and 1.",
    ),
    Exercise(
        "3.3",
        _direction,
        hint="Is 'each alone is enough' an AND or an OR? Look at the four lines above.",
        solution='direction = "denoise"',
        why="A head and its backup are an OR. Noise, like ablation, sees neither of them alone.",
    ),
    Exercise(
        "3.4",
        _metric,
        hint="metric = corrupt + share x gap.",
        solution="metric_there = base.corrupt + float(effect.normalized().values[4, column]) * base.gap",
        why="effect.metric holds it for every cell.",
    ),
)
