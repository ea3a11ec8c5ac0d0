"""Look at pairs before a discovery: can a circuit be found on them, and does the model do what they ask?

  mechwork check pairs.csv --model openai-community/gpt2
  mechwork check ioi

PAIRS is a .csv or .jsonl file with the columns clean, corrupt, correct, incorrect, or a task's name. Each finding
is green,
yellow or red, with a remedy. Exit code 2 when one is red.
"""

from __future__ import annotations

import argparse

from ..errors import InputError
from .console import Console
from .options import PAIR_FILES, add_pair_file, add_pairs, check_pair_options, load, task_builder
from .output import deliver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("pairs", metavar="PAIRS", help="a file of pairs, or a task's name")
    add_pairs(parser, 64, least=1, what="of a named task")
    add_pair_file(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Check, print, and fail where something is red."""
    check_pair_options(args, from_file=args.pairs.endswith(PAIR_FILES))
    build = task_builder(args.pairs, args)
    from ..discovery.check import check_data

    with console.step(f"loading {args.model}"):
        model = load(args)
        task = build(model, n=args.n_pairs, seed=args.seed)
    check = check_data(model, task)
    rows = [vars(row) for row in check.rows]
    data = {"level": check.level, "accuracy": check.accuracy, "chance": check.chance, "findings": rows}
    deliver(args, console, check, f"{task.name} on {args.model}: {check.level}\n{check!r}", data)
    if check.problems:
        raise InputError(f"{task.name} is not fit: {', '.join(row.what for row in check.problems)} (see above)")
