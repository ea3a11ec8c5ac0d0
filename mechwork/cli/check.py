"""Look at pairs before a discovery: can a circuit be found on them, and does the model do what they ask?

  mechwork check pairs.csv --model openai-community/gpt2
  mechwork check ioi

PAIRS is a .csv or .jsonl file with the columns clean, corrupt, correct, incorrect, or a task's name. Each finding
is green,
yellow or red, with a remedy. Exit code 2 when one is red.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError, NotFoundError
from .console import Console
from .options import PAIR_FILES, add_model, add_pair_file, at_least, check_pair_options, load, read_pair_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("pairs", metavar="PAIRS", help="a file of pairs, or a task's name")
    parser.add_argument("--n-pairs", type=at_least(1), default=64, metavar="N", help="of a named task (default: 64)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of a named task's pairs (default: 0)")
    add_pair_file(parser)
    add_model(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Check, print, and fail where something is red."""
    from_file = args.pairs.endswith(PAIR_FILES)
    if from_file and not Path(args.pairs).is_file():
        raise NotFoundError(f"no file of pairs at {args.pairs}")
    check_pair_options(args, from_file=from_file)
    from ..discovery.check import check_data
    from ..tasks import find_task

    build = None if from_file else find_task(args.pairs)
    with console.step(f"loading {args.model}"):
        model = load(args)
        task = build(model, n=args.n_pairs, seed=args.seed) if build else read_pair_file(args, model, args.pairs)
    check = check_data(model, task)
    rows = [vars(row) for row in check.rows]
    data = {"level": check.level, "accuracy": check.accuracy, "chance": check.chance, "findings": rows}
    console.result(f"{task.name} on {args.model}: {check.level}\n{check!r}", data)
    if check.problems:
        raise InputError(f"{task.name} is not fit: {', '.join(row.what for row in check.problems)} (see above)")
