"""List the bundled models, or hash their files again and compare with what was shipped.

mechwork models
mechwork models verify
mechwork models verify gpt2-6l
"""

from __future__ import annotations

import argparse
from typing import Any

from .. import bundled
from ..errors import ArtefactError
from .console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("action", nargs="?", default="list", choices=("list", "verify"), help="(default: list)")
    parser.add_argument("names", metavar="NAME", nargs="*", help="which models (default: all)")


def run(args: argparse.Namespace, console: Console) -> None:
    """List or verify."""
    names = args.names or bundled.model_names()
    if args.action == "verify":
        _verify(names, console)
    else:
        _list(names, console)


def _verify(names: list[str], console: Console) -> None:
    for name in names:
        bundled.verified_model(name)
        console.say(f"{name}: every file is as it was shipped")
    if not names:
        raise ArtefactError("this installation has no bundled models; reinstall mechwork")
    console.result(f"verified: {', '.join(names)}", {"verified": names})


def _list(names: list[str], console: Console) -> None:
    rows = [_row(name) for name in names]
    lines = []
    for row in rows:
        lines.append(
            f"{row['name']}: {row['architecture']}, {row['parameters']:,} parameters, {row['megabytes']:.1f} MB"
        )
        if row["note"]:
            lines.append(f"  {row['note']}")
        lines += [
            f"  {task:<14} {100 * accuracy:5.1f} % right on held-out words and templates"
            for task, accuracy in row["accuracy"].items()
        ]
        lines.append(f"  card: {row['card']}")
    console.result("\n".join(lines), {"models": rows})


def _row(name: str) -> dict[str, Any]:
    folder = bundled.verified_model(name)
    card = bundled.read_json(folder / "card.json")
    return {
        "name": name,
        "architecture": card["architecture"],
        "parameters": card["parameters"],
        "megabytes": sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        "accuracy": {task: score["accuracy"] for task, score in card["test"].items()},
        "note": card["note"],
        "card": str(folder / "card.md"),
    }
