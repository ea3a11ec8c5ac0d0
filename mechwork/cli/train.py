"""Train a bundled model again from its recipe: seeded, interruptible, resumable.

Checkpoints go to --out; the finished model, with its card and manifest, to the folder 'model' inside it, which
'mechwork discover --model' takes.

  mechwork train gpt2-6l --out runs/gpt2-6l
  mechwork train gpt2-6l --out runs/gpt2-6l --resume
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Console
from .options import at_least, path
from .output import check_training_folder, report_training, run_training

if TYPE_CHECKING:
    from ..zoo.train import TrainingProgress

MODEL = "model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="the name of a bundled model, e.g. gpt2-6l")
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="folder of the checkpoints and the model (default: runs/RECIPE)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in that folder")
    parser.add_argument(
        "--stop-after", type=at_least(1), metavar="N", help="stop after N further steps, with a checkpoint"
    )
    parser.set_defaults(keeps=False)


def run(args: argparse.Namespace, console: Console) -> None:
    """Train, and export the model when the recipe is finished."""
    from ..zoo.export import export
    from ..zoo.recipe import find_recipe
    from ..zoo.train import train

    recipe = find_recipe(args.recipe)
    out = args.out or Path("runs") / recipe.name
    again = f"mechwork train {recipe.name} --out {out} --resume"
    check_training_folder(out, again, resume=args.resume)
    data: dict[str, Any] = {"recipe": recipe.name}
    trained = run_training(
        console,
        lambda line: train(recipe, out, progress=report_training(line, _said), stop_after=args.stop_after),
        data, what=f"training {recipe.name}", steps=recipe.steps, out=out, again=again,
    )  # fmt: skip
    if trained is None:
        return
    with console.step("measuring on held-out words and templates"):
        card = export(trained, out / MODEL)
    lines = [f"{task:<14} {100 * score['accuracy']:5.1f} % right" for task, score in card["test"].items()]
    lines.append(f"The model: {out / MODEL}. Use it with: mechwork discover ioi --model {out / MODEL}")
    console.result("\n".join(lines), {**data, "model": str(out / MODEL), "card": card})


def _said(progress: TrainingProgress) -> str:
    return ", ".join(
        [f"loss {progress.loss:.3f}", *(f"{task} {accuracy:.2f}" for task, accuracy in progress.validation.items())]
    )
