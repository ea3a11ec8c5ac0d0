"""Compare estimated with measured effects: every preset of rules, every kind of site, on one task or all that the model knows.

mechwork agreement
mechwork agreement --model gpt2-6l --task ioi,induction --rules gradient,relp,gim
mechwork agreement --model all --rules gradient,relp
mechwork agreement --model openai-community/gpt2 --task all
"""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from .console import Console
from .options import add_executor, add_model, at_least, default_tasks, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "--task",
        metavar="TASKS",
        default="all",
        help="names of tasks, with commas (default: all that the model was made for)",
    )
    parser.add_argument("--rules", metavar="RULES", default="all", help="presets of rules, with commas (default: all)")
    parser.add_argument("-n", type=at_least(1), default=32, metavar="N", help="pairs per task (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the pairs (default: 0)")
    parser.add_argument("--direction", choices=("denoise", "noise"), default="denoise", help="(default: denoise)")
    add_model(parser)
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Measure, estimate, print."""
    from .. import bundled
    from ..relevance import PRESETS, find_composite
    from ..tasks import find_task

    if args.task != "all":
        for name in args.task.split(","):
            find_task(name)
    composites = [find_composite(name) for name in (PRESETS if args.rules == "all" else args.rules.split(","))]
    texts, data = [], []
    for name in bundled.model_names() if args.model == "all" else [args.model]:
        study = _study(argparse.Namespace(**{**vars(args), "model": name}), composites, console)
        title = f"{name}, {args.n} pairs per task, {args.direction}: Pearson / relative error of the estimate against the measured effect"
        texts.append(f"{title}\n\n{study.table()}")
        data.append({"model": name, **study.to_json()})
    note = (
        "Over layer x position for the stream and the writes, layer x head for z; * marks the smallest error of a row."
    )
    console.result("\n\n".join([*texts, note]), {"models": data})


def _study(args: argparse.Namespace, composites: list[Any], console: Console) -> Any:
    from ..models.anatomy import read_anatomy
    from ..patching.study import SITES, study_agreement
    from ..tasks import find_task

    names = default_tasks(args.model) if args.task == "all" else args.task.split(",")
    model = load(args)
    sites = [kind for kind in SITES if read_anatomy(model).has_site(kind)]
    tasks = []
    for name in names:
        try:
            tasks.append(find_task(name)(model, n=args.n, seed=args.seed))
        except InputError as error:
            if args.task != "all" or len(names) == 1:
                raise
            console.say(f"{name}: left out: {error}")
    with console.step(f"comparing on {args.model}") as progress:
        return study_agreement(model, tasks, rules=composites, sites=sites, direction=args.direction, progress=progress)
