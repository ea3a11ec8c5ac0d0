"""1,000 random faults one after another on the same six models: at the end each is what it was at the beginning.

Nothing is built anew in between, so that what a fault leaves behind would be there at the end, and what it does to the
next operation too. A fault that comes after the operation has ended is none and is drawn again. What is compared is
printed: logits to the bit, weights, hooks, flags, modes, dtypes, requires_grad and what torch keeps per thread.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mechwork.errors import MechworkError
from tests.families import build_model
from tests.faults.core import InjectedError, Tally, changes, small_task, thread_state, whole_state
from tests.faults.interrupts import FAMILIES, KINDS, OPERATIONS, Operation, fault, interrupted
from tests.faults.interrupts import Counter as Trigger

N = 1000
LATEST = {"before a module": 400, "after a module": 400, "line": 20_000}
"""The last event at which a fault is drawn; early ones are as likely as late ones on a scale of ratios."""
EVERY = 50
"""Faults after which all is compared, so that a failure says where it began."""

GROUPS = {
    "logits, to the bit": ("logits",),
    "weights and gradients": ("weights", "gradient of", "gradients of"),
    "hooks": ("hooks of", "hook entries", "backward entries", "global hooks", "saved-tensor hooks"),
    "flags of the model": ("setting", "forward of", "loans", "stacks"),
    "modes": ("training mode",),
    "dtypes": ("dtypes",),
    "requires_grad": ("requires_grad",),
    "of the thread": (*thread_state(), "softmax"),
}


def strike(tally: Tally, model: Any, name: str, operations: Mapping[str, Operation], said: Counter[str]) -> str:
    """One fault at a random event; what it was, or nothing where the operation ended before it."""
    draw, task = tally.draw, small_task()
    error: BaseException = draw.choice([InjectedError("injected"), KeyboardInterrupt("injected")])
    kind = draw.choices(KINDS, (3, 3, 3, 1))[0]
    try:
        if kind == "cpu time":
            error = KeyboardInterrupt()
            interrupted(operations[name], model, task, math.exp(draw.uniform(math.log(1e-3), math.log(0.1))))
        else:
            k = round(math.exp(draw.uniform(0, math.log(LATEST[kind]))))
            with fault(kind, Trigger(k, error)):
                operations[name](model, task)
    except (InjectedError, KeyboardInterrupt):
        pass
    except MechworkError as other:
        if not isinstance(other.__context__ or other.__cause__, InjectedError | KeyboardInterrupt):
            return ""  # a family that the operation refuses
    except Exception as other:
        if not isinstance(other.__context__ or other.__cause__, InjectedError | KeyboardInterrupt):
            raise
    else:
        return ""
    error.__traceback__ = None  # its frames hold contexts open, which close when they go
    said[f"{type(error).__name__} {kind}"] += 1
    return f"{name}: {type(error).__name__} {kind}"


def endure(tally: Tally, families: Sequence[str], operations: Mapping[str, Operation], n: int) -> None:
    """`n` faults on one model of each family, and the comparison with the beginning."""
    models = {family: build_model(family, torch.float32) for family in families}
    for model in models.values():
        with torch.no_grad():
            model.run_with_cache(torch.tensor([[1, 2, 3]]))
    before = {family: whole_state(model) for family, model in models.items()}
    said: Counter[str] = Counter()
    recent: list[str] = []
    known: dict[str, str] = {}
    names, done, draws = list(operations), 0, 0
    while done < n and draws < 20 * n:
        draws += 1
        family = families[done % len(families)]
        try:
            what = strike(tally, models[family], tally.draw.choice(names), operations, said)
        except Exception as error:  # noqa: BLE001 - an operation that a fault before it broke
            tally.check(False, f"{family}: {type(error).__name__}: {str(error)[:100]} after {recent[-3:]}")
            done += 1
            continue
        if not what:
            continue
        done += 1
        recent.append(f"{family} {what}")
        if done % EVERY and done < n:
            tally.check(True, what)
            continue
        gc.collect()
        wrong = {family: changes(before[family], whole_state(model)) for family, model in models.items()}
        new = {family: lost for family, lost in wrong.items() if lost != known.get(family, "")}
        known = wrong
        tally.check(not new, f"after {done} faults, the last {recent[-EVERY:]}: {new}")
    after = {family: whole_state(model) for family, model in models.items()}
    print(f"    {done} faults on {len(models)} models: " + ", ".join(f"{k} {what}" for what, k in said.most_common()))
    for what, beginnings in GROUPS.items():
        keys = {family: [key for key in after[family] if key.startswith(beginnings)] for family in families}
        same = sum(all(before[f].get(key) == after[f][key] for key in keys[f]) for f in families)
        n_values = sum(map(len, keys.values()))
        print(f"    {what:<24}{n_values:>6} values, unchanged in {same} of {len(families)} models")
        tally.check(same == len(families), f"{what} changed")
    for family in families:
        tally.check(not (lost := changes(before[family], after[family])), f"{family} at the end: {lost}")


def run(tally: Tally) -> None:
    """All operations and presets on six families."""
    few = tally.scale < 0.5
    endure(tally, FAMILIES[:3] if few else FAMILIES, OPERATIONS, tally.times(N))
