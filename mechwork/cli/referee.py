"""Judge a circuit as a referee would: formal tests with p-values, each pass, fail or inconclusive, beside a null task.

mechwork referee ioi
mechwork referee ioi --n-edges 200 --null corruption --html review.html
mechwork referee ioi --model llama-6l --circuit mine.json --margin 0.2 --out review.safetensors
mechwork referee ioi --also all --html card.html
mechwork referee ioi --model SmolLM2.gguf -n 16 --n-edges 700 --n-random 39 --max-edges 5 --also mechanisms

Without --circuit one is found on the task's training pairs. It is judged on the held-out pairs. --also adds the rest of
the card: stability (other pairs, templates, ablations, seeds, presets), mechanisms (one or several), power (with how
many pairs is it decided), backups (what takes over) and rivals (other circuits as faithful).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from .console import Console
from .options import add_executor, add_pairs, at_least, fraction, load, path, task_builder
from .output import deliver

ALSO = {
    "stability": "choosing again",
    "mechanisms": "one or several",
    "power": "judging samples of pairs",
    "backups": "what takes over",
    "rivals": "learning other circuits",
}
"""What `--also` adds, and what is said meanwhile."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("task", metavar="TASK", help="a task's name")
    parser.add_argument("--circuit", type=path, metavar="FILE", help="a saved circuit (default: one that is found)")
    parser.add_argument(
        "--n-edges", type=at_least(1), default=100, metavar="N", help="of the circuit that is found (default: 100)"
    )
    parser.add_argument("--preset", metavar="NAME", help="how edges are scored (default: eap-ig)")
    add_pairs(parser, 64)
    parser.add_argument("--ablation", default="corrupt", help="what cut edges carry (default: %(default)s)")
    parser.add_argument("--level", type=fraction, default=0.05, metavar="P", help="of the tests (default: 0.05)")
    parser.add_argument(
        "--margin", type=fraction, default=0.1, metavar="X", help="of the faithfulness around 1 (default: 0.1)"
    )
    parser.add_argument(
        "--n-random", type=at_least(1), default=99, metavar="N",
        help="random circuits of its size; with 19 they pass only when all claims do (default: 99)",
    )  # fmt: skip
    parser.add_argument(
        "--max-edges", type=at_least(1), default=100, metavar="N", help="edges removed one by one (default: 100)"
    )
    parser.add_argument(
        "--null", choices=("answers", "corruption", "none"), default="answers", help="the null task (default: answers)"
    )
    parser.add_argument(
        "--n-seeds", type=at_least(1), default=3, metavar="N", help="draws of pairs for stability (default: 3)"
    )
    parser.add_argument(
        "--also", nargs="+", choices=(*ALSO, "all"), default=[], metavar="PART", help=f"{', '.join(ALSO)}, or all"
    )
    parser.add_argument("--no-random-model", action="store_true", help="leave out the model with shuffled weights")
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Check names, find or read the circuit, judge it, print."""
    from ..circuits import Circuit, referee, score_edges

    build = task_builder(args.task)
    circuit = None if args.circuit is None else Circuit.load(args.circuit)
    with console.step(f"loading {args.model}"):
        model = load(args)
    task = build(model, n=args.n_pairs, seed=args.seed)
    if circuit is None:
        with console.step("finding a circuit") as line:
            scores = score_edges(model, task.train, preset=args.preset, seed=args.seed, progress=line)
        circuit = scores.circuit(n_edges=args.n_edges)
    with console.step("judging the circuit") as line:
        review = referee(
            model, task.test, circuit, ablation=args.ablation, level=args.level, margin=args.margin,
            n_random=args.n_random, max_edges=args.max_edges, null=None if args.null == "none" else args.null,
            random_model=not args.no_random_model, seed=args.seed, progress=line,
        )  # fmt: skip
    data: dict[str, Any] = {
        "verdict": review.verdict,
        "n_edges": circuit.n_edges,
        "n_pairs": review.n_pairs,
        "trials": [asdict(trial) for trial in review.trials],
        "null": [asdict(trial) for trial in review.null],
        "null_reason": review.null_reason,
        "random_model": [asdict(trial) for trial in review.random],
        "superfluous": list(review.edges_that("fail")),
    }
    parts = ALSO if "all" in args.also else tuple(dict.fromkeys(args.also))
    results: list[Any] = [review]
    for name in parts:
        with console.step(f"{name}: {ALSO[name]}") as line:
            results.append(_study(name, args, model, build, task, circuit, line))
    data["also"] = {
        name: result.to_dataframe().to_dict("records") for name, result in zip(parts, results[1:], strict=True)
    }
    deliver(args, console, results if parts else review, "\n\n".join(map(str, results)), data)


def _study(
    name: str, args: argparse.Namespace, model: Any, build: Callable[..., Any], task: Any, circuit: Any, line: Any
) -> Any:
    """One more part of the card, with this run's preset, size and seed."""
    from ..circuits import complete_with_backups, find_rivals, study_mechanisms, study_power, study_stability
    from ..circuits.scoring.methods import DEFAULT

    preset, n_edges = args.preset or DEFAULT, circuit.n_requested or circuit.n_edges
    match name:
        case "stability":
            return study_stability(
                model, task, n_edges=n_edges, preset=preset, seed=args.seed, progress=line,
                again=lambda seed: build(model, n=args.n_pairs, seed=seed), n_seeds=args.n_seeds,
            )  # fmt: skip
        case "mechanisms":
            return study_mechanisms(
                model, task, n_edges=n_edges, preset=preset, margin=args.margin, seed=args.seed, progress=line
            )
        case "power":
            return study_power(
                model, task.test, circuit, level=args.level, margin=args.margin, seed=args.seed, progress=line
            )
        case "backups":
            return complete_with_backups(model, task.test, circuit, source=task.train, seed=args.seed, progress=line)
    return find_rivals(model, task, circuit, seed=args.seed, progress=line)
