"""say how often a model is right on a task

mechwork accuracy ioi
mechwork accuracy pairs.csv --model openai-community/gpt2 --json
"""

from __future__ import annotations

import argparse

from .console import Console
from .options import add_pairs, load, task_builder
from .output import deliver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments; the shared ones are added for it."""
    parser.add_argument("task", metavar="TASK", help="a task's name, or a file of pairs")
    add_pairs(parser, 64, least=1, what="of a named task")


def run(args: argparse.Namespace, console: Console) -> None:
    """Measure, keep, print."""
    build = task_builder(args.task)
    from ..discovery.check import check_data

    model = load(args)
    task = build(model, n=args.n_pairs, seed=args.seed)
    check = check_data(model, task)
    deliver(args, console, check, f"{task.name}: {check.accuracy:.1%} right", {"accuracy": check.accuracy})
