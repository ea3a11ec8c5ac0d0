"""Steer a task along a direction fitted from its pairs, every way there is, and see what else changes.

mechwork steer pronoun --answer " she"
mechwork steer in_context --model gpt2-12l --others ioi agreement --out steering.html
mechwork steer ioi --position S2 --methods add mirror_below --strengths 0.5 1 2
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UnknownNameError
from .console import Console
from .options import add_model, at_least, default_tasks, load

if TYPE_CHECKING:
    from ..tasks.task import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "task", metavar="TASK", help="a task's name: its corrupt prompts are steered towards the clean ones"
    )
    parser.add_argument("--answer", metavar="TOKEN", help="only pairs whose right answer this is, e.g. ' she'")
    parser.add_argument("--position", default="END", metavar="SPAN", help="where the direction is read (default: END)")
    parser.add_argument(
        "--fit", default="mean_difference", metavar="HOW", help="mean_difference, principal_difference or probe"
    )
    parser.add_argument(
        "--layer",
        type=at_least(0),
        metavar="N",
        help="steer after this layer (default: the one that separates best in training)",
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="ways to steer (default: all)")
    parser.add_argument(
        "--strengths", nargs="+", type=float, metavar="S", help="1 is each method as published (default: 0.25 to 4)"
    )
    parser.add_argument(
        "--others",
        nargs="+",
        metavar="TASK",
        help="tasks to see side effects on (default: up to three others of the model)",
    )
    parser.add_argument(
        "--n-pairs", type=at_least(8), default=256, metavar="N", help="pairs, half of them held out (default: 256)"
    )
    parser.add_argument(
        "--n-random", type=at_least(1), default=3, metavar="N", help="random directions per method (default: 3)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the pairs and of the controls (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the plot and the table as one HTML page")
    add_model(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Check names; fit on training pairs, steer held-out ones, print."""
    from ..directions import FITS, METHODS, STRENGTHS, Examples, fit_direction, study_steering, transport_write
    from ..sites import Site
    from ..tasks import find_task

    build = find_task(args.task)
    others = args.others or [name for name in default_tasks(args.model) if name != args.task][:3]
    builders = [find_task(name) for name in others]
    if args.fit not in FITS:
        raise UnknownNameError("way to fit a direction", args.fit, FITS)
    for method in args.methods or ():
        if method not in METHODS:
            raise UnknownNameError("way to steer", method, METHODS)
    if args.out is not None and not args.out.absolute().parent.is_dir():
        raise InputError(f"--out names a file in a folder that exists; got {args.out}")
    with console.step(f"loading {args.model}"):
        model = load(args)
    task = build(model, n=args.n_pairs, seed=args.seed)
    train, test = (_answered(model, part, args.answer) for part in (task.train, task.test))
    examples = Examples.of_task(train, args.position)
    layer = args.layer if args.layer is not None else _best_layer(model, examples, args.fit, args.seed)
    site = Site("resid_post", layer)
    direction = fit_direction(model, examples, site, args.fit)
    writes = {} if args.methods else {"transport": transport_write(model, examples, site)}
    with console.step("steering") as line:
        study = study_steering(
            model, test, direction, methods=args.methods, writes=writes, strengths=args.strengths or STRENGTHS,
            others=[make(model, n=64, seed=args.seed).test for make in builders], n_random=args.n_random, seed=args.seed,
            progress=line,
        )  # fmt: skip
    if args.out is not None:
        args.out.write_text(study.to_html(), encoding="utf-8")
    data: dict[str, Any] = {
        "task": task.name, "direction": str(direction), "layer": layer, "others": others,
        "rows": study.to_dataframe().to_dict("records"),
        "plain": {"accuracy_on_others": study.plain_accuracy, "corrupt": study.baseline[0], "clean": study.baseline[1]},
    }  # fmt: skip
    console.result(f"{direction}\n{study}\n\n{_summary(study)}", data)


def _answered(model: Any, task: Task, answer: str | None) -> Task:
    """The pairs of which `answer` is a right one."""
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


def _best_layer(model: Any, examples: Any, how: str, seed: int) -> int:
    """The earliest layer with the best accuracy on training groups that it was not fitted on."""
    from ..directions import measure_separation
    from ..sites import Site

    sites = [Site("resid_post", layer) for layer in range(int(model.cfg.n_layers))]
    found = [s.accuracy for s in measure_separation(model, examples, sites, how, n_controls=0, seed=seed)]
    return found.index(max(found))


def _summary(study: Any) -> str:
    lines = [f"{'largest success where KL on others is at most':<48}{'0.01':>8}{'0.1':>8}{'1':>8}   random, 0.1"]
    for method in study.methods:
        chance = [study.best(method, control, max_kl=0.1) for control in study.controls if study.of(method, control)]
        cells = "".join(f"{study.best(method, max_kl=kl):8.3f}" for kl in (0.01, 0.1, 1.0))
        lines.append(f"{method:<48}{cells}   {f'{max(chance):.3f}' if chance else ''}")
    return "\n".join(lines)
