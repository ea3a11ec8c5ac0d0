"""Exercises of notebook 9, A real model."""

from __future__ import annotations

from typing import Any

from .build import Case, judge_function, judges
from .exercise import Exercise, add, close, same


def _reads(answer: Any, anatomy: Any) -> str | None:
    heads, shared = anatomy["heads"], anatomy["key/value heads"]
    number = int(answer)
    if number == 7 // (heads // shared):
        return None
    if not 0 <= number < shared:
        return f"there are {shared} key/value heads in a layer, counted from 0."
    if number == 7 % shared:
        return "heads do not take turns: neighbours share. How many neighbours share one?"
    return "how many query heads share one key/value head? Count them off in order."


def _unfit(answer: Any, accuracy: Any) -> str | None:
    answer = [answer] if isinstance(answer, str) else list(answer)
    if unknown := [name for name in answer if name not in accuracy]:
        return f"the tasks are {', '.join(accuracy)}; {unknown[0]!r} is none of them."
    truth = [name for name, share in accuracy.items() if share < 0.75]
    if same(answer, truth):
        return None
    good = next((name for name in answer if name not in truth), None)
    return "one more is below the line." if good is None else f"{good} has {accuracy[good]:.2f}: it does that task."


def _forwards(answer: Any, anatomy: Any) -> str | None:
    layers, heads = anatomy["layers"], anatomy["heads"]
    if close(answer, heads * (layers + 1) / 2, 0.001):
        return None
    if close(answer, layers * heads, 0.001):
        return "this runs the whole model for every head."
    if close(answer, heads * (layers - 1) / 2, 0.001):
        return "layer l itself has to run as well: what comes after the head in it changes too."
    if close(answer, (layers + 1) / 2, 0.001):
        return "this is for one head per layer."
    return f"a head of layer l costs ({layers} - l) / {layers} of a forward pass. Add them up over layers and heads."


PATTERN = """
import torch


def grouped_pattern(q, k):
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    ahead = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, float("-inf")).softmax(dim=-1)
"""


def _pattern(q: Any, k: Any, *, tiled: bool = False, scale: bool = True, mask: bool = True, axis: int = -1) -> Any:
    import torch

    times = q.shape[2] // k.shape[2]
    k = k.repeat(1, 1, times, 1) if tiled else k.repeat_interleave(times, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / (q.shape[-1] ** 0.5 if scale else 1.0)
    if mask:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(axis)


@judges
def _grouped_pattern(model: Any) -> list[Case]:
    import torch

    import mechwork as mw

    known = {
        "heads take turns here: neighbours share keys, so repeat each one (repeat_interleave), not the whole list.": {
            "tiled": True
        },
        "the division by the square root of the width is missing.": {"scale": False},
        "a position must not see what comes after it.": {"mask": False},
        "each row over *keys* adds up to 1: the softmax is over the last axis.": {"axis": -2, "mask": False},
    }
    models = [(name, mw.load_model(name)) for name in ("llama-6l", "gpt2-6l", "attn-only-2l")]
    cases = []
    for name, one in [*models, *([("the real model", model)] if model is not None else [])]:
        turned = "" if name == "gpt2-6l" else "rot_"  # GPT-2 adds its positions to the stream
        sites = [f"blocks.1.attn.hook_{what}" for what in (f"{turned}q", f"{turned}k", "pattern")]
        tokens = torch.arange(40, 52)[None] if name == "attn-only-2l" else one.to_tokens("The cat sat on the mat and")
        with torch.no_grad():
            cache = one.run_with_cache(tokens, names_filter=sites)[1]
        q, k, truth = (cache[site] for site in sites)
        mistakes = tuple((sentence, _pattern(q, k, **how)) for sentence, how in known.items())
        cases.append(Case(name, one, (q, k), truth, mistakes))
    return cases


SCREEN = """
import torch


def screen(estimates, measure, k):
    measured = torch.zeros(len(estimates))
    for i in torch.as_tensor(estimates).abs().topk(k).indices.tolist():
        measured[i] = measure(i)
    return measured
"""


def _screen(answer: Any) -> str | None:
    import torch

    if not callable(answer):
        return "the answer is the function itself: its name, without parentheses."
    cases, asked = [], []
    for seed, (n, k) in enumerate(((12, 3), (40, 10))):
        made = torch.Generator().manual_seed(seed)
        effects = torch.randn(n, generator=made)
        estimates = effects + 0.3 * torch.randn(n, generator=made)

        def only(chosen: Any, values: Any) -> Any:
            return torch.zeros(len(values)).scatter(0, chosen, values[chosen])

        def measure(i: int, effects: Any = effects) -> float:
            asked.append(int(i))
            return float(effects[int(i)])

        chosen = estimates.abs().topk(k).indices
        mistakes = (
            ("a large negative effect is an effect too: choose by absolute size.",
             only(estimates.topk(k).indices, effects)),
            ("these are the estimates of the chosen places; call measure(i).", only(chosen, estimates)),
            ("everything was measured. Then no estimate was needed.", effects),
            ("the smallest were measured, not the largest.", only((-estimates.abs()).topk(k).indices, effects)),
        )  # fmt: skip
        given = (estimates.tolist(), measure, k)
        cases.append(Case(f"{n} places, k = {k}", None, given, only(chosen, effects), mistakes))
    wrong = judge_function(answer, cases)
    if wrong is None and len(asked) > sum(case.arguments[2] for case in cases):
        return f"the numbers are right, but measure was called {len(asked)} times: each call is a run."
    return wrong


add(
    Exercise(
        "9.1",
        _reads,
        hint="Divide the number of query heads by the number of key/value heads. Then count in groups of that size.",
        solution='reads = 7 // (anatomy["heads"] // anatomy["key/value heads"])',
        why="Three query heads share one head of keys and values, which makes the cache of a long text three times "
        "smaller.",
    ),
    Exercise(
        "9.2",
        _grouped_pattern,
        hint="Give every query head its own copy of its keys first; then it is attention as in lesson 0. Check the "
        "order of the copies with exercise 9.1.",
        solution=PATTERN,
        why="A wrong order of copies still gives rows that add up to 1: only a comparison with the model finds it.",
    ),
    Exercise(
        "9.3",
        _unfit,
        asks="a list of names",
        hint="Compare each number with the rule; the rule is a choice that you make before you look.",
        solution="unfit = [name for name, share in accuracy.items() if share < 0.75]",
        why="A circuit of behaviour that is not there can be found too: the methods give numbers for anything.",
    ),
    Exercise(
        "9.4",
        _forwards,
        hint="A head of layer 0 costs a whole pass, a head of the last layer one layer's share of it. The mean?",
        solution='forwards = sum((anatomy["layers"] - l) / anatomy["layers"] for l in range(anatomy["layers"])) '
        '* anatomy["heads"]',
        why="About half of one run per head. The library does it like this, and several heads in one batch.",
    ),
    Exercise(
        "9.5",
        _screen,
        hint="topk gives the places of the largest numbers. Of which numbers do you want the largest?",
        solution=SCREEN,
        why="What is 0 in the result was not measured; it was not found to be 0.",
    ),
)
