"""Exercises of notebook 5, Relevance patching."""

from __future__ import annotations

from typing import Any

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
    return "with |x| = 5 held, f(x) = x[0] / 5. Its coefficients are (1/5, 0)."


def _missing(answer: Any, relevance: Any) -> str | None:
    truth, total = relevance.remainder, float(relevance.values.sum())
    if close(answer, truth):
        return None
    if close(answer, total):
        return "this is what the words have together. What is left of the metric?"
    if close(answer, relevance.value):
        return "this is the whole metric."
    if close(answer, -truth):
        return "the sign: metric minus the words."
    return "it is the metric minus the sum of the words' numbers."


def _best_rule(answer: Any, model: Any, task: Any, exact: Any) -> str | None:
    import mechwork as mw

    known = ("LN-rule", "Identity-rule", "AH-rule")
    if answer not in known:
        return f"the rules are {', '.join(known)}."

    def fit(rule: str) -> float:
        return mw.attribute(model, task, ["resid_pre"], rules=[rule]).agreement(exact)["resid_pre"].pearson

    if answer == max(known, key=fit):
        return None
    return f"alone it gives {fit(answer):+.3f} at resid_pre; another rule gives more."


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
        hint="relevance.value is the metric, relevance.values are the words' numbers.",
        solution="missing = relevance.value - float(relevance.values.sum())  # or relevance.remainder",
        why="Under relp_ah this is the share of the biases, which belong to no word.",
    ),
    Exercise(
        "5.3",
        _best_rule,
        hint="Read the first column of numbers.",
        solution='best_rule = "LN-rule"',
        why="What made gradients fail on this task is mostly the saturation of norms.",
    ),
    Exercise(
        "5.4",
        _weakest,
        hint="Which of them holds constant what does the work here?",
        solution='weakest = "relp_ah"',
        why="With the pattern held constant, nothing that changes *where* a head looks can be seen.",
    ),
)
