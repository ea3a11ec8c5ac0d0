"""Compare all ways to score edges, on pairs they were not found on: CPR and CMD with intervals, random circuits beside
them.

mechwork leaderboard
mechwork leaderboard ioi docstring --model gpt2-6l --exact
mechwork leaderboard ioi --presets eap-ig --rules greedy integer
mechwork leaderboard ioi --presets relp eap-ig --n-pairs 64 --out standings.csv --html standings.html
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..errors import InputError, MechworkError
from .bundled import default_tasks
from .console import Console
from .options import add_executor, add_pairs, load, path, task_builder
from .output import deliver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "tasks", metavar="TASK", nargs="*", help="names of tasks (default: all that the model was made for)"
    )
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="ways to score edges (default: all but exact)")
    parser.add_argument(
        "--rules", nargs="*", metavar="RULE",
        help="ways to choose edges by the default's scores: greedy, positive, sure, integer (default: all)",
    )  # fmt: skip
    parser.add_argument("--exact", action="store_true", help="also measured effects: half a forward per edge")
    add_pairs(parser, 128)
    parser.add_argument("--ablation", default="corrupt", help="what cut edges carry (default: %(default)s)")
    parser.add_argument(
        "--out", "--csv", type=path, metavar="FILE", help="keep the standings: .csv, or .safetensors for one task"
    )
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Check names, then run task by task and print what there is."""
    from ..circuits.scoring.methods import PRESETS
    from ..circuits.testing.leaderboard import available_presets, mean_ranks, run_leaderboard
    from ..errors import UnknownNameError

    names = args.tasks or default_tasks(args.model)
    builders = {name: task_builder(name) for name in names}
    presets = args.presets or available_presets(exact=args.exact)
    for preset in presets:
        if preset not in PRESETS:
            raise UnknownNameError("preset", preset, PRESETS)
    with console.step(f"loading {args.model}"):
        model = load(args)
    boards, left_out = [], {}
    for name, build in builders.items():
        try:
            task = build(model, n=args.n_pairs, seed=args.seed)
            with console.step(name) as progress:
                boards.append(
                    run_leaderboard(
                        model,
                        task,
                        presets=presets,
                        rules=args.rules,
                        ablation=args.ablation,
                        seed=args.seed,
                        progress=progress,
                    )
                )
        except MechworkError as error:
            if len(names) == 1:
                raise
            left_out[name] = str(error)
            console.say(f"{name}: left out: {error}")
    if not boards:
        raise InputError("none of the tasks could be run with this model; see the reasons above")
    ranks = mean_ranks(boards)
    text = "\n\n".join([*map(str, boards), _summary(ranks, len(boards))])
    deliver(args, console, boards, text, _data(boards, ranks, left_out))


def _summary(ranks: dict[str, tuple[float, float, float, float]], n: int) -> str:
    lines = [
        f"over {n} task{'s' * (n > 1)}{'':<16}rank by CMD  rank by CPR   mean CMD  mean CPR",
        *(f"{name:<24}{row[0]:13.1f}{row[1]:13.1f}{row[2]:11.3f}{row[3]:10.3f}" for name, row in ranks.items()),
    ]
    return "\n".join(lines)


def _data(boards: list[Any], ranks: dict[str, Any], left_out: dict[str, str]) -> dict[str, Any]:
    return {
        "boards": [
            {
                "model": board.model_name,
                "task": board.task_name,
                "n_train": board.n_train,
                "n_test": board.n_test,
                "ablation": board.ablation,
                "random": {"cpr": board.random_cpr, "cmd": board.random_cmd},
                "chosen": dict(zip(("method", "why"), (board.chosen[0].method, board.chosen[1]), strict=True)),
                "standings": [asdict(standing) for standing in board.standings],
            }
            for board in boards
        ],
        "mean_ranks": {
            name: dict(zip(("by_cmd", "by_cpr", "cmd", "cpr"), row, strict=True)) for name, row in ranks.items()
        },
        "left_out": left_out,
    }
