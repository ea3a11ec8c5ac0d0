"""Wrong arguments to the public functions: each parameter of each, by its signature, gets values of all sorts.

A call works, or is refused by one of mechwork's own errors; afterwards the model is as it was. Python's own complaint
about a keyword that does not exist or is missing counts as a refusal: it says everything. That 1.5, NaN, infinity or
10**30 works as a whole number, or NaN as a number, is a failure.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

import mechwork as mw
from mechwork.ablation import AblationSpec, study_self_repair, sweep_ablations
from mechwork.arguments import PLAIN, no_number
from mechwork.circuits import find_acdc, learn_circuit, measure_completeness, score_neurons, score_nodes
from mechwork.directions import Direction, Examples
from mechwork.patching import leading_differences, patch_subspace
from mechwork.patching.path import patch_paths
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.faults.core import Tally, changes, forget, model_of, small_task, whole_state
from tests.faults.kills import LENS, ROWS
from tests.faults.operations import MORE, recorded

Calls = dict[str, tuple[Callable[..., Any], dict[str, Any]]]
CLEAR = ("unexpected keyword", "missing", "required positional", "positional argument", "Type-check error")
"""The last: under pytest the tests' own check of hints comes before a constructor's."""
SLOW = {"n", "n_random", "n_same_degree", "ig_steps", "n_steps", "steps", "n_resamples", "width", "n_copies"}
"""Counts for which a huge value is honest work and not a mistake."""


SOME = 6
"""Values that a parameter of the operations in `MORE` gets."""


class Odd:
    """Something that no function knows."""

    def __repr__(self) -> str:
        return "<odd>"


BAD: tuple[Any, ...] = (
    None, -1, 0, 1.5, math.nan, math.inf, 10**30, True, "", "x", "a9.h9", b"x", [], [None], [-1], ["x"], {}, {"x": 1},
    Odd(), torch.zeros(2), torch.tensor(math.nan), Path("/nowhere/at/all"), lambda: None, "\x00", "z" * 300,
)  # fmt: skip


@cache
def calls() -> Calls:
    """Name -> (function, arguments of a call that works)."""
    model, task = model_of("gpt2"), small_task()
    scores = mw.score_edges(model, task)
    pairs = {"model": model, "task": task}
    return {
        "patch": (mw.patch, {**pairs, "sites": ["z"]}),
        "attribute": (mw.attribute, {**pairs, "sites": ["z"]}),
        "score_edges": (mw.score_edges, pairs),
        "score_nodes": (score_nodes, pairs),
        "score_neurons": (score_neurons, pairs),
        "evaluate": (mw.evaluate, {**pairs, "subject": scores, "fractions": (0.1, 0.5), "n_random": 1}),
        "ablate": (mw.ablate, {**pairs, "ablation": AblationSpec(["a0.h1"], "zero")}),
        "sweep_ablations": (sweep_ablations, {**pairs, "what": ["mlps"], "kind": "zero"}),
        "study_self_repair": (study_self_repair, {**pairs, "heads": ["a0.h1"], "kind": "zero"}),
        "record_run": (mw.record_run, {"model": model, "pairs": task, "kinds": ["z"]}),
        "record_attention": (mw.record_attention, {"model": model, "prompts": task, "heads": ["a0.h1"]}),
        "attribute_tokens": (mw.attribute_tokens, {"model": model, "prompt": [1, 2, 3], "metric": 3}),
        "attribute_logits": (mw.attribute_logits, {"model": model, "prompts": task}),
        "patch_paths": (patch_paths, {**pairs, "writers": ["a0.h1"], "readers": ["logits"]}),
        "find_acdc": (find_acdc, {**pairs, "threshold": 5.0}),
        "learn_circuit": (learn_circuit, {**pairs, "n_edges": 5, "n_steps": 1}),
        "read_lens": (mw.read_lens, {"model": model, "prompts": torch.tensor([[1, 2, 3]]), "lens": "logit"}),
        "completeness": (measure_completeness, {**pairs, "circuit": scores.circuit(n_edges=20), "n_steps": 1}),
        "study_heads": (mw.study_heads, {**pairs, "heads": ["a0.h1"]}),
        "train_lens": (mw.train_lens, {"model": model, "text": ROWS, "recipe": LENS}),
        "circuit": (scores.circuit, {"n_edges": 20}),
        "top": (scores.top, {"n": 3}),
        "from_tokens": (
            Task.from_tokens, {"clean": [[1, 2]], "corrupt": [[1, 3]], "correct": [4], "incorrect": [5]},
        ),
        "AblationSpec": (AblationSpec, {"targets": ["a0.h1"], "kind": "zero"}),
        "Direction": (Direction, {"vector": torch.ones(4), "site": Site("resid_pre", 1)}),
        "Site": (Site, {"kind": "resid_pre", "layer": 1}),
        "of_tokens": (Examples.of_tokens, {"prompts": [[1, 2], [3, 4]], "labels": [True, False]}),
        "leading": (leading_differences, {**pairs, "site": Site("resid_pre", 1), "position": "8"}),
        "with_metric": (task.with_metric, {"metric": "log_probability"}),
        "describe": (task.describe, {"n": 2}),
        "load_circuit": (mw.load_circuit, {"name": "none"}),
        "load_model": (mw.load_model, {"source": "no/such"}),
        "load_discovery": (mw.load_discovery, {"path": "/nowhere"}),
    }  # fmt: skip


@cache
def every() -> Calls:
    """Those and the operations of `MORE`."""
    return recorded(model_of("gpt2"), small_task()) | calls()


def parameters(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind not in kinds and p.name != "self"]


def one(tally: Tally, name: str, parameter: str, bad: Any) -> None:
    """One wrong argument."""
    function, arguments = calls()[name] if name in calls() else every()[name]
    given = {**arguments, parameter: bad}
    if parameter in ("checkpoint", "folder", "out") and isinstance(bad, str | bytes | Path):
        return  # what may be written where is the part `disk`
    if parameter in SLOW and isinstance(bad, int) and bad > 100:
        return
    what = f"{name}({parameter}={bad!r:.40})"
    try:
        function(**given)
    except mw.errors.MechworkError as error:
        tally.check(len(str(error)) > 15, f"{what}: says only {error}")
    except TypeError as error:
        clear = any(text in str(error) for text in CLEAR)
        tally.check(clear, f"{what}: TypeError: {str(error)[:140]}")
    except Exception as error:  # noqa: BLE001 - counted
        tally.check(False, f"{what}: {type(error).__name__}: {str(error)[:140]}")
    else:
        silent = no_number(bad, PLAIN.get(hint_of(function, parameter), object), parameter)
        tally.check(not silent, f"{what}: accepted, which is {silent}")


def hint_of(function: Callable[..., Any], parameter: str) -> str:
    return str(inspect.signature(function).parameters[parameter].annotation)


def run(tally: Tally) -> None:
    """Every function and parameter at scale 1, with every value; those of `MORE` with `SOME` of them."""
    model = model_of("gpt2")
    before = whole_state(model)
    cases = [
        (name, parameter, i)
        for name, (function, _) in (calls() if tally.scale < 0.5 else every()).items()
        for parameter in parameters(function)
        for i in (tally.draw.sample(range(len(BAD)), SOME) if name in MORE else range(len(BAD)))
    ]
    with tempfile.TemporaryDirectory() as place, _at(Path(place)):
        for name, parameter, i in tally.draw.sample(cases, min(len(cases), tally.times(len(cases)))):
            one(tally, name, parameter, BAD[i])
    said = changes(before, whole_state(model))
    tally.check(not said, f"after all calls the model differs: {said}")
    if said:
        forget()
    assert patch_subspace


class _at:  # noqa: N801 - reads as a phrase
    """Inside, another working directory: what a wrong path makes stays there."""

    def __init__(self, place: Path) -> None:
        self.place, self.before = place, Path.cwd()

    def __enter__(self) -> None:
        import os

        os.chdir(self.place)

    def __exit__(self, *_: object) -> None:
        import os

        os.chdir(self.before)
