"""Features: list the shipped ones, train, evaluate, or find a task's circuit among them.

mechwork features list
mechwork features train --model gpt2-6l --out runs/features
mechwork features train --model gpt2-6l --out runs/features --resume
mechwork features evaluate --model gpt2-6l --html features.html
mechwork features circuit agreement --model gpt2-6l --html circuit.html
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import bundled
from .bundled import default_tasks, open_own_text
from .console import Console
from .options import add_pairs, at_least, load, path, task_builder
from .output import check_out, check_training_folder, deliver, refuse_unused, report_training, run_training

if TYPE_CHECKING:
    from ..features import FeatureProgress

KINDS = ("attn_out", "mlp_out", "resid_post")
CONCEPTS = {"agreement": (" are", "number"), "pronoun": (" she", "gender")}
"""Tasks whose answers tell a concept apart: the answer after prompts of the positive class, and the concept's name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("action", choices=("list", "train", "evaluate", "circuit"), help="what to do")
    parser.add_argument("task", nargs="?", metavar="TASK", help="circuit: a task's name (default: agreement)")
    parser.add_argument(
        "--features",
        metavar="DIR",
        help="evaluate, circuit: a folder or a file of features (default: those shipped with the model)",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="text to train or measure on: .txt, .jsonl or token shards (default: the model's own training mixture)",
    )
    parser.add_argument(
        "--out",
        type=path,
        metavar="PATH",
        help="train: folder of checkpoints and features (default: runs/features-MODEL); evaluate, circuit: a file for "
        "the result, .safetensors or .csv",
    )
    parser.add_argument("--resume", action="store_true", help="train: go on from the checkpoint in that folder")
    parser.add_argument(
        "--stop-after", type=at_least(1), metavar="N", help="train: stop after N further steps, with a checkpoint"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=list(KINDS),
        metavar="KIND",
        help=f"train: places, in every layer (default: {' '.join(KINDS)})",
    )
    parser.add_argument("--layers", nargs="+", type=at_least(0), metavar="N", help="train: these layers only")
    parser.add_argument(
        "--n-features", type=at_least(1), default=512, metavar="N", help="train: per place (default: 512)"
    )
    parser.add_argument(
        "--k", type=at_least(1), default=16, metavar="K", help="train: features active per token (default: 16)"
    )
    parser.add_argument("--steps", type=at_least(1), default=800, help="train: (default: 800)")
    parser.add_argument(
        "--held-out-rows",
        type=at_least(1),
        default=512,
        metavar="N",
        help="train: rows of text never trained on (default: 512)",
    )
    parser.add_argument("--rows", type=at_least(2), default=128, help="evaluate: rows of text (default: 128)")
    add_pairs(parser, 256, least=8, what="circuit: pairs, half of them held out")
    parser.add_argument(
        "--ig-steps",
        type=at_least(2),
        default=10,
        metavar="N",
        help="circuit: points of integrated gradients (default: 10)",
    )
    parser.add_argument(
        "--errors",
        choices=("ranked", "cut"),
        default="ranked",
        help="circuit: whether errors may be nodes (default: ranked)",
    )
    parser.add_argument(
        "--n-random", type=at_least(1), default=3, metavar="N", help="circuit: random circuits per size (default: 3)"
    )
    parser.set_defaults(keeps=False)


def run(args: argparse.Namespace, console: Console) -> None:
    """List, train, evaluate or find a circuit."""
    if args.action in ("train", "list"):
        refuse_unused(args, f"features {args.action}", "html", *(("out",) if args.action == "list" else ()))
    else:
        check_out(args)
    {"list": _list, "train": _train, "evaluate": _evaluate, "circuit": _circuit}[args.action](args, console)


def _list(args: argparse.Namespace, console: Console) -> None:
    from ..features import feature_names

    rows = []
    for name in feature_names():
        card = bundled.load_json("features", name, "card.json")
        places = card["evaluation"]["places"]
        rows.append(
            {
                "name": name,
                "places": len(places) - 1,
                "features": places[-1]["n_features"],
                "recovered": places[-1]["recovered"],
            }
        )
    lines = [
        f"{r['name']:<14}{r['features']:6d} features at {r['places']} places; {r['recovered']:.1%} of the loss "
        "recovered with all at once"
        for r in rows
    ]
    console.result("\n".join(lines) or "no features are shipped", {"features": rows})


def _train(args: argparse.Namespace, console: Console) -> None:
    from ..features import FeatureRecipe, evaluate_features, export_features, train_features
    from ..sites import Site

    recipe = FeatureRecipe(
        n_features=args.n_features, k=args.k, steps=args.steps, held_out_rows=args.held_out_rows, seed=args.seed
    )
    out = args.out or Path("runs") / f"features-{Path(args.model).name}"
    again = f"mechwork features train --model {args.model} --out {out} --resume"
    check_training_folder(out, again, resume=args.resume)
    model = load(args)
    layers = args.layers if args.layers is not None else range(int(model.cfg.n_layers))
    places = [Site(kind, layer) for layer in layers for kind in args.kinds]
    text = open_own_text(args, model)
    data: dict[str, Any] = {"model": args.model}
    training = run_training(
        console,
        lambda line: train_features(
            model, text, places, recipe, folder=out, progress=report_training(line, _said), stop_after=args.stop_after
        ),
        data, what=f"training features of {args.model}", steps=recipe.steps, out=out, again=again,
    )  # fmt: skip
    if training is None:
        return
    with console.step("measuring on held-out text"):
        measured = evaluate_features(
            model, training.features, text, n_rows=min(args.rows, args.held_out_rows), skip=recipe.skip
        )
    folder = export_features(training.features, out / "features", measured)
    told = f"The features: {folder}. Use them with: mechwork features circuit --model {args.model} --features {folder}"
    console.result(f"{measured}\n{told}", {**data, "features": str(folder), "evaluation": _records(measured)})


def _evaluate(args: argparse.Namespace, console: Console) -> None:
    from ..features import concept_of_answer, evaluate_features, measure_separability
    from ..render import render_features
    from ..tasks import find_task

    model = load(args)
    features = _features(args, model)
    with console.step("measuring reconstructions"):
        measured = evaluate_features(model, features, open_own_text(args, model, seed=1), n_rows=args.rows)
    concepts = []
    for name, (answer, concept) in CONCEPTS.items():
        if name in default_tasks(args.model):
            with console.step(f"measuring how well {concept} is told apart"):
                task = find_task(name)(model, n=args.n_pairs, seed=args.seed)
                concepts.append(
                    measure_separability(
                        model, features, concept_of_answer(model, task, answer, name=concept), seed=args.seed
                    )
                )
    text = "\n\n".join(map(str, [measured, *concepts]))
    data = {"evaluation": _records(measured), "separability": [row for one in concepts for row in _records(one)]}
    page = None if args.html is None else render_features(measured, concepts)
    deliver(args, console, measured, text, data, page=page)


def _circuit(args: argparse.Namespace, console: Console) -> None:
    from ..features import evaluate_feature_circuits, score_features

    build = task_builder(args.task or "agreement")
    model = load(args)
    features = _features(args, model)
    task = build(model, n=args.n_pairs, seed=args.seed)
    ways: dict[str, dict[str, Any]] = {
        "relp": {"rules": "relp"}, f"ig ({args.ig_steps} "
                                   "steps)": {"rules": "gradient", "ig_steps": args.ig_steps},
                                   "gradient": {"rules": "gradient"},
    }  # fmt: skip
    scores = {}
    for name, settings in ways.items():
        with console.step(f"scoring features: {name}") as line:
            scores[name] = score_features(model, task.train, features, **settings, progress=line)
    with console.step("running circuits"):
        curves = evaluate_feature_circuits(
            model, task.test, features, scores, errors=args.errors, n_random=args.n_random, seed=args.seed
        )
    first, second, *_ = curves.methods
    gap, low, high = curves.difference(first, second)
    said = f"{first} less {second}, area: {gap:+.3f} [{low:+.3f}, {high:+.3f}]"
    data = {
        "curves": _records(curves),
        "areas": {m: curves.area(m) for m in curves.methods} | {"random": curves.random_area},
        "difference": [gap, low, high], "top": scores[first].top(20),
    }  # fmt: skip
    deliver(args, console, curves, f"{scores[first]}\n\n{curves}\n{said}", data)


def _features(args: argparse.Namespace, model: Any) -> Any:
    from ..features import load_features

    return load_features(model, args.features)


def _records(result: Any) -> list[dict[str, Any]]:
    return result.to_dataframe().to_dict("records")


def _said(progress: FeatureProgress) -> str:
    return f"unexplained {progress.unexplained:.3f}, dead {progress.dead:.1%}"
