"""Save a changed model as a Hugging Face folder, with a list of what was changed that is checked when it is loaded.

mechwork save quiet --ablate a3.h1 m2
mechwork save she --model gpt2-6l --edit she.safetensors
mechwork save steered --writes writes.safetensors --remove refusal.safetensors
mechwork discover ioi --model quiet
"""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from .console import Console
from .options import load, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("folder", metavar="DIR", type=path, help="the new model's folder")
    changes = parser.add_argument_group("what is changed, in this order")
    changes.add_argument(
        "--ablate",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="switched off: heads a3.h1, layers a3 m3, neurons m3.n17",
    )
    changes.add_argument("--remove", nargs="+", type=path, default=[], metavar="FILE", help="directions to remove")
    changes.add_argument("--edit", nargs="+", type=path, default=[], metavar="FILE", help="edits of weights")
    changes.add_argument(
        "--writes", nargs="+", type=path, default=[], metavar="FILE", help="writes that are the same on every prompt"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Read the changes, load, save."""
    from ..directions import Direction
    from ..edits import WeightEdit, save_model
    from ..files import read_json
    from ..interventions import load_writes
    from ..models.changed import CHANGES

    changes: list[Any] = [*args.ablate, *map(Direction.load, args.remove), *map(WeightEdit.load, args.edit)]
    for file in args.writes:
        changes += load_writes(file)
    if not changes:
        raise InputError("nothing to change. Give --ablate, --remove, --edit or --writes")
    with console.step(f"loading {args.model}"):
        model = load(args)
    with console.step("saving"):
        folder = save_model(model, args.folder, changes, force=args.force)
    found = read_json(folder / CHANGES)
    rows = {name: row.get("share_changed") for name, row in found["tensors"].items()}
    lines = [*found["changes"], f"{len(rows)} weights differ:"]
    lines += [f"  {name}" + ("" if share is None else f"  {share:.1%} of its norm") for name, share in rows.items()]
    lines.append(f"The model: {folder}. Use it with: mechwork discover TASK --model {folder}")
    console.result("\n".join(lines), {"folder": str(folder), "changes": found["changes"], "weights": rows})
