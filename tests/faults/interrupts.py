"""Exceptions and interrupts at any module call, hook or line of every operation: the model comes back as it was."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules import module as modules

import mechwork as mw
import mechwork.models.borrow as loans
from mechwork.ablation import AblationSpec, study_self_repair, sweep_ablations
from mechwork.circuits import find_acdc, learn_circuit, score_nodes
from mechwork.circuits.scoring.methods import PRESETS as EDGE_PRESETS
from mechwork.errors import MechworkError
from mechwork.patching.path import patch_paths
from mechwork.relevance import PRESETS
from tests.faults.core import InjectedError, Tally, changes, forget, model_of, small_task, whole_state
from tests.faults.operations import MORE, scores_of

ROOT = str(Path(mw.__file__).parent)
FAMILIES = ("gpt2", "llama", "gemma2", "mixtral", "opt", "neox")
Operation = Callable[[Any, Any], Any]

PLAIN: dict[str, Operation] = {
    "patch": lambda m, t: mw.patch(m, t, ["z", "resid_pre"]),
    "patch restarting": lambda m, t: mw.patch(m, t, ["mlp_out"], metrics=["log_probability"]),
    "screen": lambda m, t: mw.patch(m, t, ["z"], screen="gradient"),
    "attribute": lambda m, t: mw.attribute(m, t, ["z", "resid_pre"]),
    "attribute ig": lambda m, t: mw.attribute(m, t, ["z"], ig_steps=3),
    "score_edges": mw.score_edges,
    "score_nodes": score_nodes,
    "evaluate": lambda m, t: mw.evaluate(m, t, scores_of(m, t), fractions=(0.1, 0.5), n_random=1),
    "ablate": lambda m, t: mw.ablate(m, t, AblationSpec(["a1.h0", "m0"], "zero")),
    "sweep_ablations": lambda m, t: sweep_ablations(m, t, ["heads"], kind="zero"),
    "study_self_repair": lambda m, t: study_self_repair(m, t, ["a0.h1"], kind="zero"),
    "record_run": lambda m, t: mw.record_run(m, t.pairs, ["z", "pattern", "resid_pre"]),
    "record_attention": mw.record_attention,
    "attribute_tokens": lambda m, t: mw.attribute_tokens(m, t.pairs.prompt(0), 3),
    "attribute_logits": mw.attribute_logits,
    "patch_paths": lambda m, t: patch_paths(m, t, ["a0.h1", "input"], ["a1.h0<q>", "logits"]),
    "find_acdc": lambda m, t: find_acdc(m, t, 0.5),
    "learn_circuit": lambda m, t: learn_circuit(m, t, 5, n_steps=2),
    "read_lens": lambda m, t: mw.read_lens(m, t.pairs.clean_tokens[:1], lens="logit"),
    "check_conservation": lambda m, t: mw.check_conservation(m, t.pairs.clean_tokens, lambda run: run[:, -1, 3].sum()),
    "accuracy": lambda m, t: t.accuracy(m),
    "study_heads": mw.study_heads,
}
OPERATIONS: dict[str, Operation] = {
    **PLAIN,
    **MORE,
    **{f"attribute {name}": lambda m, t, name=name: mw.attribute(m, t, ["z"], rules=name) for name in PRESETS},
    **{f"edges {name}": lambda m, t, name=name: mw.score_edges(m, t, preset=name) for name in EDGE_PRESETS},
}
KINDS = ("before a module", "after a module", "line", "cpu time")


class Counter:
    """Counts calls, and raises at the k-th."""

    def __init__(self, k: int | None, error: BaseException) -> None:
        self.n, self.k, self.error = 0, k, error

    def __call__(self, *_: Any) -> None:
        self.n += 1
        if self.n == self.k:
            raise self.error


@contextmanager
def fault(kind: str, counter: Counter) -> Iterator[None]:
    """Inside, every event of that kind is counted."""
    if kind == "line":
        with _lines(counter):
            yield
        return
    add = (
        modules.register_module_forward_pre_hook if kind == "before a module" else modules.register_module_forward_hook
    )
    handle = add(counter)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _lines(counter: Counter) -> Iterator[None]:
    def local(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            counter()
        return local

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(ROOT) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        # Where a `with` ends, Python tells a tracer of the line before it unlocks, a moment at which no signal is
        # handled: an exception from there leaves the lock to this thread, and every other one would wait for ever.
        while loans._lock._is_owned():  # type: ignore[attr-defined]
            loans._lock.release()


@cache
def total(family: str, name: str, kind: str) -> int:
    """Events of that kind in the undisturbed operation; 0 where the family refuses it."""
    counter = Counter(None, InjectedError())
    try:
        with fault(kind, counter):
            OPERATIONS[name](model_of(family), small_task())
    except MechworkError:
        return 0
    return counter.n


def one(tally: Tally, family: str, name: str, kind: str) -> None:
    """One fault, and the comparison of everything before and after."""
    draw = tally.draw
    model, task = model_of(family), small_task()
    error: BaseException = draw.choice([InjectedError("injected"), KeyboardInterrupt("injected")])
    if kind == "cpu time":
        what = f"{family} {name}: interrupt after {(delay := draw.uniform(0.001, 0.15)):.3f} s of CPU"
        run: Callable[[], None] = lambda: interrupted(OPERATIONS[name], model, task, delay)  # noqa: E731
    else:
        n = total(family, name, kind)
        if not n:
            return
        k = draw.randint(1, n)
        what = f"{family} {name}: {type(error).__name__} at {kind} {k} of {n}"

        def run() -> None:
            with fault(kind, Counter(k, error)):
                OPERATIONS[name](model, task)

    before = whole_state(model)
    said = ""
    try:
        run()
    except (InjectedError, KeyboardInterrupt, MechworkError):
        pass
    except Exception as other:  # noqa: BLE001 - the injected error must come through, or a clear one
        cause = other.__context__ or other.__cause__
        said = (
            ""
            if isinstance(cause, InjectedError | KeyboardInterrupt)
            else f"{type(other).__name__}: {str(other)[:100]}"
        )
    try:
        said = said or changes(before, whole_state(model))
    except Exception as damage:  # noqa: BLE001 - a model that does not run any more
        said = f"the model does not run: {type(damage).__name__} {str(damage)[:100]}"
    tally.check(not said, f"{what}: {said}")
    if said:
        forget()


def interrupted(operation: Operation, model: Any, task: Any, delay: float) -> None:
    def handler(*_: Any) -> None:
        raise KeyboardInterrupt("injected")

    before = signal.signal(signal.SIGVTALRM, handler)
    signal.setitimer(signal.ITIMER_VIRTUAL, delay)
    try:
        operation(model, task)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run(tally: Tally) -> None:
    """Every operation on every family, then random ones."""
    if tally.scale >= 1:
        for name in OPERATIONS:
            for family in FAMILIES:
                one(tally, family, name, tally.draw.choice(KINDS[:2]))
    for _ in range(tally.times(700)):
        draw = tally.draw
        kind = draw.choices(KINDS, (3, 3, 2, 2))[0]
        operations = list(PLAIN) if kind == "line" and draw.random() < 0.5 else list(OPERATIONS)
        one(tally, draw.choice(FAMILIES if tally.scale >= 1 else FAMILIES[:3]), draw.choice(operations), kind)
    assert torch.is_grad_enabled()
