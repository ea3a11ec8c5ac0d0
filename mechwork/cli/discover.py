"""Find the circuit of a task in a model, test it, and write a report that opens in any browser, offline.

The folder --out grows: the page is there as soon as there is something to see. A run that was stopped, killed or out of
budget goes on when the same command is given again; --thorough later adds what a shorter plan left out.

  mechwork discover ioi
  mechwork discover ioi --model openai-community/gpt2 --budget 5min
  mechwork discover ioi --plan
  mechwork discover ioi --card
  mechwork discover pairs.csv --target 0.85 --out reports/mine --thorough
  mechwork discover chat.jsonl --chat --metric sequence_difference --model SmolLM2.gguf

TASK is a name ('mechwork tasks' lists them) or a .csv or .jsonl file with the columns clean, corrupt, correct,
incorrect, and if wanted split, spans, system, assistant.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MechworkError, NotFoundError
from .console import Console, ProgressLine
from .options import (
    PAIR_FILES,
    add_executor,
    add_pair_file,
    add_pairs,
    at_least,
    check_pair_options,
    executor_kind,
    fraction,
    load,
    path,
    read_pair_file,
)  # fmt: skip

if TYPE_CHECKING:
    from ..discovery.found import Discovery


DEFAULT_RULES, DEFAULT_STEPS = "gradient", 5
"""EAP-IG: first by CPR and by CMD over the six tasks (``mechwork leaderboard``)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("task", metavar="TASK", help="a task's name, or a file of pairs")
    add_pairs(parser, 128, what="pairs at most, half of them held out; a plan may use fewer")
    depth = parser.add_argument_group("depth")
    which = depth.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a glance: scores, the circuit, its test")
    which.add_argument("--thorough", action="store_true", help="everything, however long it takes")
    depth.add_argument(
        "--card", action="store_true",
        help="also what a referee asks: formal tests, stability, mechanisms, backups, a rival (see 'mechwork referee')",
    )  # fmt: skip
    depth.add_argument("--budget", metavar="TIME", help="as deep as this time allows, e.g. 5min, 1.5h")
    depth.add_argument("--memory-budget", default="2GB", metavar="SIZE", help="beside the weights (default: 2GB)")
    depth.add_argument("--plan", action="store_true", help="print the stages and their costs, and stop")
    method = parser.add_argument_group("method")
    method.add_argument(
        "--rules", help="rules of the backward pass: gradient, relp, ... (default: gradient, with 5 steps)"
    )
    method.add_argument(
        "--ig-steps",
        type=at_least(1),
        metavar="N",
        help="points on the path between the prompts (default: 5, or 1 when --rules is given)",
    )
    size = method.add_mutually_exclusive_group()
    size.add_argument(
        "--target", type=fraction, default=0.9, metavar="F",
        help="the circuit is the smallest that reaches this faithfulness on train pairs (default: 0.9)",
    )  # fmt: skip
    size.add_argument("--n-edges", type=at_least(1), metavar="N", help="size of the circuit, before pruning")
    size.add_argument("--fraction", type=fraction, metavar="F", help="size as a share of all edges")
    method.add_argument(
        "--min-accuracy", type=fraction, metavar="F", help="stop below this accuracy (default: chance + 0.1)"
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--audience", choices=("research", "class"), default="research",
        help="class: questions before each result, words explained (default: research)",
    )  # fmt: skip
    files.add_argument("--out", type=path, metavar="DIR", help="folder of the report (default: reports/TASK)")
    files.add_argument("--force", action="store_true", help="replace what mechwork wrote in that folder")
    add_pair_file(parser)
    parser.set_defaults(keeps=False)
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Refuse at once what can be refused at once; then compute, write and print."""
    from_file = args.task.endswith(PAIR_FILES)
    out = args.out or Path("reports") / (Path(args.task).stem if from_file else args.task)
    if from_file and not Path(args.task).is_file():
        raise NotFoundError(f"no file of pairs at {args.task}")
    check_pair_options(args, from_file=from_file)
    from ..discovery.discover import discover
    from ..discovery.folder import Folder
    from ..discovery.plan import make_plan
    from ..discovery.settings import Settings, parse_seconds
    from ..discovery.summary import render_text, summarise
    from ..relevance import find_composite
    from ..tasks import find_task

    if not args.plan:
        Folder(out).check_place(force=args.force)
    steps = args.ig_steps or (1 if args.rules else DEFAULT_STEPS)
    rules = args.rules or DEFAULT_RULES
    find_composite(rules)
    settings = Settings(
        rules, steps, args.n_edges, args.fraction, args.target, args.seed, args.min_accuracy, args.memory_budget
    )
    budget = parse_seconds(args.budget)
    mode = "quick" if args.quick else "thorough" if args.thorough else "default"
    build = None if from_file else find_task(args.task)
    with console.step(f"loading {args.model}"):
        model = load(args)
        task = build(model, n=args.n_pairs, seed=args.seed) if build else read_pair_file(args, model, args.task)
    console.detail(task.describe(2))
    again = (lambda seed: build(model, n=args.n_pairs, seed=seed)) if build else None
    if args.plan:
        from ..circuits.graph.writers import require_correspondence
        from ..models.anatomy import check_ready

        check_ready(model)
        require_correspondence(task)
        plan = make_plan(model, task, settings, mode=mode, budget=budget, again=again is not None, card=args.card)
        rows = [vars(row) for row in plan.rows]
        data = {"plan": rows, **plan.facts()}
        kind, said = executor_kind(args), [repr(plan)]
        if kind != "local":
            from ..discovery.shared import share_plan

            n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
            shared = share_plan(
                plan, kind, args.workers or 1, n_bytes=n_bytes, gpus_per_worker=args.gpus_per_worker,
                cores=os.cpu_count() or 1,
            )  # fmt: skip
            said.append(repr(shared))
            data["workers"] = {
                "kind": kind, "n": shared.n_workers, "gpus": shared.gpus, "seconds": shared.seconds,
                "paying": shared.paying, "stages": [vars(row) for row in shared.rows],
            }  # fmt: skip
        console.result("\n\n".join(said), data)
        return
    request = {
        "task": args.task, "model": args.model, "n_pairs": args.n_pairs, "dtype": args.dtype, "bos": args.bos,
        "command": _command(args),
    }  # fmt: skip
    with _stoppable(), _written(out):
        found = discover(
            model, task, out=out, budget=budget, mode=mode, card=args.card, settings=settings, force=args.force,
            audience=args.audience, again=again, request=request, command=request["command"], observer=Lines(console),
        )  # fmt: skip
    data = {**summarise(found), "request": dict(found.request)}
    files = {file.name: str(file) for file in sorted(out.iterdir()) if file.is_file()}
    console.result(f"{render_text(found, data)}\n\n{_next(args, found, out)}", {**data, "files": files})


class Terminated(KeyboardInterrupt):
    """SIGTERM: stopped like Ctrl-C, with the exit code of its own."""

    code = 143


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Inside, SIGTERM is an exception, so that what is running is put back and the folder stays whole."""

    def stop(*_: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _written(out: Path) -> Iterator[None]:
    """A full disk, or a folder that was taken away, is one message; what is finished stays."""
    try:
        yield
    except OSError as error:
        raise MechworkError(
            f"{error.filename or out} could not be written: {error.strerror or error}. Finished stages are kept: "
            "free space, and give the same command again."
        ) from error


class Lines:
    """A line per stage, with its time and what is left; within a stage a line only on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def stage(self, says: str, done: int, n: int, seconds_left: float) -> Iterator[Any]:
        """See `mechwork.discovery.discover.Observer`."""
        from ..discovery.plan import duration

        left = f", about {duration(seconds_left)} left" if seconds_left >= 1 else ""
        progress = ProgressLine(self._console, f"[{min(done + 1, n)}/{n}] {says}{left}")
        begun = time.monotonic()
        try:
            yield progress if progress.redraws else None
        finally:
            progress.clear()
        self._console.say(f"[{min(done + 1, n)}/{n}] {says}: {time.monotonic() - begun:.1f} s{left}")


def _command(args: argparse.Namespace, **changed: Any) -> str:
    """The command that does this again, whatever its depth was."""
    given = {**vars(args), **changed}
    words = ["mechwork", "discover", str(given["task"])]
    plain = {
        "n_pairs": 128, "seed": 0, "rules": None, "ig_steps": None, "target": 0.9, "n_edges": None, "fraction": None,
        "min_accuracy": None, "memory_budget": "2GB", "audience": "research", "model": "gpt2-6l", "device": None,
        "dtype": None, "metric": "logit_difference", "out": None,
    }  # fmt: skip
    for name, usual in plain.items():
        if given[name] != usual:
            words += [f"--{name.replace('_', '-')}", str(given[name])]
    if given["chat"]:
        words.append("--chat")
    if given["bos"] is not None:
        words.append("--bos" if given["bos"] else "--no-bos")
    return shlex.join(words)


def _next(args: argparse.Namespace, found: Discovery, out: Path) -> str:
    other = "relp" if args.rules != "relp" else "gradient"
    lines = [
        f"The report: {out / 'report.html'} (open it in a browser; it needs no network)",
        f"  in Python   mechwork.load_discovery({str(out)!r})",
        f"  other rules {_command(args, rules=other, ig_steps=None, out=Path(f'{out}-{other}'))}",
    ]
    if found.left:
        lines.append(f"  go on       {_command(args)}")
    if not args.thorough:
        lines.append(f"  more        {_command(args)} --thorough")
    return "\n".join((*lines, "  other tasks mechwork tasks"))
