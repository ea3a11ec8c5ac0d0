"""What verbs write: ``--html`` a page, ``--out`` the result. One rule for files: what exists is not overwritten without
``--force``, and what could not be written is refused before anything is computed.

Folders of long work are gone on with instead: ``--resume``, or the same command again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from ..errors import InputError
from ..files import write_text
from ..harmless import table_text
from .console import Console, ProgressLine

if TYPE_CHECKING:
    from ..result import Result

RESULT, TABLE = ".safetensors", ".csv"


def check_files(args: argparse.Namespace) -> None:
    """Raises `InputError` for a page or a result that could not, or should not, be written; `entry` asks for every
    verb.
    """
    check_file(args, "--html", getattr(args, "html", None))
    if getattr(args, "keeps", True):
        check_out(args)


def check_out(args: argparse.Namespace) -> None:
    """The same for ``--out`` where it names the file of a result."""
    out: Path | None = getattr(args, "out", None)
    if out is None:
        return
    if out.suffix == ".html":
        raise InputError(f"--out keeps the result; a page is written by --html. Say --html {out}")
    if out.suffix not in (RESULT, TABLE):
        raise InputError(f"--out ends in {RESULT} (the result) or {TABLE} (a table); got {out}")
    check_file(args, "--out", out)


def check_file(args: argparse.Namespace, option: str, file: Path | None) -> None:
    """One file: its folder is there, and nothing is at its name, or ``--force`` was given."""
    if file is None:
        return
    try:
        if file.is_dir():
            raise InputError(f"{option} names a file; {file} is a folder. Name a file in it, e.g. {file / 'page.html'}")
        if not file.absolute().parent.is_dir():
            raise InputError(f"{option} names a file in a folder that exists; got {file}")
        if file.exists() and not args.force:
            raise InputError(
                f"{file} exists and is not overwritten. Pass --force to replace it, or choose another {option}."
            )
    except OSError as error:
        raise InputError(
            f"{option} names a file that can be written; got {str(file)[:200]}: {error.strerror}"
        ) from error


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


@runtime_checkable
class Training(Protocol):
    """What a training loop returns: how far it came."""

    step: int

    @property
    def finished(self) -> bool: ...


_Training = TypeVar("_Training", bound=Training)


def run_training(
    console: Console, train: Callable[[ProgressLine], _Training], facts: dict[str, Any], *, what: str, steps: int,
    out: Path, again: str,
) -> _Training | None:  # fmt: skip
    """Train into `out`; adds how far it came to `facts`. None, once it is said how to go on, for a run that stopped."""
    try:
        with console.step(what) as line:
            training = train(line)
    except KeyboardInterrupt:
        console.say(f"The last checkpoint, if it came to one, is in {out}. Go on with: {again}")
        raise
    facts |= {"step": training.step, "steps": steps, "finished": training.finished, "out": str(out)}
    if training.finished:
        return training
    console.result(f"Stopped at step {training.step} of {steps}. Go on with: {again}", facts)
    return None


def report_training(line: ProgressLine, say: Callable[[Any], str]) -> Callable[[Any], None]:
    """A callback for a training loop's progress: what `say` makes of it, and the speed."""

    def report(progress: Any) -> None:
        speed = progress.tokens / max(progress.seconds, 1e-9)
        line(progress.step, progress.steps, f"{say(progress)}, {speed:,.0f} tokens/s, step")

    return report


def refuse_unused(args: argparse.Namespace, action: str, *names: str) -> None:
    """Raises `InputError` for files that this action of a verb does not write."""
    for name in names:
        if getattr(args, name) is not None:
            raise InputError(f"{action} writes no --{name}; got {getattr(args, name)}. Leave it out.")


def deliver(
    args: argparse.Namespace, console: Console, results: Result | Sequence[Result], text: str, data: dict[str, Any],
    *, page: str | None = None,
) -> None:  # fmt: skip
    """The end of a verb: write what ``--out`` and ``--html`` ask for, and print `text`, or `data` with ``--json``.

    `page` stands in for the results' own page. `data` gets where the files are; the text says it.
    """
    results = list(results) if isinstance(results, Sequence) else [results]
    written: dict[str, str | None] = {}
    if hasattr(args, "out"):
        written["out"] = keep(args, results)
    if hasattr(args, "html"):
        written["html"] = write_page(args, page, results)
    names = {"out": "The result", "html": "The page"}
    told = [f"{names[key]}: {value}" for key, value in written.items() if value is not None]
    console.result("\n".join([text, *([""] if told else []), *told]), {**data, **written})


def keep(args: argparse.Namespace, results: Sequence[Result]) -> str | None:
    """Write the result where ``--out`` says; its path, or None."""
    out: Path | None = args.out
    if out is None:
        return None
    check_out(args)
    if out.suffix == TABLE:
        import pandas

        write_text(out, table_text(pandas.concat([result.to_dataframe() for result in results])))
        return str(out)
    if len(results) != 1:
        raise InputError(f"a {RESULT} file holds one result, these are {len(results)}; name a {TABLE} file")
    return str(results[0].save(out))


def write_page(args: argparse.Namespace, page: str | None, results: Sequence[Result] = ()) -> str | None:
    """Write the page, by default of the results, where ``--html`` says; its path, or None."""
    file: Path | None = args.html
    if file is None:
        return None
    check_file(args, "--html", file)
    write_text(file, _page(results) if page is None else page)
    return str(file)


def _page(results: Sequence[Result]) -> str:
    """The result's own page; of several, one under the other."""
    from ..display import frame, still

    if len(results) == 1:
        return results[0].to_html()
    parts = "\n".join(frame(result.to_html(), still(result)) for result in results)
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>mechwork</title>\n{parts}</html>\n'
