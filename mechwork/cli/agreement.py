"""Compare estimated with measured effects: every estimator, every kind of site, on one task or all that the model
knows.

mechwork agreement
mechwork agreement --model gpt2-6l --task ioi,induction --presets gradient,relp,gim --ig-steps 5
mechwork agreement --model all --presets gradient,relp
mechwork agreement --model SmolLM2.gguf --task ioi --seeds 0,1,2 --spans --ig-steps 5 --out agreement
mechwork agreement --model SmolLM2.gguf --task ioi --presets relp --edges eap,eap-ig,relp
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import make_folder, write_text
from .console import Console
from .options import add_executor, add_model, at_least, default_tasks, load

EDGE_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of the edges that are printed; CMD is over all of MIB's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "--task",
        metavar="TASKS",
        default="all",
        help="names of tasks, with commas (default: all that the model was made for)",
    )
    parser.add_argument(
        "--presets", "--rules", dest="rules", metavar="NAMES", default="all",
        help="presets of rules, with commas; ig5 and relp-ig5 are paths of five points (default: all presets)",
    )  # fmt: skip
    parser.add_argument(
        "--ig-steps", type=at_least(2), metavar="K", help="also compare gradients and RelP with K points on the path"
    )
    parser.add_argument("-n", type=at_least(1), default=32, metavar="N", help="pairs per task (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the pairs (default: 0)")
    parser.add_argument("--seeds", metavar="SEEDS", help="several seeds, with commas: each its own pairs and rows")
    parser.add_argument("--direction", choices=("denoise", "noise"), default="denoise", help="(default: denoise)")
    parser.add_argument("--spans", action="store_true", help="measure the task's spans rather than every position")
    parser.add_argument(
        "--screen", metavar="RULES", help="measure only the 5 %% of places with the largest estimates, and random ones"
    )
    parser.add_argument("--edges", metavar="PRESETS", help="also judge circuits of these edge presets, with commas")
    parser.add_argument("--out", metavar="DIR", help="keep rows and tables there; run again, it goes on")
    add_model(parser)
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Measure, estimate, print."""
    from .. import bundled
    from ..circuits.scoring.methods import find_method
    from ..patching.study import find_estimator
    from ..relevance import PRESETS
    from ..tasks import find_task

    if args.task != "all":
        for name in args.task.split(","):
            find_task(name)
    names = list(PRESETS) if args.rules == "all" else args.rules.split(",")
    if args.ig_steps:
        names += [name for name in (f"ig{args.ig_steps}", f"relp-ig{args.ig_steps}") if name not in names]
    estimators = [find_estimator(name) for name in names]
    for preset in _edge_presets(args):
        find_method(preset)
    _seeds(args)
    texts, data = [], []
    for name in bundled.model_names() if args.model == "all" else [args.model]:
        own = argparse.Namespace(**{**vars(args), "model": name})
        model = load(own)
        study = _study(own, model, estimators, console)
        where = ", at the tasks' spans" if args.spans else ""
        title = (
            f"{name}, {args.n} pairs per task, {args.direction}{where}: Pearson / relative error of the estimate "
            "against "
            "the measured effect"
        )
        edges = _edges(own, model, console)
        texts += [f"{title}\n\n{study.table()}", *([_edge_table(edges)] if edges else [])]
        data.append({"model": name, **study.to_json(), **({"edges": edges} if edges else {})})
        if args.out:
            _keep(Path(args.out).expanduser(), texts, study)
    note = (
        "Over layer x position for the stream and the writes, layer x head for z; * marks the smallest error of a row."
    )
    console.result("\n\n".join([*texts, note]), {"models": data})


def _seeds(args: argparse.Namespace) -> list[int]:
    if args.seeds is None:
        return [args.seed]
    parts = args.seeds.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--seeds takes different whole numbers with commas, e.g. 0,1,2; got {args.seeds!r}")
    return [int(part) for part in parts]


def _edge_presets(args: argparse.Namespace) -> list[str]:
    return args.edges.split(",") if args.edges else []


def _tasks(args: argparse.Namespace, model: Any, console: Console) -> Iterator[Any]:
    """Each task with each seed; those that the model's tokens cannot express are left out of ``all``, with a word."""
    from ..tasks import find_task

    names = default_tasks(args.model) if args.task == "all" else args.task.split(",")
    seeds = _seeds(args)
    for name in names:
        for seed in seeds:
            try:
                task = find_task(name)(model, n=args.n, seed=seed)
            except InputError as error:
                if args.task != "all" or len(names) == 1:
                    raise
                console.say(f"{name}: left out: {error}")
                break
            yield task if len(seeds) == 1 else replace(task, name=f"{name}, seed {seed}")


def _study(args: argparse.Namespace, model: Any, estimators: list[Any], console: Console) -> Any:
    from ..models.anatomy import read_anatomy
    from ..patching.study import SITES, study_agreement

    sites = [kind for kind in SITES if read_anatomy(model).has_site(kind)]
    tasks = list(_tasks(args, model, console))
    with console.step(f"comparing on {args.model}") as progress:
        return study_agreement(
            model, tasks, rules=estimators, sites=sites, direction=args.direction, screen=args.screen,
            positions="spans" if args.spans else None, checkpoint=args.out, progress=progress,
        )  # fmt: skip


def _edges(args: argparse.Namespace, model: Any, console: Console) -> list[dict[str, Any]]:
    """Circuits of each preset, scored on the task's train pairs and judged on its test pairs."""
    from ..circuits import evaluate, score_edges
    from ..models.identity import identify_model
    from ..patching.study import KeptRows
    from ..provenance import hash_json, stable

    found = []
    for task in _tasks(args, model, console) if args.edges else ():
        for preset in _edge_presets(args):
            key = hash_json([preset, args.seed, identify_model(model), stable(task.provenance())])
            kept = KeptRows(args.out, f"{task.name}, edges by {preset}", key)
            if rows := kept.read():
                found += rows
                continue
            with console.step(f"edges of {task.name} by {preset}"):
                began = time.process_time()
                scores = score_edges(model, task.train, preset=preset, seed=args.seed)
                seconds = time.process_time() - began
                curve = evaluate(model, task.test, scores, n_random=0, seed=args.seed)
            at = dict(zip(curve.fractions, [float(value) for value in curve.faithfulness], strict=True))
            row = {
                "task": task.name,
                "preset": preset,
                "cmd": float(curve.cmd),
                "cpr": float(curve.cpr),
                "seconds": seconds,
            }
            row |= {f"{f:g}": at[f] for f in EDGE_FRACTIONS}
            kept.write([row])
            found.append(row)
    return found


def _edge_table(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["task"]) for row in rows)
    head = (
        f"{'task':<{width}}  {'edges by':<12}"
        + "".join(f"{f'{f:.1%}':>8}" for f in EDGE_FRACTIONS)
        + f"{'CMD':>8}{'CPU s':>8}"
    )
    lines = ["Faithfulness of circuits on held-out pairs, by share of the edges", "", head]
    for row in rows:
        values = "".join(f"{row[f'{f:g}']:8.3f}" for f in EDGE_FRACTIONS)
        lines.append(f"{row['task']:<{width}}  {row['preset']:<12}{values}{row['cmd']:8.3f}{row['seconds']:8.1f}")
    return "\n".join(lines)


def _keep(folder: Path, texts: list[str], study: Any) -> None:
    """The tables as text, the rows as CSV: the same bytes for the same inputs."""
    make_folder(folder)
    write_text(folder / "tables.txt", "\n\n".join(texts) + "\n")
    table = study.to_dataframe().to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(folder / "agreement.csv", table)
