"""Steer a task along a direction fitted from its pairs, every way there is, and see what else changes.

mechwork steer pronoun --answer " she"
mechwork steer ioi --set names=Mary,John --methods add mirror_below --strengths 0.5 1 2
mechwork steer in_context --model gemma2-6l --set relation=french --html steering.html
mechwork steer in_context --model gemma2-6l --set relation=french --fit function_vector --show function_vector decodable
mechwork steer pronoun --answer " she" --show stability illusion --carry-to gpt2-12l
mechwork steer capitals --model gemma2-6l --set corruption=mention
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UnknownNameError
from .bundled import default_tasks
from .console import Console
from .options import add_pairs, at_least, load, task_builder
from .output import deliver
from .steer_studies import (
    show_carried,
    show_decodable,
    show_function_vector,
    show_illusion,
    show_places,
    show_stability,
)
from .steering import FUNCTION_VECTOR, UNINFORMATIVE, Fitted, fit, held_out_text, narrow, parse_settings

if TYPE_CHECKING:
    from ..directions import SteeringStudy
    from ..tasks.task import Task

SHOWN = ("curves", "decodable", "stability", "illusion", "places", "function_vector")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "task", metavar="TASK", help="a task's name: its corrupt prompts are steered towards the clean ones"
    )
    pairs = parser.add_argument_group("which pairs")
    pairs.add_argument("--answer", metavar="TOKEN", help="only pairs whose right answer this is, e.g. ' she'")
    pairs.add_argument("--order", nargs=2, metavar="SPAN", help="only pairs whose first span stands before the second")
    pairs.add_argument(
        "--set", nargs="+", metavar="KEY=VALUE", dest="settings", help="settings of the task, e.g. relation=french"
    )
    add_pairs(parser, 256, least=8)
    fitted = parser.add_argument_group("the direction")
    fitted.add_argument("--position", default="END", metavar="SPAN", help="where it is read (default: END)")
    fitted.add_argument(
        "--fit",
        default="mean_difference",
        metavar="HOW",
        help="mean_difference, principal_difference, whitened_difference, probe, or function_vector for tasks that "
        "show examples "
        "(default: mean_difference)",
    )
    fitted.add_argument(
        "--uninformative",
        choices=UNINFORMATIVE,
        default="bare",
        help="function_vector: prompts without the relation that heads' effects are measured on (default: bare)",
    )
    fitted.add_argument(
        "--heads",
        type=at_least(1),
        metavar="N",
        help="function_vector: heads that are summed (default: a sixth of all)",
    )
    fitted.add_argument(
        "--layer",
        type=at_least(0),
        metavar="N",
        help="steer after this layer (default: the best in training by --criterion)",
    )
    fitted.add_argument(
        "--criterion",
        default="accuracy",
        metavar="NAME",
        help="of the layer: accuracy, discriminability or opposite_signs (default: accuracy)",
    )
    steered = parser.add_argument_group("steering")
    steered.add_argument(
        "--show",
        nargs="+",
        choices=SHOWN,
        default=["curves"],
        metavar="WHAT",
        help=f"{', '.join(SHOWN)} (default: curves)",
    )
    steered.add_argument("--carry-to", metavar="MODEL", help="also carry the direction into another model")
    steered.add_argument("--methods", nargs="+", metavar="NAME", help="ways to steer (default: all)")
    steered.add_argument(
        "--strengths", nargs="+", type=float, metavar="S", help="1 is each method as published (default: 0.25 to 4)"
    )
    steered.add_argument(
        "--others",
        nargs="+",
        metavar="TASK",
        help="tasks to see side effects on (default: up to three others of the model)",
    )
    steered.add_argument(
        "--text", metavar="FILE", help="text to see side effects on (default: the model's own training mixture)"
    )
    steered.add_argument(
        "--generate", type=at_least(0), default=16, metavar="N", help="tokens of each continuation (default: 16)"
    )
    steered.add_argument(
        "--n-random", type=at_least(1), default=3, metavar="N", help="random directions per method (default: 3)"
    )
    steered.add_argument(
        "--n-as-far", type=at_least(0), default=1, metavar="N", help="controls moved as far per method (default: 1)"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Check names; fit on training pairs, steer held-out ones, print."""
    from ..directions import CRITERIA, FITS, METHODS

    build = task_builder(args.task)
    settings = parse_settings(build, args.settings)
    others = args.others or [name for name in default_tasks(args.model) if name != args.task][:3]
    builders = [task_builder(name) for name in others]
    fits = (*FITS, FUNCTION_VECTOR)
    for kind, name, table in (("way to fit a direction", args.fit, fits), ("criterion", args.criterion, CRITERIA)):
        if name not in table:
            raise UnknownNameError(kind, name, table)
    for method in args.methods or ():
        if method not in METHODS:
            raise UnknownNameError("way to steer", method, METHODS)
    for option, file in (("--html", args.html), ("--out", args.out)):
        if file is not None and "curves" not in args.show:
            raise InputError(f"{option} is for the curves; add them to --show. Got {file}")
    with console.step(f"loading {args.model}"):
        model = load(args)
    task = build(model, n=args.n_pairs, seed=args.seed, **settings)
    train, test = (narrow(model, part, args.answer, args.order) for part in (task.train, task.test))
    fitted = fit(model, train, args)
    elsewhere = [make(model, n=64, seed=args.seed).test for make in builders]
    data: dict[str, Any] = {
        "task": test.name, "direction": str(fitted.direction), "layer": fitted.direction.site.layer, "others": others,
    }  # fmt: skip
    studies: list[SteeringStudy] = []
    texts = [str(fitted.direction if fitted.vector is None else fitted.vector)]
    shows: dict[str, Callable[[], tuple[str, Any]]] = {
        "curves": lambda: _curves(model, test, fitted, elsewhere, args, console, studies),
        "decodable": lambda: show_decodable(model, train, test, fitted, elsewhere, args, console),
        "stability": lambda: show_stability(model, train, fitted, args),
        "illusion": lambda: show_illusion(model, train, test, fitted, args),
        "places": lambda: show_places(model, test, fitted, args),
        "function_vector": lambda: show_function_vector(model, test, fitted),
    }
    if args.carry_to is not None:
        shows["carried"] = lambda: show_carried(model, build, fitted, builders, args, settings)
    for name, show in shows.items():
        if name in args.show or name == "carried":
            text, rows = show()
            texts.append(text)
            data |= rows if name == "curves" else {name: rows}
    deliver(args, console, studies, "\n\n".join(texts), data)


def _curves(
    model: Any, test: Task, fitted: Fitted, others: list[Task], args: argparse.Namespace, console: Console,
    studies: list[SteeringStudy],
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Success and side effects over strengths; adds the study to `studies`."""
    from ..directions import STRENGTHS, study_steering, transport_write

    direction, text = fitted.direction, held_out_text(model, args)
    writes = {} if args.methods else {"transport": transport_write(model, fitted.examples, direction.site)}
    with console.step("steering") as line:
        study = study_steering(
            model, test, direction, methods=args.methods, writes=writes, strengths=args.strengths or STRENGTHS,
            others=others, text=text, n_random=args.n_random, n_as_far=args.n_as_far,
            n_generated=0 if text is None else args.generate, seed=args.seed, progress=line,
        )  # fmt: skip
    studies.append(study)
    plain = {
        "accuracy_on_others": study.plain_accuracy, "corrupt": study.baseline[0], "clean": study.baseline[1],
        "perplexity": study.plain_perplexity, "repetition": study.plain_repetition, "oddness": study.plain_oddness,
    }  # fmt: skip
    return f"{study}\n\n{_summary(study)}", {"rows": study.to_dataframe().to_dict("records"), "plain": plain}


def _summary(study: Any) -> str:
    limits = (0.01, 0.1, 1.0)
    head = "".join(f"{kl:>8g}" for kl in limits)
    lines = [f"{'largest success where KL elsewhere is at most':<48}{head}   random, 0.1   as far, 0.1"]
    best: dict[str, list[float]] = {"random": [], "as far": []}
    for method in study.methods:
        cells = "".join(f"{study.best(method, max_kl=kl):8.3f}" for kl in limits)
        for kind in best:
            chance = [
                study.best(method, control, max_kl=0.1)
                for control in study.controls
                if control.startswith(kind) and study.of(method, control)
            ]
            best[kind] += chance
            cells += f"{max(chance):14.3f}" if chance else " " * 14
        lines.append(f"{method:<48}{cells}")
    lines += [f"{kind + ', the best':<56}{max(found):8.3f}" for kind, found in best.items() if found]
    return "\n".join(lines)
