"""Options of the command line, from one place: a verb declares what is its own, and `add_shared` gives it the rest.

What they mean for the process is here too: offline mode, logging, how the model is loaded. Files are in `output`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, NotFoundError
from ..harmless import visible

if TYPE_CHECKING:
    import torch

    from ..tasks.task import Task

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


def path(text: str) -> Path:
    """An argparse type: a path, `~` expanded."""
    return Path(text).expanduser()


# ---- what every verb has, or has a reason not to have ---------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """An option that verbs share: its group in the help, its names, and argparse's settings."""

    group: str
    names: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The long name, by which `LACKS` knows it."""
        return next(name for name in self.names if name.startswith("--"))


def _shared(group: str, *names: str, **settings: Any) -> Shared:
    return Shared(group, names, settings)


SHARED: Mapping[str, Shared] = {
    option.name: option
    for option in (
        _shared("files", "--out", type=path, metavar="FILE",
                help="keep the result: .safetensors (mechwork.result.load_result reads it) or .csv, a table"),
        _shared("files", "--html", type=path, metavar="FILE",
                help="also write the result as one page that opens offline"),
        _shared("files", "--force", action="store_true", help="replace what --out and --html name"),
        _shared("model", "--model", default="gpt2-6l",
                help="bundled name, local folder, GGUF file, lmstudio:... or ollama:..., or hub name (default: "
                     "%(default)s)"),
        _shared("model", "--device", help="e.g. cpu, cuda, cuda:1, mps (default: cpu)"),
        _shared("model", "--dtype", choices=DTYPES, help="of the weights (default: float32; bfloat16 on CUDA)"),
        _shared("model", "--bos", action=argparse.BooleanOptionalAction, default=None,
                help="begin prompts with the beginning-of-sequence token, or never (default: what the tokenizer "
                     "does)"),
        _shared("model", "--split-kv", action="store_true",
                help="under grouped-query attention: a key and a value reader for every head"),
        _shared("model", "--threads", type=at_least(1, MOST_THREADS), metavar="N",
                help="torch threads (default: 1 for small models)"),
        _shared("model", "--offline", action="store_true", help="never ask the hub, whatever the model's name"),
        _shared("model", "--seed", type=at_least(0, MOST_SEED), default=0, help="of all that is drawn (default: 0)"),
        _shared("output", "--json", action="store_true", help="print one JSON object instead of text"),
        _shared("output", "-q", "--quiet", action="store_true", help="nothing but the result and errors"),
        _shared("output", "-v", "--verbose", action="count", default=0, help="say more; -vv for debugging"),
    )
}  # fmt: skip
"""Long name -> option. Every verb has all of them, except for those that `LACKS` gives a reason for."""

MODEL = tuple(option.name for option in SHARED.values() if option.group == "model")
FILES = tuple(option.name for option in SHARED.values() if option.group == "files")


def _all(names: Iterable[str], reason: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


LACKS: Mapping[str, Mapping[str, str]] = {
    "discover": {"--html": "its page is in the folder --out"},
    "verify": {
        **_all(FILES, "a verdict: there is nothing to keep"),
        **_all(("--dtype", "--bos", "--split-kv", "--seed"), "the report says which"),
    },
    "serve": _all(FILES, "a page that lives; its button saves it"),
    "ask": _all(FILES, "answers to be read; --json prints all of them"),
    "compare": {**_all(MODEL, "reads circuits, runs no model"), "--out": "its one product is the page, --html"},
    "diverge": {"--model": "two models, by position"},
    "save": _all(("--out", "--html"), "its one product is the folder, named by position"),
    "tasks": _all(FILES, "shows prompts, measures nothing"),
    "models": {
        **_all(FILES, "a list or a verdict: there is nothing to keep"),
        **_all(
            ("--device", "--dtype", "--bos", "--split-kv", "--seed"), "bundled models are measured as their cards were"
        ),
        "--model": "models are named by position",
        "--offline": "bundled models need no hub",
    },
    "circuits": {
        "--html": "mechwork compare draws any of them",
        "--force": "build writes its files again, all or none",
        "--model": "works on all models with shipped circuits",
        "--offline": "bundled models need no hub",
        **_all(("--bos", "--split-kv", "--seed"), "the circuits' cards say which"),
    },
    "train": {
        **_all(("--html", "--force"), "writes a folder of checkpoints; --resume goes on in it"),
        **_all(
            ("--device", "--dtype", "--threads", "--bos", "--split-kv", "--seed"),
            "the recipe says which: the same bytes",
        ),
        "--model": "the recipe is named by position",
        "--offline": "everything that it needs is in the recipe",
    },
    "truth": {
        **_all(("--device", "--dtype", "--bos", "--split-kv"), "its models are built from written weights, on the CPU"),
        "--model": "models are named by position, with their circuits",
        "--offline": "its models are built here",
        "--seed": "what is drawn is an average over fixed seeds",
    },
    "doctor": {**_all(FILES, "a list: there is nothing to keep"), **_all(MODEL, "loads no model")},
}
"""Verb -> option that it has not -> why. A test walks all verbs: none lacks an option without a reason here."""


def add_shared(parser: argparse.ArgumentParser, verb: str) -> None:
    """Every option of `SHARED` that the verb does not lack; one that it declared itself stays as it is."""
    groups: dict[str, Any] = {}
    for name, option in SHARED.items():
        if name in LACKS.get(verb, ()) or _has(parser, name):
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(*option.names, **option.settings)


def _has(parser: argparse.ArgumentParser, option: str) -> bool:
    return any(option in action.option_strings for action in parser._actions)


# ---- what verbs declare ----------------------------------------------------------------------------------------------


def add_pairs(
    parser: argparse.ArgumentParser, default: int, *, least: int = 4, what: str = "pairs, half of them held out"
) -> None:
    """``--n-pairs`` (short: ``-n``) of verbs that take a task by name."""
    parser.add_argument(
        "--n-pairs", "-n", type=at_least(least, MOST_PAIRS), default=default, metavar="N",
        help=f"{what} (default: {default})",
    )  # fmt: skip


def add_tasks(parser: argparse.ArgumentParser, what: str) -> None:
    """``TASK ...`` of verbs that take none, one or several; ``--task`` says the same with commas. See `task_names`."""
    parser.add_argument("task", metavar="TASK", nargs="*", help=what)
    parser.add_argument("--task", metavar="TASKS", dest="tasks", help="the same, with commas")


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


def task_names(args: argparse.Namespace, default: Sequence[str]) -> list[str]:
    """The tasks that `add_tasks`'s options name, or `default`."""
    if args.task and args.tasks:
        raise InputError(f"tasks are named by position or by --task, not both; got {args.task} and {args.tasks}")
    return [name for word in args.task or [args.tasks or ""] for name in word.split(",") if name] or list(default)


def task_builder(name: str, args: argparse.Namespace | None = None) -> Callable[..., Task]:
    """``build(model, n=..., seed=...)`` of a task's name, or of a file of pairs (which has its own number of pairs,
    and is read as the options of `add_pair_file` in `args` say).

    Raises `UnknownNameError` or `NotFoundError`.
    """
    from ..tasks import find_task, from_file

    if not name.endswith(PAIR_FILES):
        return find_task(name)
    if not Path(name).is_file():
        raise NotFoundError(f"no file of pairs at {name}")

    def build(model: Any, n: int = 0, seed: int = 0) -> Task:
        return from_file(model, name) if args is None else read_pair_file(args, model, name)

    return build


def add_executor(parser: argparse.ArgumentParser) -> None:
    """Options of verbs whose work can run on workers; `workers` puts them into effect."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--executor", choices=("local", "forked", "ray"),
        help="this process, forked processes that share its weights, or Ray (default: local; forked with --workers)",
    )  # fmt: skip
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


def executor_kind(args: argparse.Namespace) -> str:
    """Which executor `add_executor`'s options mean."""
    return args.executor or ("ray" if args.address else "forked" if (args.workers or 1) > 1 else "local")


@contextmanager
def workers(args: argparse.Namespace) -> Iterator[None]:
    """The workers that `add_executor`'s options describe; nothing for verbs without them, or when none is given."""
    if not hasattr(args, "executor"):
        yield
        return
    kind = executor_kind(args)
    if getattr(args, "plan", False):  # nothing is run, so nobody is started
        yield
        return
    if kind == "local" and args.workers in (None, 1) and args.ledger is None and not args.gpus_per_worker:
        yield
        return
    if kind != "local" and (getattr(args, "threads", None) or 1) > 1:
        raise InputError(f"workers run on one thread each; --threads is 1 with --executor {kind}, got {args.threads}")
    from ..execute import executor

    with executor(
        kind, workers=args.workers or 1, gpus_per_worker=args.gpus_per_worker, address=args.address,
        attempts=args.attempts, ledger=args.ledger,
    ):  # fmt: skip
        yield


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def apply_common(args: argparse.Namespace) -> None:
    """Put the options into effect for this process; to be called before anything heavy is imported."""
    if getattr(args, "offline", False):
        os.environ["HF_HUB_OFFLINE"] = "1"
        if constants := sys.modules.get("huggingface_hub.constants"):  # read once, when it was imported
            vars(constants)["HF_HUB_OFFLINE"] = True
    if "torch" not in sys.modules:  # threads that wait by spinning make a busy machine many times slower
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    log, handler = logging.getLogger("mechwork"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Visible("%(levelname)s %(name)s: %(message)s"))
    log.handlers = [handler]
    log.setLevel(
        logging.ERROR if args.quiet else {0: logging.WARNING, 1: logging.INFO}.get(args.verbose, logging.DEBUG)
    )


def load(args: argparse.Namespace) -> Any:
    """The model that the shared options describe."""
    bos, split_kv = getattr(args, "bos", None), getattr(args, "split_kv", False)
    return load_named(
        args.model, device=args.device, dtype=args.dtype, threads=args.threads, bos=bos, split_kv=split_kv
    )


def load_named(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    bos: bool | None = None,
    split_kv: bool = False,
) -> Any:
    """A model by name, without the libraries' chatter; small ones on one thread."""
    import torch
    from transformers.utils import logging as transformers_logging

    from ..models import load_model

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    model = load_model(name, device=find_device(device), dtype=find_dtype(dtype), prepend_bos=bos, split_kv=split_kv)
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    if threads or small:
        torch.set_num_threads(threads or 1)
    return model


def set_threads(args: argparse.Namespace) -> None:
    """``--threads`` of verbs that load their models otherwise than by `load`."""
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)


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
