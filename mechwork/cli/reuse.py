"""Do tasks use the same circuit? Overlap of their circuits beside chance, and every task run by every task's circuit.

mechwork reuse ioi colored_objects greater_than --model gpt2-12l
mechwork reuse ioi induction --n-edges 200 --html reuse.html
"""

from __future__ import annotations

import argparse

from .console import Console
from .options import add_executor, add_pairs, at_least, load, task_builder
from .output import deliver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("tasks", metavar="TASK", nargs="+", help="names of two tasks or more")
    parser.add_argument(
        "--n-edges", type=at_least(1), default=100, metavar="N", help="edges per circuit (default: 100)"
    )
    parser.add_argument("--preset", metavar="NAME", help="how edges are scored (default: eap-ig)")
    add_pairs(parser, 64)
    parser.add_argument("--ablation", default="corrupt", help="what cut edges carry (default: %(default)s)")
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Check names, score, run, print."""
    from ..circuits.testing.reuse import study_reuse

    builders = [task_builder(name) for name in args.tasks]
    with console.step(f"loading {args.model}"):
        model = load(args)
    tasks = [build(model, n=args.n_pairs, seed=args.seed) for build in builders]
    with console.step("comparing circuits") as line:
        found = study_reuse(
            model,
            tasks,
            n_edges=args.n_edges,
            preset=args.preset,
            ablation=args.ablation,
            seed=args.seed,
            progress=line,
        )
    data = {
        "overlaps": found.comparison.to_dataframe().to_dict("records"),
        "runs": found.to_dataframe().to_dict("records"),
    }
    deliver(args, console, found, str(found), data)
