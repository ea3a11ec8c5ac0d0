"""Compare estimated with measured effects: every estimator, every kind of site, on one task or all that the model
knows.

mechwork agreement
mechwork agreement ioi induction --model gpt2-6l --presets gradient,relp,gim --ig-steps 5
mechwork agreement --model all --presets gradient,relp
mechwork agreement ioi --model SmolLM2.gguf --seeds 0,1,2 --spans --ig-steps 5 --out agreement
mechwork agreement ioi --model SmolLM2.gguf --presets relp --edges eap,eap-ig,relp
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
from ..harmless import table_text
from .console import Console
from .options import add_executor, add_pairs, add_tasks, at_least, default_tasks, load, path, task_builder, task_names
from .output import deliver

EDGE_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of the edges that are printed; CMD is over all of MIB's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    add_tasks(parser, "names of tasks, or files of pairs (default: all that the model was made for)")
    parser.add_argument(
        "--presets", "--rules", dest="rules", metavar="NAMES", default="all",
        help="presets of rules, with commas; ig5 and relp-ig5 are paths of five points (default: all presets)",
    )  # fmt: skip
    parser.add_argument(
        "--ig-steps", type=at_least(2), metavar="K", help="also compare gradients and RelP with K points on the path"
    )
    add_pairs(parser, 32, least=1, what="pairs per task")
    parser.add_argument("--seeds", metavar="SEEDS", help="several seeds, with commas: each its own pairs and rows")
    parser.add_argument("--direction", choices=("denoise", "noise"), default="denoise", help="(default: denoise)")
    parser.add_argument("--spans", action="store_true", help="measure the task's spans rather than every position")
    parser.add_argument(
        "--screen", metavar="RULES", help="measure only the 5 %% of places with the largest estimates, and random ones"
    )
    parser.add_argument("--edges", metavar="PRESETS", help="also judge circuits of these edge presets, with commas")
    parser.add_argument("--out", type=path, metavar="DIR", help="keep rows and tables there; run again, it goes on")
    parser.set_defaults(keeps=False)
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Measure, estimate, print."""
    from .. import bundled
    from ..circuits.scoring.methods import find_method
    from ..patching.study import find_estimator
    from ..relevance import PRESETS

    for name in task_names(args, ()):
        task_builder(name)
    names = list(PRESETS) if args.rules == "all" else args.rules.split(",")
    if args.ig_steps:
        names += [name for name in (f"ig{args.ig_steps}", f"relp-ig{args.ig_steps}") if name not in names]
    estimators = [find_estimator(name) for name in names]
    for preset in _edge_presets(args):
        find_method(preset)
    _seeds(args)
    texts, data, studies = [], [], []
    for name in bundled.model_names() if args.model == "all" else [args.model]:
        own = argparse.Namespace(**{**vars(args), "model": name})
        model = load(own)
        study = _study(own, model, estimators, console)
        studies.append(study)
        where = ", at the tasks' spans" if args.spans else ""
        title = (
            f"{name}, {args.n_pairs} pairs per task, {args.direction}{where}: Pearson / relative error of the estimate "
            "against "
            "the measured effect"
        )
        edges = _edges(own, model, console)
        texts += [f"{title}\n\n{study.table()}", *([_edge_table(edges)] if edges else [])]
        data.append({"model": name, **study.to_json(), **({"edges": edges} if edges else {})})
        if args.out:
            _keep(args.out, texts, study)
    note = (
        "Over layer x position for the stream and the writes, layer x head for z; * marks the smallest error of a row."
    )
    kept = argparse.Namespace(html=args.html, force=args.force)  # --out is the folder, written above
    deliver(kept, console, studies, "\n\n".join([*texts, note]), {"models": data})


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
    given = task_names(args, ())
    names = given or default_tasks(args.model)
    seeds = _seeds(args)
    for name in names:
        for seed in seeds:
            try:
                task = task_builder(name)(model, n=args.n_pairs, seed=seed)
            except InputError as error:
                if given or len(names) == 1:
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
    write_text(folder / "agreement.csv", table_text(study.to_dataframe(), float_format="%.6g"))
