"""List the bundled models, or check them: hash their files and measure their accuracies again. Or list what else is
here.

mechwork models
mechwork models --local
mechwork models verify
mechwork models verify gpt2-6l
mechwork models verify --files-only
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import bundled
from ..errors import ArtefactError
from ..files import read_json
from .console import Console
from .options import set_threads

POINT = 0.01
"""How far a measured accuracy may be from the card's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("action", nargs="?", default="list", choices=("list", "verify"), help="(default: list)")
    parser.add_argument("names", metavar="NAME", nargs="*", help="which models (default: all)")
    parser.add_argument("--files-only", action="store_true", help="verify hashes, and measure nothing")
    parser.add_argument(
        "--local", action="store_true", help="list the models of LM Studio, Ollama and the Hugging Face cache"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """List or verify."""
    if args.local:
        _list_local(console)
        return
    names = args.names or bundled.model_names()
    set_threads(args)
    if args.action == "verify":
        _verify(names, console, measure=not args.files_only)
    else:
        _list(names, console)


def _list_local(console: Console) -> None:
    from ..models.stores import list_hub_cache, list_lmstudio, list_ollama

    places = {"LM Studio": list_lmstudio(), "Ollama": list_ollama(), "Hugging Face cache": list_hub_cache()}
    lines = []
    for place, models in places.items():
        lines.append(f"{place}: {len(models)} model{'' if len(models) == 1 else 's'}")
        lines += [f"  {one.name}  {one.n_bytes / 1e6:,.0f} MB" for one in models]
    lines.append("Any of these names goes into --model and load_model; architectures are checked when they are loaded.")
    rows = [
        {"place": place, "name": one.name, "path": str(one.path), "megabytes": one.n_bytes / 1e6}
        for place, models in places.items()
        for one in models
    ]
    console.result("\n".join(lines), {"local": rows})


def _verify(names: list[str], console: Console, *, measure: bool) -> None:
    if not names:
        raise ArtefactError("this installation has no bundled models; reinstall mechwork")
    folders = {name: bundled.verified_model(name) for name in names}
    measured: dict[str, dict[str, float]] = {}
    for name, folder in folders.items():
        console.say(f"{name}: every file is as it was shipped")
        if measure:
            measured[name] = _measure(name, folder, console)
    console.result(f"verified: {', '.join(names)}", {"verified": names, "accuracy": measured})


def _measure(name: str, folder: Path, console: Console) -> dict[str, float]:
    """Accuracies, measured again; a card that promises more or less by over a point is refused."""
    from ..zoo.export import remeasure

    promised = read_json(folder / "card.json")["test"]
    with console.step(f"measuring {name}"):
        found = {task: score.accuracy for task, score in remeasure(folder).items()}
    for task, accuracy in found.items():
        if abs(accuracy - promised[task]["accuracy"]) > POINT:
            raise ArtefactError(
                f"{name} does {task} right in {100 * accuracy:.1f} % of cases where its card says "
                f"{100 * promised[task]['accuracy']:.1f} %; the libraries here compute something else, or the card is "
                "wrong"
            )
    console.say(f"{name}: {len(found)} accuracies are within 1 point of the card's")
    return found


def _list(names: list[str], console: Console) -> None:
    rows = [_row(name) for name in names]
    lines = []
    for row in rows:
        lines.append(
            f"{row['name']}: {row['architecture']}, {row['layers']} layers, {row['parameters']:,} parameters, "
            f"{row['megabytes']:.1f} MB"
        )
        if row["note"]:
            lines.append(f"  {row['note']}")
        lines += [
            f"  {task:<14} {100 * accuracy:5.1f} % right on held-out words and templates"
            for task, accuracy in row["accuracy"].items()
        ]
        if row["checkpoints"]:
            names_of_steps = ", ".join(f"{row['name']}@{step}" for step in row["checkpoints"])
            lines.append(f"  along training: {names_of_steps}")
        lines.append(f"  card: {row['card']}")
    console.result("\n".join(lines), {"models": rows})


def _row(name: str) -> dict[str, Any]:
    folder = bundled.verified_model(name)
    card = read_json(folder / "card.json")
    return {
        "name": name,
        "architecture": card["architecture"],
        "layers": card["recipe"]["n_layers"],
        "parameters": card["parameters"],
        "megabytes": sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        "accuracy": {task: score["accuracy"] for task, score in card["test"].items()},
        "checkpoints": bundled.checkpoints(name),
        "note": card["note"],
        "card": str(folder / "card.md"),
    }
