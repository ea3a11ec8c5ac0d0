"""Exercises of notebook 3, Activation patching done right."""

from __future__ import annotations

from typing import Any

from .build import Case, judges, place_of_change, trials
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
    return (
        f"there, one of these heads differs by {apart(answer):.2f} of the gap between the directions. One metric "
        "does better."
    )


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
    if abs(float(answer) - (base.corrupt - value)) < 0.15:
        return "the sign: a positive effect raises the metric of the run that is patched."
    if abs(float(answer) - (base.clean + value)) < 0.15:
        return "this starts at the clean run. Which of the two is patched by denoising?"
    if abs(float(answer) - (base.corrupt + value / base.gap)) < 0.15:
        return "a share was added to logits. A share of what?"
    if abs(float(answer) - base.clean) < 0.15 or abs(float(answer) - base.corrupt) < 0.15:
        return "this is one of the two runs, without the patch."
    return "ask which of the two runs was patched, and by how many logits its metric moved."


PATCH = """
import torch


def patch_stream(model, task, layer, position):
    name = f"blocks.{layer}.hook_resid_pre"
    with torch.no_grad():
        _, cache = model.run_with_cache(task.pairs.clean_tokens, names_filter=name)

        def put(stream, hook):
            stream = stream.clone()
            stream[:, position] = cache[name][:, position]
            return stream

        patched = model.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=[(name, put)])
        plain = model(task.pairs.corrupt_tokens)
        return float((task.measure(patched) - task.measure(plain)).mean())
"""


@judges
def _patch_stream() -> list[Case]:
    import mechwork as mw

    cases = []
    for name, model, task in trials():
        for layer, position in ((4, -1), (1, place_of_change(task))):
            effects = mw.patch(model, task, ["resid_pre"], positions="each")["resid_pre"]
            noised = mw.patch(model, task, ["resid_pre"], positions="each", direction="noise")["resid_pre"]
            truth, gap = float(effects.values[layer, position]), effects.baseline
            mistakes = (
                ("this is the metric of the patched run. Take that of the corrupt run off.", gap.corrupt + truth),
                (
                    "this is the effect minus the gap: the clean metric was taken off, not the corrupt one.",
                    truth - gap.gap,
                ),
                ("this copies the corrupt value into the clean run.", float(noised.values[layer, position])),
                ("all positions were copied: that brings everything back. Copy one.", gap.gap),
                (
                    "this is the stream that *leaves* the layer; the one that enters it is asked for.",
                    float(effects.values[layer + 1, position]),
                ),
                ("this is one position further to the left.", float(effects.values[layer, position - 1])),
                (
                    "nothing was changed: does the hook *return* the new stream, and does it come from the clean run?",
                    0.0,
                ),
            )
            label = f"{name}, layer {layer}, position {position}"
            cases.append(Case(label, model, (model, task, layer, position), truth, mistakes))
    return cases


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
        asks="the name of a metric, as text,",
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
        hint="Which run is patched by denoising, and where does its metric stand before? What does the gap make of a "
        "share?",
        solution="metric_there = base.corrupt + float(effect.normalized().values[4, column]) * base.gap",
        why="effect.metric holds it for every cell.",
    ),
    Exercise(
        "3.5",
        _patch_stream,
        hint="Two runs first: the clean one with a cache, then the corrupt one with a hook that returns a changed "
        "clone.",
        solution=PATCH,
        why="This is all of activation patching. The library runs only the blocks that a cell can change, many cells "
        "at once.",
    ),
)
