"""What goes with a bundled model where a verb is not told otherwise: its tasks, its text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError


def default_tasks(model: str) -> list[str]:
    """The tasks that a bundled model was trained for; every task for other models."""
    from .. import bundled
    from ..tasks import TASKS

    if model not in bundled.model_names():
        return list(TASKS)
    trained = bundled.load_json("models", model, "card.json")["test"]
    return [name for name in TASKS if name in trained]


def open_own_text(args: argparse.Namespace, model: Any, seed: int = 0) -> Any:
    """The text of ``--text``, or else the one that a bundled model was trained on."""
    from ..lenses import open_text
    from ..zoo.recipe import RECIPES

    name = args.model.partition("@")[0]
    if args.text is None and name not in RECIPES:
        raise InputError(
            f"{args.model} has no text of its own here (bundled: {', '.join(RECIPES)}). Give some: --text FILE"
        )
    return open_text(model, Path(args.text) if args.text else name, seed=seed)
