"""Exercises of notebook 5, Relevance patching."""

from __future__ import annotations

from typing import Any

from .build import Case, judge_function
from .exercise import Exercise, add, close, same


def _under_rule(answer: Any) -> str | None:
    answer = float(answer)
    if close(answer, 0.6):
        return None
    if abs(answer) < 1e-6:
        return "this is what the plain gradient gives. Hold |x| at 5 first, then differentiate."
    if close(answer, 3):
        return "the divisor is constant, but it is still there."
    if close(answer, 0.2) or close(answer, 1.4):
        return "times the activation, and only the first number counts in f."
    if close(answer, 5):
        return "f keeps the first number only: the second has no coefficient."
    return "with |x| held at 5, what is f, and what is its slope along each of the two numbers?"


def _missing(answer: Any, relevance: Any) -> str | None:
    lost, total, whole = relevance.remainder, float(relevance.values.sum()), relevance.value
    if close(answer, lost / whole):
        return None
    if close(answer, lost):
        return "this is in logits; a share of the metric is asked for."
    if close(answer, total / whole):
        return "this is the share that the words have together. What is left of the metric?"
    if close(answer, total):
        return "this is what the words have together, in logits. What is left, and which share of the metric is it?"
    if close(answer, whole):
        return "this is the whole metric."
    if close(answer, -lost / whole):
        return "the sign: metric minus the words."
    if close(answer, lost / total):
        return "this is a share of what the words have; the whole is the metric."
    if close(answer, 100 * lost / whole):
        return "this is in percent; a share lies between 0 and 1."
    return "what has to be added to the words' numbers to reach the metric, and which share of the metric is that?"


def _best_rule(answer: Any, model: Any, task: Any, exact: Any) -> str | None:
    import mechwork as mw

    known = ("LN-rule", "Identity-rule", "AH-rule")
    named = next((rule for rule in known if same(answer, rule) or same(answer, rule.removesuffix("-rule"))), None)
    if named is None:
        return f"the rules are {', '.join(known)}."

    def fit(rule: str) -> float:
        return mw.attribute(model, task, ["resid_pre"], rules=[rule]).agreement(exact)["resid_pre"].pearson

    if named == max(known, key=fit):
        return None
    return f"alone it gives {fit(named):+.3f} at resid_pre; another rule gives more."


def _weakest(answer: Any, model: Any, task: Any, truth: Any) -> str | None:
    import mechwork as mw

    known = ("gradient", "relp", "relp_ah")
    if not any(same(answer, name) for name in known):
        return f"the three are {', '.join(known)}."

    def fit(rules: str) -> float:
        return mw.attribute(model, task, ["resid_pre"], rules=rules).agreement(truth)["resid_pre"].pearson

    if same(answer, min(known, key=fit)):
        return None
    return f"{answer} has {fit(answer):+.3f} there; another one has less."


LAYER_NORM = """
def layer_norm(x, gain, bias):
    centred = x - x.mean(dim=-1, keepdim=True)
    divisor = (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return centred / divisor.detach() * gain + bias
"""

GELU = """
import torch


def gelu(x):
    value = torch.nn.functional.gelu(x)
    away = x.abs() > 1e-6
    ratio = torch.where(away, value / torch.where(away, x, torch.ones_like(x)), torch.full_like(x, 0.5))
    return x * ratio.detach()
"""


def _derivative(function: Any, x: Any, *others: Any) -> tuple[Any, Any]:
    """(value, gradient of a fixed weighted sum of the value) at x."""
    import torch

    x = x.clone().requires_grad_()
    value = function(x, *others)
    if value is not None and not isinstance(value, torch.Tensor):
        raise TypeError(f"this is a {type(value).__name__}; a tensor is asked for")
    if value is None:
        return None, None
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
    if not value.requires_grad:
        return value, torch.zeros_like(x)
    return value.detach(), torch.autograd.grad((value * weights).sum(), x)[0]


def _judge_rule(
    answer: Any,
    inputs: tuple[Any, ...],
    right: Any,
    forward: Any,
    mistakes: dict[str, Any],
    other_values: dict[str, Any] | None = None,
) -> str | None:
    """Values first, then the backward pass: both must be those of `right`."""
    if not callable(answer):
        return "the answer is the function itself: its name, without parentheses."
    value_case = Case("random numbers (the value)", None, inputs, forward(*inputs), tuple((other_values or {}).items()))
    if (wrong := judge_function(answer, [value_case], 1e-5)) is not None:
        return wrong
    known = tuple((sentence, _derivative(other, *inputs)[1]) for sentence, other in mistakes.items())
    case = Case("random numbers (the backward pass)", None, inputs, _derivative(right, *inputs)[1], known)
    return judge_function(lambda *given: _derivative(answer, *given)[1], [case], 1e-5)


def _normed(x: Any, centre: Any) -> Any:
    """Around another centre, with the root of the mean square as divisor."""
    return (x - centre) / ((x - centre).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def _layer_norm(answer: Any) -> str | None:
    import torch
    from torch.nn.functional import layer_norm

    made = torch.Generator().manual_seed(5)
    x, gain, bias = (torch.randn(shape, generator=made, dtype=torch.float64) for shape in ((3, 4, 8), (8,), (8,)))

    def right(x: Any, gain: Any, bias: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt().detach() * gain + bias

    def all_held(x: Any, gain: Any, bias: Any) -> Any:
        centre = x.mean(-1, keepdim=True).detach()
        return (x - centre) / ((x - centre).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt().detach() * gain + bias

    def plain(x: Any, gain: Any, bias: Any) -> Any:
        return layer_norm(x, (8,), gain, bias)

    mistakes = {
        "nothing is held: this is the gradient. Detach the divisor.": plain,
        "the mean is held too: the LN-rule holds the divisor alone.": all_held,
        "everything is detached: nothing gets through.": lambda x, gain, bias: plain(x, gain, bias).detach(),
        "1e-5 is missing under the root.": lambda x, gain, bias: (
            right(x, gain, bias).detach()
            + (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True, unbiased=False).sqrt().detach() * gain
        ),
    }
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    unbiased = variance * 8 / 7
    other_values = {
        "the variance is divided by the width less one, as torch's var and std do: take the mean of the squares.": (
            centred / (unbiased + 1e-5).sqrt() * gain + bias
        ),
        "the variance is divided by the width less one, and 1e-5 is added after the root.": (
            centred / (unbiased.sqrt() + 1e-5) * gain + bias
        ),
        "the bias is missing.": centred / (variance + 1e-5).sqrt() * gain,
        "nothing is centred: take the mean off first.": x / (variance + 1e-5).sqrt() * gain + bias,
        "the root is missing: divide by the root of the variance.": centred / (variance + 1e-5) * gain + bias,
        "the mean of everything was taken off: each row has its own.": _normed(x, x.mean()) * gain + bias,
        "the mean over another axis was taken off: the last one is asked for.": (
            _normed(x, x.mean(0, keepdim=True)) * gain + bias
        ),
        "the gain is missing.": centred / (variance + 1e-5).sqrt() + bias,
    }
    return _judge_rule(answer, (x, gain, bias), right, plain, mistakes, other_values)


def _gelu(answer: Any) -> str | None:
    import torch
    from torch.nn.functional import gelu

    x = torch.cat([torch.linspace(-4, 4, 40, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])

    def right(x: Any) -> Any:
        safe = torch.where(x == 0, torch.ones_like(x), x)
        return x * torch.where(x == 0, torch.full_like(x, 0.5), gelu(x) / safe).detach()

    mistakes = {
        "nothing is held: this is GELU's own derivative.": gelu,
        "everything is detached: nothing gets through.": lambda x: gelu(x).detach(),
        "the factor at x = 0 is 1/2, not 0.": lambda x: x * torch.where(x == 0, x, gelu(x) / (x + (x == 0))).detach(),
        "the factor at x = 0 is 1/2, not 1.": lambda x: (
            x * torch.where(x == 0, x + 1, gelu(x) / (x + (x == 0))).detach()
        ),
    }
    return _judge_rule(answer, (x,), right, gelu, mistakes)


add(
    Exercise(
        "5.1",
        _under_rule,
        hint="Hold the divisor: f(x) = x[0] / 5. Differentiate, multiply by (3, 4), add up.",
        solution="under_rule = 3 * (1 / 5) + 4 * 0",
        why="Exactly f(x): with the divisor held, the norm is linear, and nothing is lost.",
    ),
    Exercise(
        "5.2",
        _missing,
        hint="relevance.value is the metric, relevance.values are the words' numbers: what is left of the metric?",
        solution="missing = (relevance.value - float(relevance.values.sum())) / relevance.value",
        why="Under relp_ah this is the share of the biases, which belong to no word.",
    ),
    Exercise(
        "5.3",
        _best_rule,
        hint="Read the first column of numbers.",
        solution='best_rule = "LN-rule"',
        why="For the pattern, this one does most; the sizes come right only when norms and attention are both held.",
    ),
    Exercise(
        "5.4",
        _weakest,
        hint="Which of them holds constant what does the work here?",
        solution='weakest = "relp_ah"',
        why="With the pattern held constant, nothing that changes *where* a head looks can be seen.",
    ),
    Exercise(
        "5.5",
        _layer_norm,
        hint="Write LayerNorm out, with the divisor in a variable of its own. Which variable is the constant?",
        solution=LAYER_NORM,
        why="One word, `detach`, turns attribution patching into half of relevance patching.",
    ),
    Exercise(
        "5.6",
        _gelu,
        hint="x times a constant has the constant as its derivative. Put another number in the place of zeros *before* "
        "you divide: 0 / 0 is NaN even where torch.where does not choose it.",
        solution=GELU,
        why="Inside the library the same idea is a rule that is put on every activation of the model.",
    ),
)
