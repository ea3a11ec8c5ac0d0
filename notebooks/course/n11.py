"""Exercises of notebook 11, Steering and what it costs."""

from __future__ import annotations

from typing import Any

from .build import Case, judge_function, judges
from .exercise import Exercise, add, same

MODELS = ("gpt2-6l", "llama-6l")
TEMPLATE = "So {NAME} lost the {object}, didn't"


def _she(name: str, template: str | None = TEMPLATE) -> tuple[Any, Any]:
    """(model, pairs that end in " she")."""
    import mechwork as mw

    model = mw.load_model(name)
    task = mw.tasks.pronoun(model, n=16, seed=3, template=template)
    she = model.to_single_token(" she")
    return model, task[[i for i in range(len(task)) if int(task.pairs.correct[i, 0]) == she]]


def _stream(model: Any, tokens: Any, layer: int) -> Any:
    import torch

    name = f"blocks.{layer}.hook_resid_post"
    with torch.no_grad():
        return model.run_with_cache(tokens, names_filter=name)[1][name]


VECTOR = """
import torch


def steering_vector(model, task, layer):
    name = f"blocks.{layer}.hook_resid_post"
    rows, last = torch.arange(len(task)), task.pairs.lengths - 1
    with torch.no_grad():
        streams = [
            model.run_with_cache(tokens, names_filter=name)[1][name][rows, last]
            for tokens in (task.pairs.clean_tokens, task.pairs.corrupt_tokens)
        ]
    return streams[0].mean(dim=0) - streams[1].mean(dim=0)
"""


@judges
def _steering_vector() -> list[Case]:
    import torch

    cases = []
    for name in MODELS:
        model, task = _she(name, template=None)
        for layer in (1, 4):
            clean, corrupt = (
                _stream(model, tokens, layer) for tokens in (task.pairs.clean_tokens, task.pairs.corrupt_tokens)
            )
            before = (
                _stream(model, task.pairs.clean_tokens, layer - 1),
                _stream(model, task.pairs.corrupt_tokens, layer - 1),
            )
            rows, last = torch.arange(len(task)), task.pairs.lengths - 1
            truth = clean[rows, last].mean(0) - corrupt[rows, last].mean(0)
            mistakes = (
                ("this is at position -1, which is padding in the shorter prompts.",
                 clean[:, -1].mean(0) - corrupt[:, -1].mean(0)),
                ("this is the mean over positions too: the last position is asked for.",
                 clean.mean((0, 1)) - corrupt.mean((0, 1))),
                ("this is summed over pairs; the mean is asked for.", truth * len(task)),
                ("this is the stream before the block, not after it.",
                 before[0][rows, last].mean(0) - before[1][rows, last].mean(0)),
            )  # fmt: skip
            cases.append(Case(f"{name}, layer {layer}", model, (model, task, layer), truth, mistakes))
    return cases


def _steered(model: Any, tokens: Any, layer: int, change: Any, *, everywhere: bool = True) -> Any:
    """Logits with `change` added to the stream after `layer`."""
    import torch

    def push(stream: Any, hook: Any) -> Any:
        stream = stream.clone()
        if everywhere:
            return stream + change
        stream[:, -1] += change
        return stream

    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.hook_resid_post", push)])


SUCCESS = """
import torch


def success(model, task, layer, vector, strength):
    def push(stream, hook):
        return stream + strength * vector

    name, corrupt = f"blocks.{layer}.hook_resid_post", task.pairs.corrupt_tokens
    with torch.no_grad():
        steered = model.run_with_hooks(corrupt, fwd_hooks=[(name, push)])
        m = [float(task.measure(logits).mean()) for logits in (steered, model(corrupt), model(task.pairs.clean_tokens))]
    return (m[0] - m[1]) / (m[2] - m[1])
"""


@judges
def _success() -> list[Case]:
    import torch

    cases = []
    for name in MODELS:
        model, task = _she(name)
        clean, corrupt = task.pairs.clean_tokens, task.pairs.corrupt_tokens
        vector = _stream(model, clean, 2)[:, -1].mean(0) - _stream(model, corrupt, 2)[:, -1].mean(0)

        def mean(logits: Any, task: Any = task) -> float:
            return float(task.measure(logits).mean())

        for strength in (0.5, 1.5):
            change = strength * vector
            with torch.no_grad():
                low, high = mean(model(corrupt)), mean(model(clean))
            steered = mean(_steered(model, corrupt, 2, change))
            truth = (steered - low) / (high - low)
            last = mean(_steered(model, corrupt, 2, change, everywhere=False))
            mistakes = (
                ("the vector was added at the last position only.", (last - low) / (high - low)),
                ("the strength was not used.", (mean(_steered(model, corrupt, 2, vector)) - low) / (high - low)),
                ("the clean prompts were steered.", (mean(_steered(model, clean, 2, change)) - low) / (high - low)),
                ("this is a difference of metrics; divide it by the gap.", steered - low),
                ("the metric of the corrupt prompts has to be taken off above.", steered / (high - low)),
                ("nothing was changed: does the hook *return* the new stream?", 0.0),
            )
            arguments = (model, task, 2, vector, strength)
            cases.append(Case(f"{name}, strength {strength}", model, arguments, truth, mistakes))
    return cases


SIDE_EFFECT = """
import torch


def side_effect(model, tokens, layer, vector, strength):
    def push(stream, hook):
        return stream + strength * vector

    with torch.no_grad():
        steered = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.hook_resid_post", push)])
        log_p, log_q = model(tokens)[:, -1].log_softmax(-1), steered[:, -1].log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
"""


@judges
def _side_effect() -> list[Case]:
    import math

    import torch

    import mechwork as mw
    from mechwork.statistics import kl_nats

    from .build import trials

    cases = []
    for name, model, task in trials(MODELS):
        tokens = task.pairs.clean_tokens
        made = torch.Generator().manual_seed(1)
        width = mw.record_run(model, task.pairs, ["resid_post"])["resid_post"][1].std()
        vector = torch.randn(int(model.cfg.d_model), generator=made) * width
        for strength in (0.3, 0.8):
            with torch.no_grad():
                whole_p = model(tokens).log_softmax(-1)
                whole_q = _steered(model, tokens, 1, strength * vector).log_softmax(-1)
            p, q = whole_p[:, -1], whole_q[:, -1]
            truth = kl_nats(p, q).mean()
            mistakes = (
                ("this is the other way round: weigh by the *plain* probabilities.", kl_nats(q, p).mean()),
                ("these are bits. Nats have the natural logarithm.", truth / math.log(2)),
                ("this is summed over prompts; the mean is asked for.", kl_nats(p, q).sum()),
                ("this is the mean over all positions; the last is asked for.", kl_nats(whole_p, whole_q).mean()),
                ("this is the mean over words; the sum is asked for.", (p.exp() * (p - q)).mean()),
            )
            arguments = (model, tokens, 1, vector, strength)
            cases.append(Case(f"{name}, strength {strength}", model, arguments, truth, mistakes))
    return cases


RANDOM = """
import torch


def random_control(vector, seed):
    draw = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
    return draw / draw.norm() * vector.norm()
"""


def _random_control(answer: Any) -> str | None:
    import torch

    vector = torch.linspace(-1, 3, 400)
    if not callable(answer):
        return "the answer is the function itself: its name, without parentheses."
    draws = []
    for seed in (0, 0, 1, 2):
        case = Case("a vector of 400 numbers", None, (vector, seed), vector * 0)
        shaped = judge_function(lambda *given: _nothing_in(answer(*given)), [case])
        if shaped is not None:
            return shaped
        draws.append(torch.as_tensor(answer(vector, seed)).double())
    length = float(vector.norm())
    if any(abs(float(draw.norm()) / length - 1) > 1e-3 for draw in draws):
        return f"it is {float(draws[0].norm()):.3g} long; the vector is {length:.3g} long."
    if not torch.equal(draws[0], draws[1]):
        return "the same seed gave two different vectors: make a generator from the seed."
    if torch.equal(draws[0], draws[2]):
        return "two seeds gave the same vector."
    ones = torch.ones(400, dtype=torch.float64)
    for draw in draws:
        aside, along = (abs(float(torch.cosine_similarity(draw, other, dim=0))) for other in (ones, vector.double()))
        if along > max(0.3, aside):
            return "it still points along the vector."
        if aside > 0.3:
            return "its numbers lean to one side: draw them from a normal distribution (randn), not between 0 and 1."
    return None


def _nothing_in(drawn: Any) -> Any:
    """Zeros of the shape of what was drawn, so that shape, type and NaN are judged alone."""
    return drawn if drawn is None or isinstance(drawn, str) else drawn * 0


def _good(answer: Any, study: Any) -> str | None:
    answer = [answer] if isinstance(answer, str) else list(answer)
    if unknown := [name for name in answer if name not in study.methods]:
        return f"the methods are {', '.join(study.methods)}; {unknown[0]!r} is none of them."
    truth = [method for method in study.methods if study.best(method, max_kl=0.1) >= 0.8]
    if same(answer, truth):
        return None
    wrong = next((name for name in answer if name not in truth), None)
    if wrong is not None:
        return f"{wrong} reaches {study.best(wrong, max_kl=0.1):.2f} within 0.1 nats."
    return "these are right, but not all."


add(
    Exercise(
        "11.1",
        _steering_vector,
        hint="Two lists of indices, prompts and last positions, pick one vector per prompt.",
        solution=VECTOR,
        why="No training at all. That it steers is a fact about the model.",
    ),
    Exercise(
        "11.2",
        _success,
        hint="Three mean metrics are needed: steered, corrupt, clean.",
        solution=SUCCESS,
        why="As in patching: effects are compared with the gap between the two runs.",
    ),
    Exercise(
        "11.3",
        _side_effect,
        hint="log_softmax of both logits. Which of the two distributions weighs the sum?",
        solution=SIDE_EFFECT,
        why="0 means that nothing else changed. One nat is a lot: the next word is another one most of the time.",
    ),
    Exercise(
        "11.4",
        _random_control,
        hint="A normal draw has no preferred direction. Then only its length is wrong.",
        solution=RANDOM,
        why="It takes one line, and most claims about steering are not worth reading without it.",
    ),
    Exercise(
        "11.5",
        _good,
        asks="a list of names",
        hint="Ask study.best for each method.",
        solution="good = [method for method in study.methods if study.best(method, max_kl=0.1) >= 0.8]",
        why="Which write is used matters more than which vector.",
    ),
)
