"""Train a tuned lens, show what a lens reads in a text, or measure one.

mechwork lens train --model gpt2-12l --out runs/lens
mechwork lens train --model gpt2-12l --out runs/lens --resume
mechwork lens show "When Mary and John went to the shop, John gave a drink to" --html lens.html
mechwork lens evaluate --lens runs/lens/lens --model gpt2-12l
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, NotFoundError
from .bundled import open_own_text
from .console import Console
from .options import at_least, load, path
from .output import check_out, check_training_folder, deliver, refuse_unused, report_training, run_training

if TYPE_CHECKING:
    from ..lenses.evaluate import LensEvaluation
    from ..lenses.train import LensProgress

LENS = "lens"
FORMS = "full, low_rank_R (R a number), diagonal or bias"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("action", choices=("train", "show", "evaluate"), help="what to do")
    parser.add_argument("prompt", nargs="?", default="", metavar="TEXT", help="show: the text to read")
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="text to train or measure on: .txt, .jsonl or token shards (default: the model's own training mixture)",
    )
    parser.add_argument(
        "--lens",
        metavar="DIR",
        help="show, evaluate: 'logit', or a lens's folder (default: the one shipped with the model)",
    )
    parser.add_argument(
        "--out", type=path, metavar="PATH",
        help="train: folder of checkpoints and the lens (default: runs/lens-MODEL); show, evaluate: a file for the "
             "result, .safetensors or .csv",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="train: go on from the checkpoint in that folder")
    parser.add_argument(
        "--stop-after", type=at_least(1), metavar="N", help="train: stop after N further steps, with a checkpoint"
    )
    parser.add_argument("--form", default="full", help=f"train: {FORMS} (default: full)")
    parser.add_argument(
        "--kind", default="resid_pre", help="train: resid_pre, resid_mid or resid_post (default: resid_pre)"
    )
    parser.add_argument(
        "--steps", type=at_least(0), default=150, help="train: steps after the closed-form start (default: 150)"
    )
    parser.add_argument(
        "--rows", type=at_least(4), default=512, help="rows of text held out of training, or measured (default: 512)"
    )
    parser.add_argument("--rate", type=float, default=4e-3, help="train: highest learning rate (default: 0.004)")
    parser.add_argument("--target", help="show: a single token to follow (default: each position's next token)")
    parser.set_defaults(keeps=False)


def run(args: argparse.Namespace, console: Console) -> None:
    """Train, show or evaluate."""
    if args.action == "train":
        refuse_unused(args, "lens train", "html")
    else:
        check_out(args)
    {"train": _train, "show": _show, "evaluate": _evaluate}[args.action](args, console)


def _train(args: argparse.Namespace, console: Console) -> None:
    from ..lenses import LensRecipe, evaluate_lens, export_lens, train_lens

    recipe = LensRecipe(
        form=args.form, kind=args.kind, steps=args.steps, held_out_rows=args.rows, learning_rate=args.rate
    )
    out = args.out or Path("runs") / f"lens-{Path(args.model).name}"
    again = f"mechwork lens train --model {args.model} --out {out} --resume"
    check_training_folder(out, again, resume=args.resume)
    model = load(args)
    text = open_own_text(args, model)
    data: dict[str, Any] = {"model": args.model}
    training = run_training(
        console,
        lambda line: train_lens(
            model, text, recipe, folder=out, progress=report_training(line, _said), stop_after=args.stop_after
        ),
        data, what=f"training a lens for {args.model}", steps=recipe.steps, out=out, again=again,
    )  # fmt: skip
    if training is None:
        return
    data["stopped"] = training.stopped
    with console.step("measuring on held-out text"):
        measured = evaluate_lens(model, training.lens, text.odd_rows(recipe.held_out_rows))
    folder = export_lens(training.lens, measured, out / LENS)
    lines = [str(measured), _summary(measured), *([training.stopped] if training.stopped else [])]
    lines.append(f"The lens: {folder}. Use it with: mechwork lens show TEXT --model {args.model} --lens {folder}")
    console.result("\n".join(lines), {**data, "lens": str(folder), "evaluation": _numbers(measured)})


def _show(args: argparse.Namespace, console: Console) -> None:
    from ..lenses import read_lens

    if not args.prompt:
        raise InputError('show needs a text: mechwork lens show "The cats"')
    model = load(args)
    table = read_lens(model, args.prompt, _lens(args, model), target=args.target)
    data = {"lens": table.lens, "cells": table.to_dataframe().to_dict("records")}
    deliver(args, console, table, str(table), data)


def _evaluate(args: argparse.Namespace, console: Console) -> None:
    from ..lenses import evaluate_lens

    model = load(args)
    with console.step("measuring"):
        measured = evaluate_lens(
            model,
            _lens(args, model),
            open_own_text(args, model, seed=1),
            n_rows=args.rows,
            transfer=args.html is not None,
        )
    deliver(args, console, measured, f"{measured}\n{_summary(measured)}", {"evaluation": _numbers(measured)})


def _lens(args: argparse.Namespace, model: Any) -> Any:
    from ..lenses import LOGIT_LENS, load_lens

    if args.lens == "logit":
        return LOGIT_LENS
    try:
        return load_lens(model, args.lens)
    except NotFoundError:
        if args.lens is not None or args.action != "show":
            raise
        return LOGIT_LENS  # no lens is shipped with this model; the table says which one was read


def _summary(measured: LensEvaluation) -> str:
    half = max(1, (len(measured.places) - 1) // 2)
    mine, logit = measured.mean("kl")[:-1], measured.mean("logit_kl")[:-1]
    below = int((mine < logit).sum())
    return (
        f"below the logit lens at {below} of {len(mine)} places; on average over the first half "
        f"{float(mine[:half].mean()):.3f} bits "
        f"where the logit lens has {float(logit[:half].mean()):.3f}, over all {float(mine.mean()):.3f} and "
        f"{float(logit.mean()):.3f}"
    )


def _numbers(measured: LensEvaluation) -> dict[str, Any]:
    return {
        "places": list(measured.places),
        **{name: measured.mean(name).tolist() for name in (*measured.sums, "gain")},
    }


def _said(progress: LensProgress) -> str:
    return f"loss {progress.loss:.3f} bits, held-out {progress.held_out:.3f}"
