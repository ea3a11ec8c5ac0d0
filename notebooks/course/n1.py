"""Exercises of notebook 1, First circuit."""

from __future__ import annotations

from typing import Any

from .build import Case, judges
from .exercise import Exercise, add, close, same


def _where(answer: Any, exact: Any) -> str | None:
    effect = exact["resid_pre"]
    best = effect.labels["pos"][int(effect.values[3].argmax())]
    if same(answer, best):
        return None
    if same(answer, "END"):
        return "END is where the answer is read, in the end. Look at the row of layer 3: has it arrived there yet?"
    if same(answer, "S2"):
        return "S2 is where it starts. Look whether it is still there three blocks later."
    if answer not in effect.labels["pos"]:
        return f"the positions are called {', '.join(effect.labels['pos'])}."
    return "another position in the row of layer 3 is stronger."


def _left_over(answer: Any, model: Any, task: Any, circuit: Any) -> str | None:
    import mechwork as mw

    answer = getattr(answer, "faithfulness", answer)
    truth = mw.evaluate(model, task.test, circuit.complement(), n_random=0).faithfulness
    if close(answer, truth) or abs(float(answer) - truth) < 0.005:
        return None
    kept = mw.evaluate(model, task.test, circuit, n_random=0).faithfulness
    if close(answer, kept):
        return "this is the faithfulness of the circuit itself; cut the circuit out instead."
    if close(answer, 1 - kept):
        return "1 minus the circuit's faithfulness is no measurement: what two parts do alone need not add up to 1."
    return "this is not what the other edges give on the test pairs."


def _smallest(answer: Any, curve: Any) -> str | None:
    good = [n for n, f in zip(curve.sizes, curve.faithfulness.tolist(), strict=True) if f >= 0.8]
    if int(answer) == min(good):
        return None
    if int(answer) in good:
        return "that one reaches 0.8, but a smaller one does too."
    if int(answer) in curve.sizes:
        return "the circuit of that size stays below 0.8."
    return f"the table has the sizes {', '.join(map(str, curve.sizes))}."


@judges
def _gap() -> list[Case]:
    import torch

    import mechwork as mw

    cases = []
    for name in ("gpt2-6l", "llama-6l"):
        model = mw.load_model(name)
        pairs = mw.tasks.ioi(model, n=2, seed=3).pairs
        with torch.no_grad():
            runs = [
                model(tokens)[0, int(pairs.lengths[0]) - 1] for tokens in (pairs.clean_tokens, pairs.corrupt_tokens)
            ]
        right, wrong = int(pairs.correct[0, 0]), int(pairs.incorrect[0, 0])
        clean, corrupt = (float(row[right] - row[wrong]) for row in runs)
        p_clean, p_corrupt = (float(row.softmax(-1)[right] - row.softmax(-1)[wrong]) for row in runs)
        mistakes = (
            ("this is the difference of the clean run alone: take that of the corrupt run off.", clean),
            (
                "added, or the names swapped in the corrupt run: there, too, it is right minus wrong.",
                clean + corrupt,
            ),
            ("these are probabilities: no softmax here, logits as they are.", p_clean - p_corrupt),
            ("this is the right name alone. What about the wrong one?", float(runs[0][right] - runs[1][right])),
            (
                "this is the right name alone, and a log softmax. What about the wrong one?",
                float(runs[0].log_softmax(-1)[right] - runs[1].log_softmax(-1)[right]),
            ),
            ("this divides the two metrics; how far apart they are is asked for.", clean / corrupt),
        )
        cases.append(Case(f"a pair in {name}", None, (*runs, right, wrong), clean - corrupt, mistakes))
    return cases


GAP = """
def gap(clean, corrupt, right, wrong):
    clean_difference = clean[right] - clean[wrong]
    corrupt_difference = corrupt[right] - corrupt[wrong]
    return clean_difference - corrupt_difference
"""


add(
    Exercise(
        "1.4",
        _gap,
        hint="Index a row by a token's number. First the metric of each run, with the same right name; then what lies "
        "between.",
        solution=GAP,
        why="The mean of this over all pairs is the gap: the whole that every effect below is a share of.",
    ),
    Exercise(
        "1.1",
        _where,
        hint="Find the row of layer 3 in the map, or its numbers in effect.values; `positions` names the columns.",
        solution='where = positions[int(effect.values[3].argmax())]  # "S2+"',
        asks="the name of a position, as text,",
        why="The information leaves S2 and waits in the words between S2 and END before the last layers read it.",
    ),
    Exercise(
        "1.2",
        _left_over,
        hint="mw.evaluate takes any circuit. A circuit's complement() is a circuit.",
        solution="left_over = mw.evaluate(model, task.test, circuit.complement()).faithfulness",
        why="Without these edges next to nothing of the answer is left: the circuit is needed, not only sufficient.",
    ),
    Exercise(
        "1.3",
        _smallest,
        hint="Go down the column 'faithfulness' and stop at the first number of at least 0.8.",
        solution="smallest = min(n for n, f in zip(curve.sizes, curve.faithfulness.tolist()) if f >= 0.8)",
        why="A few dozen edges are enough; the random circuits of that size do nothing.",
    ),
)
