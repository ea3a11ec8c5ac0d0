"""The parser, and how what happens becomes an exit code.

| code | meaning |
|---|---|
| 0 | done |
| 1 | the run failed |
| 2 | the arguments or the data break a contract |
| 3 | a model, a file or the network is missing, or a stored file is damaged |
| 4 | a report or its inputs are not what was recorded |
| 130 | interrupted (143: by SIGTERM) |
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArtefactError, InputError, MechworkError, MetricError, NotFoundError, VerificationError, nearest
from ..folders import module_names
from ..harmless import visible
from .console import Console
from .options import add_shared, apply_common, workers
from .output import check_files

OK, FAILED, USAGE, MISSING, MISMATCH, INTERRUPTED = 0, 1, 2, 3, 4, 130

VERBS = {
    "discover": "find the circuit of a task and write a report",
    "check": "look at pairs before a discovery: answers, gap, alignment, duplicates",
    "serve": "ask a model live, in the browser: ablate, patch, steer what you click",
    "ask": "ask the same gestures in the shell, and print the answers",
    "verify": "check a report's hashes, or compute its numbers again",
    "leaderboard": "compare ways to score edges on held-out pairs",
    "referee": "judge a circuit: formal tests with p-values, beside a null task",
    "compare": "lay two circuits over each other in one page",
    "reuse": "compare the circuits of several tasks",
    "agreement": "compare estimated with measured effects, for every preset of rules",
    "steer": "steer a task along a direction, and see what else changes",
    "diverge": "find where two models come apart, and what patching one into the other carries",
    "ablate": "ablate components: what breaks, what repairs itself, what each head does",
    "save": "save a changed model as a folder, with a checked list of what was changed",
    "tasks": "list the tasks, or show one",
    "models": "list the bundled models, or verify their files",
    "circuits": "list the bundled circuits, or test or find them again",
    "train": "train a bundled model again from its recipe",
    "lens": "train a tuned lens, show what a lens reads, or measure one",
    "features": "list features, train some, measure them, or find a circuit among them",
    "truth": "try methods on models whose circuit is known",
    "plan": "say what work on a large model would take, and how many workers pay",
    "doctor": "say what this installation has and lacks",
}
"""The verbs in the order of the help. A new file needs no line here; see `verbs`."""


NO_VERBS = ("bundled", "console", "entry", "options", "output", "steer_studies", "steering")
"""Files of this folder that are no verb."""


def verbs() -> dict[str, str]:
    """Verb -> what it does: those of `VERBS`, then every other file of this folder, by its docstring's first line."""
    found = dict(VERBS)
    for name in module_names([str(Path(__file__).parent)]):
        if name not in found and name not in NO_VERBS:
            source = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
            found[name] = (ast.get_docstring(source) or name).splitlines()[0].rstrip(".")
    return found


class _Parser(argparse.ArgumentParser):
    """Names the nearest verb when one is mistyped."""

    def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if "invalid choice: '" in message:
            wrong = message.split("invalid choice: '", 1)[1].split("'", 1)[0]
            message += nearest(wrong, verbs())
        super().error(visible(message))


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all verbs; each verb's file adds its own arguments.

    With `only`, that verb's file alone is imported (``""``: none), so that help is there before anything heavy is.
    """
    parser = _Parser(
        prog="mechwork",
        description="Find, test and draw circuits in language models.",
        epilog="'mechwork VERB --help' describes a verb. Start with: mechwork discover ioi",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, what in verbs().items():
        if only is not None and name != only:
            subs.add_parser(name, help=what)
            continue
        verb = importlib.import_module(f".{name}", __package__)
        sub = subs.add_parser(
            name, help=what, description=verb.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        verb.add_arguments(sub)
        add_shared(sub, name)
        sub.set_defaults(run=verb.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported: idle threads sleep, not spin
    said = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser(next((word for word in said if not word.startswith("-")), "")).parse_args(said)
    except SystemExit as stop:  # argparse has printed help or usage
        return stop.code if isinstance(stop.code, int) else USAGE
    if args.version:
        from .doctor import version

        print(f"mechwork {version('mechwork')}")
        return OK
    if args.verb is None:
        build_parser("").print_help(sys.stderr)
        return USAGE
    console = Console(json=args.json, verbosity=-1 if args.quiet else args.verbose)
    try:
        apply_common(args)
        check_files(args)
        with console.reserved(), workers(args):
            args.run(args, console)
    except KeyboardInterrupt as stop:
        console.error("interrupted")
        return int(getattr(stop, "code", INTERRUPTED))
    except BrokenPipeError:  # the reader of our output has gone, as in `mechwork tasks | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:  # noqa: BLE001 - every failure becomes one line and an exit code
        return _explain(error, console)
    return OK


def _explain(error: Exception, console: Console) -> int:
    if console.verbosity > 0:
        console.say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, MetricError):
        code = FAILED
    elif isinstance(error, InputError):
        code = USAGE
    elif isinstance(error, VerificationError):
        code = MISMATCH
    elif isinstance(error, NotFoundError | ArtefactError):
        code = MISSING
    else:
        code = FAILED
    if isinstance(error, MechworkError):
        console.error(str(error))
    elif isinstance(error, OSError) and error.filename is not None:  # what the system says of a name is the whole story
        code = MISSING if isinstance(error, FileNotFoundError) else USAGE
        console.error(f"{error.strerror}: {str(error.filename)[:200]}")
    elif isinstance(error, UnicodeError):
        code = USAGE
        console.error(f"text is read as UTF-8: {error}. Save the file as UTF-8 text.")
    else:
        hint = "" if console.verbosity > 0 else " Run again with -v for the traceback."
        console.error(f"unexpected {type(error).__name__}: {error}.{hint}")
    return code
