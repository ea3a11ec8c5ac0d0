"""One interface: every verb has every shared option, or a reason not to have it; what it writes follows one rule."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas
import pytest

from mechwork.cli.entry import VERBS, build_parser
from mechwork.cli.options import FILES, LACKS, MODEL, SHARED, task_builder
from mechwork.errors import NotFoundError, UnknownNameError
from mechwork.result import load_result

from .conftest import Cli

PARSER = build_parser()
TASKS = ("task", "tasks", "pairs")


def verb_parser(verb: str) -> argparse.ArgumentParser:
    subs = next(action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction))
    return subs.choices[verb]


def options_of(verb: str) -> dict[str, Any]:
    return {name: action for action in verb_parser(verb)._actions for name in action.option_strings}


@pytest.mark.parametrize("verb", VERBS)
def test_every_shared_option_is_there_or_a_reason_why_not(verb: str) -> None:
    options, lacks = options_of(verb), LACKS.get(verb, {})
    assert set(SHARED) - set(options) == set(lacks)  # a reason for each that is missing, and none for one that is there
    assert all(len(reason) > 10 for reason in lacks.values())
    assert {"--json", "--quiet", "--verbose"} <= set(options)


def test_reasons_name_verbs_and_options_that_exist() -> None:
    assert set(LACKS) <= set(VERBS)
    assert {option for lacks in LACKS.values() for option in lacks} <= {*MODEL, *FILES}
    assert {"--model", "--device", "--dtype", "--threads", "--offline", "--seed"} <= set(MODEL)


@pytest.mark.parametrize("verb", VERBS)
def test_shared_options_mean_the_same_everywhere(verb: str) -> None:
    """One default, one type, one destination; only what --out and --model name may differ."""
    for name, action in options_of(verb).items():
        if name in SHARED and name not in ("--out", "--model", "--force", "--html"):
            settings = SHARED[name].settings
            assert action.default == settings.get("default", False if "action" in settings else None), (verb, name)
            assert action.help == settings["help"], (verb, name)


@pytest.mark.parametrize("verb", VERBS)
def test_tasks_are_named_by_position_and_pairs_counted_by_one_option(verb: str) -> None:
    actions = verb_parser(verb)._actions
    named = [action for action in actions if action.dest in TASKS]
    if named and verb != "serve":  # whose position is a model, or a discovery that has its task
        assert any(not action.option_strings for action in named), f"{verb} takes a task by option only"
    counts = [action for action in actions if action.dest in ("n", "n_pairs")]
    assert [action.option_strings for action in counts] in ([], [["--n-pairs", "-n"]])
    if named and verb != "verify":
        assert counts, f"{verb} takes a task and not --n-pairs"


def test_a_task_is_a_name_or_a_file_of_pairs(tmp_path: Path, bundled_model: Any) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"clean": "The cats", "corrupt": "The cat", "correct": " are", "incorrect": " is"}\n' * 4)
    assert len(task_builder(str(file))(bundled_model, n=100, seed=3)) == 4
    assert len(task_builder("ioi")(bundled_model, n=6, seed=3)) == 6
    with pytest.raises(NotFoundError, match="no file of pairs"):
        task_builder(str(tmp_path / "none.csv"))
    with pytest.raises(UnknownNameError, match="nearest: ioi"):
        task_builder("io")


def test_results_are_kept_and_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    asked = ("check", "induction", "--model", "attn-only-2l", "-n", 8)
    kept = cli(*asked, "--out", "check.safetensors", "--html", "check.html", "--json")
    assert kept.code == 0, kept.err
    assert (kept.json["out"], kept.json["html"]) == ("check.safetensors", "check.html")
    assert type(load_result(tmp_path / "check.safetensors")).__name__ == "DataCheck"
    assert (tmp_path / "check.html").read_text().startswith("<!doctype html>")
    for option in (("--out", "check.safetensors"), ("--html", "check.html")):
        again = cli(*asked, *option)
        assert (again.code, again.out) == (2, "")
        assert "is not overwritten. Pass --force" in again.err
    table = cli(*asked, "--out", "check.csv", "--html", "check.html", "--force")
    assert table.code == 0
    assert "The result: check.csv" in table.out
    assert len(pandas.read_csv(tmp_path / "check.csv")) > 3


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--out", "page.html"), "a page is written by --html"),
        (("--out", "table.xlsx"), "--out ends in .safetensors"),
        (("--out", "no/such.csv"), "a folder that exists"),
        (("--html", "."), "is a folder"),
        (("--html", "no/such.html"), "a folder that exists"),
    ],
)
@pytest.mark.parametrize(
    "verb", [("check", "ioi"), ("steer", "ioi"), ("reuse", "ioi", "induction"), ("leaderboard",), ("ablate", "sweep"),
             ("truth",), ("lens", "show", "text"), ("features", "evaluate")],
)  # fmt: skip
def test_what_could_not_be_written_is_refused_at_once(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...], option: tuple[str, str], said: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mechwork.models.load_model", never)
    monkeypatch.setattr("mechwork.circuits.ground_truth.build_table", never)
    outcome = cli(*verb, *option)
    assert outcome.code == 2
    assert said in outcome.err
