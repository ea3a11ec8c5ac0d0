"""Options that verbs share, and what they mean for the process: offline mode, logging, how the model is loaded."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import torch

PAIR_FILES = (".csv", ".jsonl", ".ndjson")
"""Endings by which a task on the command line is taken for a file of pairs."""

SMALL = 20_000_000
"""Below this number of parameters one thread is as fast as many, and results are the same to the bit on every machine."""

DTYPES = ("float32", "float64", "bfloat16", "float16")


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number that is not smaller."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"a whole number is needed, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"at least {least} is needed, got {value}")
        return value

    return parse


def fraction(text: str) -> float:
    """An argparse type: a number above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, got {text!r}") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and up to 1 is needed, got {text}")
    return value


def add_common(parser: argparse.ArgumentParser) -> None:
    """``--json -q -v`` for every verb."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    group.add_argument("-q", "--quiet", action="store_true", help="nothing but the result and errors")
    group.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv for debugging")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options of verbs that load a model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="gpt2-6l",
        help="bundled name, local folder, GGUF file, lmstudio:... or ollama:..., or hub name (default: %(default)s)",
    )
    group.add_argument("--device", help="e.g. cpu, cuda, cuda:1, mps (default: cpu)")
    group.add_argument("--dtype", choices=DTYPES, help="of the weights (default: float32; bfloat16 on CUDA)")
    group.add_argument("--threads", type=at_least(1), metavar="N", help="torch threads (default: 1 for small models)")
    group.add_argument("--offline", action="store_true", help="never ask the hub, whatever the model's name")


def apply_common(args: argparse.Namespace) -> None:
    """Put the options into effect for this process; to be called before anything heavy is imported."""
    if getattr(args, "offline", False):
        os.environ["HF_HUB_OFFLINE"] = "1"
        if constants := sys.modules.get("huggingface_hub.constants"):  # read once, when it was imported
            vars(constants)["HF_HUB_OFFLINE"] = True
    log, handler = logging.getLogger("mechwork"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    log.handlers = [handler]
    log.setLevel(
        logging.ERROR if args.quiet else {0: logging.WARNING, 1: logging.INFO}.get(args.verbose, logging.DEBUG)
    )


def load(args: argparse.Namespace) -> Any:
    """The model that `add_model`'s options describe."""
    return load_named(args.model, device=args.device, dtype=args.dtype, threads=args.threads)


def load_named(name: str, *, device: str | None = None, dtype: str | None = None, threads: int | None = None) -> Any:
    """A model by name, without the libraries' chatter; small ones on one thread."""
    import torch
    from transformers.utils import logging as transformers_logging

    from ..models import load_model

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    model = load_model(name, device=find_device(device), dtype=find_dtype(dtype))
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    if threads or small:
        torch.set_num_threads(threads or 1)
    return model


def default_tasks(model: str) -> list[str]:
    """The tasks that a bundled model was trained for; every task for other models."""
    from .. import bundled
    from ..tasks import TASKS

    if model not in bundled.model_names():
        return list(TASKS)
    trained = bundled.load_json("models", model, "card.json")["test"]
    return [name for name in TASKS if name in trained]


def find_dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of that name; None leaves the choice to `load_model`."""
    import torch

    return None if name is None else getattr(torch, name)


def find_device(name: str | None) -> torch.device | None:
    """The device of that name, after checking that this machine has it."""
    import torch

    if name is None:
        return None
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        known.append("mps")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    full = None if device is None else "cuda:0" if str(device) == "cuda" else str(device)
    if device is None or full not in known:
        raise InputError(f"--device names a device of this machine, one of {', '.join(known)}; got {name!r}")
    return device


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


def check_training_folder(out: Path, again: str, *, resume: bool) -> None:
    """Raises `InputError` for resuming where there is no checkpoint, or beginning where something is; `again` is how to go on."""
    from ..checkpoint import STATE

    has_checkpoint = (out / STATE).is_file()
    if resume and not has_checkpoint:
        raise InputError(f"--resume goes on from a checkpoint, and {out} has none. Leave --resume out to begin.")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        remedy = f"Go on with: {again}" if has_checkpoint else "Choose another --out."
        raise InputError(f"{out} exists and is not overwritten. {remedy}")
