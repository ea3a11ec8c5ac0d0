"""Options that verbs share, and what they mean for the process: offline mode, logging, how the model is loaded."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import torch

PAIR_FILES = (".csv", ".jsonl", ".ndjson")
"""Endings by which a task on the command line is taken for a file of pairs."""

SMALL = 20_000_000
"""Below this number of parameters one thread is as fast as many, and results are the same to the bit on every machine.
"""

DTYPES = ("float32", "float64", "bfloat16", "float16")


MOST_PAIRS, MOST_THREADS, MOST_SEED = 100_000, 1024, 2**63 - 1


def at_least(least: int, most: int = 10**9) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"a whole number is needed, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"at least {least} is needed, got {value}")
        if value > most:
            raise argparse.ArgumentTypeError(f"at most {most:,} is possible, got {value:,}")
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


def add_model(parser: argparse.ArgumentParser, *, name: bool = True) -> None:
    """``--model --device --dtype --threads --offline --seed`` of verbs that load one; `name` False: they take its name
    otherwise.
    """
    group = parser.add_argument_group("model")
    if name:
        group.add_argument(
            "--model",
            default="gpt2-6l",
            help="bundled name, local folder, GGUF file, lmstudio:... or ollama:..., or hub name (default: "
            "%(default)s)",
        )
    group.add_argument("--device", help="e.g. cpu, cuda, cuda:1, mps (default: cpu)")
    group.add_argument("--dtype", choices=DTYPES, help="of the weights (default: float32; bfloat16 on CUDA)")
    group.add_argument(
        "--bos", action=argparse.BooleanOptionalAction, default=None,
        help="begin prompts with the beginning-of-sequence token, or never (default: what the tokenizer does)",
    )  # fmt: skip
    group.add_argument(
        "--threads", type=at_least(1, MOST_THREADS), metavar="N", help="torch threads (default: 1 for small models)"
    )
    group.add_argument("--offline", action="store_true", help="never ask the hub, whatever the model's name")
    if not _has(parser, "--seed"):
        group.add_argument("--seed", type=at_least(0, MOST_SEED), default=0, help="of all that is drawn (default: 0)")


def add_pairs(
    parser: argparse.ArgumentParser, default: int, *, least: int = 4, what: str = "pairs, half of them held out"
) -> None:
    """``--n-pairs`` (short: ``-n``) of verbs that take a task by name."""
    parser.add_argument(
        "--n-pairs",
        "-n",
        type=at_least(least, MOST_PAIRS),
        default=default,
        metavar="N",
        help=f"{what} (default: {default})",
    )


def add_pair_file(parser: argparse.ArgumentParser) -> None:
    """``--metric --chat`` of verbs that take a file of pairs."""
    group = parser.add_argument_group("file of pairs")
    group.add_argument(
        "--metric", default="logit_difference",
        help="of its answers (default: %(default)s; of several tokens: sequence_difference, first_difference, ...)",
    )  # fmt: skip
    group.add_argument("--chat", action="store_true", help="prompts go through the model's chat template")


def check_pair_options(args: argparse.Namespace, *, from_file: bool) -> None:
    """Raises `InputError` for options of files of pairs beside the name of a task, which brings its own."""
    if not from_file and (args.chat or args.metric != "logit_difference"):
        raise InputError(
            "--metric and --chat say how a file of pairs is read; a named task has its own metric. Leave them out."
        )


def read_pair_file(args: argparse.Namespace, model: Any, path: str) -> Any:
    """The task of a file of pairs, as `add_pair_file`'s options say."""
    from ..tasks import from_file

    return from_file(model, path, metric=args.metric, chat=args.chat)


def add_page(parser: argparse.ArgumentParser, what: str, *, default: Path | None = None) -> None:
    """``--html FILE`` (in verbs that write nothing else also ``--out``) and ``--force`` of verbs that write a page."""
    names = ("--html",) if _has(parser, "--out") else ("--html", "--out")
    said = f"{what} (default: {default})" if default else what
    parser.add_argument(*names, dest="html", type=Path, default=default, metavar="FILE", help=said)
    parser.add_argument("--force", action="store_true", help="replace an earlier page")


def check_page(args: argparse.Namespace) -> None:
    """Raises `InputError`, before anything is computed, for a page that could not or should not be written."""
    page: Path | None = args.html
    if page is None:
        return
    try:
        if page.is_dir():
            raise InputError(f"--html names a file; {page} is a folder. Name a file in it, e.g. {page / 'page.html'}")
        if not page.absolute().parent.is_dir():
            raise InputError(f"--html names a file in a folder that exists; got {page}")
        if page.exists() and not args.force:
            raise InputError(
                f"{page} exists and is not overwritten. Pass --force to replace it, or choose another --html."
            )
    except OSError as error:
        raise InputError(f"--html names a file that can be written; got {str(page)[:200]}: {error.strerror}") from error


def write_page(args: argparse.Namespace, html: str) -> str | None:
    """Write the page where ``--html`` says; its path, or None."""
    if args.html is None:
        return None
    check_page(args)
    args.html.write_text(html, encoding="utf-8")
    return str(args.html)


def _has(parser: argparse.ArgumentParser, option: str) -> bool:
    return any(option in action.option_strings for action in parser._actions)


def add_executor(parser: argparse.ArgumentParser) -> None:
    """Options of verbs whose work can run on workers; `workers` puts them into effect."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--executor",
        choices=("local", "forked", "ray"),
        help="who does the work: this process, forked processes that share the weights, or Ray (default: local; "
        "forked with --workers)",
    )
    group.add_argument("--workers", type=at_least(1), metavar="N", help="how many (default: 1)")
    group.add_argument("--address", metavar="HOST:PORT", help="of a running Ray cluster; implies --executor ray")
    group.add_argument(
        "--gpus-per-worker", type=at_least(0), default=0, metavar="K", help="of each Ray actor (default: 0)"
    )
    group.add_argument(
        "--attempts", type=at_least(1), default=3, metavar="N", help="before a failing piece is given up (default: 3)"
    )
    group.add_argument(
        "--ledger", type=Path, metavar="DIR", help="keep finished pieces there; the same command goes on where it was"
    )


@contextmanager
def workers(args: argparse.Namespace) -> Iterator[None]:
    """The workers that `add_executor`'s options describe; nothing for verbs without them, or when none is given."""
    if not hasattr(args, "executor"):
        yield
        return
    kind = args.executor or ("ray" if args.address else "forked" if (args.workers or 1) > 1 else "local")
    if kind == "local" and args.workers in (None, 1) and args.ledger is None and not args.gpus_per_worker:
        yield
        return
    if kind != "local" and (getattr(args, "threads", None) or 1) > 1:
        raise InputError(
            f"workers run on one thread each, so --threads is 1 with --executor {kind}; got {args.threads}"
        )
    from ..execute import executor

    with executor(
        kind,
        workers=args.workers or 1,
        gpus_per_worker=args.gpus_per_worker,
        address=args.address,
        attempts=args.attempts,
        ledger=args.ledger,
    ):
        yield


def apply_common(args: argparse.Namespace) -> None:
    """Put the options into effect for this process; to be called before anything heavy is imported."""
    if getattr(args, "offline", False):
        os.environ["HF_HUB_OFFLINE"] = "1"
        if constants := sys.modules.get("huggingface_hub.constants"):  # read once, when it was imported
            vars(constants)["HF_HUB_OFFLINE"] = True
    if "torch" not in sys.modules:  # threads that wait by spinning make a busy machine many times slower
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    log, handler = logging.getLogger("mechwork"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    log.handlers = [handler]
    log.setLevel(
        logging.ERROR if args.quiet else {0: logging.WARNING, 1: logging.INFO}.get(args.verbose, logging.DEBUG)
    )


def load(args: argparse.Namespace) -> Any:
    """The model that `add_model`'s options describe."""
    bos = getattr(args, "bos", None)
    return load_named(args.model, device=args.device, dtype=args.dtype, threads=args.threads, bos=bos)


def load_named(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    bos: bool | None = None,
) -> Any:
    """A model by name, without the libraries' chatter; small ones on one thread."""
    import torch
    from transformers.utils import logging as transformers_logging

    from ..models import load_model

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    model = load_model(name, device=find_device(device), dtype=find_dtype(dtype), prepend_bos=bos)
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
    """Raises `InputError` for resuming where there is no checkpoint, or beginning where something is; `again` is how to
    go on.
    """
    from ..checkpoint import has_checkpoint

    resumable = has_checkpoint(out)
    if resume and not resumable:
        raise InputError(f"--resume goes on from a checkpoint, and {out} has none. Leave --resume out to begin.")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        remedy = f"Go on with: {again}" if resumable else "Choose another --out."
        raise InputError(f"{out} exists and is not overwritten. {remedy}")
