"""Help, exit codes and what may stand on which stream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mechwork
from mechwork import errors
from mechwork.cli.console import Console
from mechwork.cli.entry import VERBS, main

from .conftest import Cli

ROOT = Path(mechwork.__file__).parents[1]


def test_help_names_every_verb(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    assert all(verb in outcome.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    outcome = cli(verb, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out


def test_version(cli: Cli) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.out) == (0, f"mechwork {mechwork.__version__}\n")


def test_without_a_verb_help_goes_to_stderr(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 2
    assert outcome.out == ""
    assert "discover" in outcome.err


def test_a_mistyped_verb_gives_the_nearest(cli: Cli) -> None:
    outcome = cli("discovr", "ioi")
    assert outcome.code == 2
    assert "nearest: discover" in outcome.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("contract"), 2),
        (errors.UnknownNameError("task", "x", ["y"]), 2),
        (errors.MetricError("contract"), 1),
        (errors.UnsupportedModelError("contract"), 1),
        (errors.NotFoundError("contract"), 3),
        (errors.ArtefactError("contract"), 3),
        (RuntimeError("a mistake of ours"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_failure_is_one_line_and_a_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mechwork.cli.doctor.run", fail)
    outcome = cli("doctor")
    assert outcome.code == code
    assert outcome.out == ""
    assert outcome.err.startswith("mechwork: ")
    assert outcome.err.count("\n") == 1
    verbose = cli("doctor", "-v")
    assert verbose.code == code
    assert ("Traceback" in verbose.err) == (code != 130)


def test_what_libraries_print_is_kept_off_stdout(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def chatter(args: object, console: Console) -> None:
        print("a library says hello")
        console.result("text", {"key": 1})

    monkeypatch.setattr("mechwork.cli.doctor.run", chatter)
    assert cli("doctor").out == "text\n"
    assert cli("doctor", "--json").json == {"key": 1}
    assert "hello" in cli("doctor", "-v").err


def test_a_reader_that_goes_away_is_no_failure() -> None:
    script = f"{sys.executable} -m mechwork.cli doctor | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_main_takes_the_process_arguments_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mechwork", "--version"])
    assert main() == 0
    assert "mechwork" in capsys.readouterr().out
