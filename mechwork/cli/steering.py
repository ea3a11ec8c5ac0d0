"""What `mechwork steer` works on: the pairs that have one direction, a direction fitted from them, and text to see side
effects on.
"""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import torch

    from ..directions import Direction, Examples, FunctionVector
    from ..tasks.task import Task

FUNCTION_VECTOR = "function_vector"
"""A fit by heads' writes, beside those of `directions.FITS`."""

UNINFORMATIVE = ("bare", "shuffled", "corrupt")

TEXT_ROWS, TEXT_WIDTH = 16, 24
"""How much held-out text side effects are seen on: rows of one length, so that no position is padding."""


def parse_settings(build: Callable[..., Task], settings: list[str] | None) -> dict[str, Any]:
    """``relation=french names=Mary,John`` -> keyword arguments of a task's builder; raises `InputError` for one that it
    does not have.
    """
    known = [name for name in inspect.signature(build).parameters if name not in ("model", "n", "seed")]
    found: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, e.g. relation=french; got {setting!r}")
        if key not in known:
            raise UnknownNameError("setting of this task", key, known)
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = tuple(part.strip() for part in value.split(",")) if "," in value else value
    return found


def narrow(model: Any, task: Task, answer: str | None, order: list[str] | None) -> Task:
    """The pairs that one direction can be about: those with the answer `answer`, those in which one span stands before
    another.
    """
    return _ordered(_answered(model, task, answer), order)


def _answered(model: Any, task: Task, answer: str | None) -> Task:
    if answer is None:
        return task
    ids = model.tokenizer(answer, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise InputError(
            f"--answer is one token of this model; {answer!r} is {len(ids)}. Mind the leading space, e.g. ' she'"
        )
    rows = [i for i in range(len(task)) if ids[0] in task.pairs.correct[i].tolist()]
    if not rows:
        raise InputError(f"no pair of {task.name} has the answer {answer!r}")
    return replace(task[rows], name=f"{task.name} ->{answer}")


def _ordered(task: Task, order: list[str] | None) -> Task:
    if order is None:
        return task
    spans = task.pairs.spans
    for name in order:
        if name not in spans:
            raise UnknownNameError(f"span of {task.name}", name, spans)
    first, second = (spans[name] for name in order)
    both = first.any(dim=1) & second.any(dim=1)
    rows = (both & (first.int().argmax(dim=1) < second.int().argmax(dim=1))).nonzero().flatten().tolist()
    if not rows:
        raise InputError(f"no pair of {task.name} has {order[0]} before {order[1]}")
    return replace(task[rows], name=f"{task.name}, {order[0]} before {order[1]}")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A direction, and the examples and the function vector that it was fitted as, if it was one."""

    direction: Direction
    examples: Examples
    vector: FunctionVector | None = None

    def at_every_layer(self, model: Any, how: str) -> list[Direction]:
        """A direction at every block's exit: fitted there, or the function vector, which is one vector for all
        places.
        """
        from ..directions import fit_directions
        from ..sites import Site

        sites = [Site("resid_post", layer) for layer in range(int(model.cfg.n_layers))]
        if self.vector is None:
            return fit_directions(model, self.examples, sites, how)
        return [replace(self.vector.direction, site=site) for site in sites]


def fit(model: Any, train: Task, args: argparse.Namespace) -> Fitted:
    """The direction that the options ask for, at the layer they name or the one that is best on training pairs."""
    from ..directions import Demonstrations, Examples, choose_layer, fit_direction, fit_function_vector
    from ..sites import Site

    examples = Examples.of_task(train, args.position)
    site = None if args.layer is None else Site("resid_post", args.layer)
    if args.fit == FUNCTION_VECTOR:
        shown = Demonstrations.of_task(train)
        blank = {
            "bare": shown.bare,
            "shuffled": shown.shuffled,
            "corrupt": lambda: Demonstrations.of_task(train, corrupt=True),
        }[args.uninformative]()
        vector = fit_function_vector(model, shown, blank, n_heads=args.heads, site=site)
        return Fitted(vector.direction, examples, vector)
    if site is None:
        site = choose_layer(model, examples, how=args.fit, criterion=args.criterion, seed=args.seed).site
    return Fitted(fit_direction(model, examples, site, args.fit), examples)


def held_out_text(model: Any, args: argparse.Namespace) -> torch.Tensor | None:
    """Rows of text of one length, from a file or the model's own training mixture (documents after those lenses train
    on); None for a model without either.
    """
    import torch

    from ..lenses.text import open_text
    from ..zoo.recipe import RECIPES

    name = args.model.partition("@")[0]
    if args.text is None and name not in RECIPES:
        return None
    stream = open_text(model, name if args.text is None else Path(args.text), width=TEXT_WIDTH, seed=1)
    rows = [row for row in stream.rows(0, 8 * TEXT_ROWS) if len(row) == TEXT_WIDTH][:TEXT_ROWS]
    if not rows:
        raise InputError(f"the text has no row of {TEXT_WIDTH} tokens; give a longer one with --text")
    return torch.tensor(rows)
