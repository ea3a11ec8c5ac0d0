"""Compare estimated with measured effects: every preset of rules, every kind of site, on one task or all.

mechwork agreement
mechwork agreement --model gpt2-6l --task ioi,induction --rules gradient,relp,gim
mechwork agreement --model openai-community/gpt2 --task all
"""

from __future__ import annotations

import argparse

from .console import Console
from .options import add_model, at_least, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("--task", metavar="TASKS", default="all", help="names of tasks, with commas (default: all)")
    parser.add_argument("--rules", metavar="RULES", default="all", help="presets of rules, with commas (default: all)")
    parser.add_argument("-n", type=at_least(1), default=32, metavar="N", help="pairs per task (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the pairs (default: 0)")
    parser.add_argument("--direction", choices=("denoise", "noise"), default="denoise", help="(default: denoise)")
    add_model(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Measure, estimate, print."""
    from ..patching.study import study_agreement
    from ..relevance import PRESETS, find_composite
    from ..tasks import TASKS, find_task

    names = list(TASKS) if args.task == "all" else args.task.split(",")
    rules = list(PRESETS) if args.rules == "all" else args.rules.split(",")
    builders = [find_task(name) for name in names]
    composites = [find_composite(name) for name in rules]
    model = load(args)
    tasks = [build(model, n=args.n, seed=args.seed) for build in builders]
    with console.step("comparing") as progress:
        study = study_agreement(model, tasks, rules=composites, direction=args.direction, progress=progress)
    text = (
        f"{args.model}, {args.n} pairs per task, {args.direction}: Pearson / relative error of the estimate against the measured effect\n"
        f"(over layer x position for the stream and the writes, layer x head for z; * the smallest error of a row)\n\n{study.table()}"
    )
    console.result(text, {"model": args.model, **study.to_json()})
