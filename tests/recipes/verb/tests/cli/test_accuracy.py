"""The verb is in the help, has every shared option, and gives one JSON object, a page and a file."""

from __future__ import annotations

from pathlib import Path

from mechwork.cli.entry import verbs

from .conftest import Cli


def test_the_verb_is_found_and_has_what_every_verb_has(cli: Cli, tmp_path: Path) -> None:
    assert verbs()["accuracy"] == "say how often a model is right on a task"
    assert "accuracy" in cli("--help").out
    done = cli(
        "accuracy", "induction", "-n", 8, "--model", "attn-only-2l", "--json", "--html", "page.html", "--out",
        "found.csv", "--device", "cpu", "--seed", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["accuracy"] > 0.5
    assert (tmp_path / "page.html").is_file()
    assert (tmp_path / "found.csv").is_file()
    assert cli("accuracy", "inductoin").code == 2
