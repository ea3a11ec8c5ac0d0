"""mechwork verify: an untouched report passes, and whatever is touched is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mechwork.cli import main
from mechwork.discovery.verification import differences

from .conftest import Cli


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small report; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("verify") / "ioi"
    arguments = [
        "discover",
        "ioi",
        "--n-pairs",
        "8",
        "--n-edges",
        "40",
        "--quick",
        "-q",
        "--json",
        "--out",
        str(folder),
    ]
    assert main(arguments) == 0
    return folder


@pytest.fixture
def copy(report: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(report, tmp_path / "ioi"))


def outcomes(cli: Cli, *arguments: object) -> tuple[int, dict[str, str]]:
    done = cli("verify", *arguments, "--json", "-q")
    return done.code, {check["what"]: check["outcome"] for check in done.json["checks"]}


def test_an_untouched_report_is_verified_and_its_numbers_come_again(cli: Cli, copy: Path) -> None:
    code, found = outcomes(cli, copy, "--rerun", "--tolerance", "1e-4")
    assert code == 0
    assert set(found.values()) == {"same"}
    assert {
        "record in the page",
        "report.html",
        "circuit.json",
        "edges.csv",
        "model's weights",
        "data (train pairs)",
        "numbers",
    } <= set(found)
    text = cli("verify", copy / "report.html", "--files-only")
    assert text.code == 0
    assert text.out.rstrip().endswith("verified")
    assert "model's weights" not in text.out


@pytest.mark.parametrize("name", ["circuit.json", "edges.csv"])
def test_an_altered_file_is_named(cli: Cli, copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes().replace(b"a0.h0", b"a0.h1", 1))
    done = cli("verify", copy, "--files-only")
    assert done.code == 4
    assert re.search(rf"{name} +differs: recorded sha256 [0-9a-f]{{12}}, found", done.out)
    assert f"{name} differs" in done.err
    code, found = outcomes(cli, copy, "--files-only")
    assert code == 4
    assert [what for what, outcome in found.items() if outcome == "differs"] == [name]


def test_an_altered_page_and_an_altered_record_are_told_apart(cli: Cli, copy: Path) -> None:
    page = copy / "report.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("Summary", "Summery", 1), encoding="utf-8")
    code, found = outcomes(cli, copy, "--files-only")
    assert (code, found["report.html"], found["record in the page"]) == (4, "differs", "same")
    head, tail = text.rsplit('data-name="mechwork-report"', 1)
    page.write_text(head + 'data-name="mechwork-report"' + tail.replace('"seed":0', '"seed":7', 1), encoding="utf-8")
    code, found = outcomes(cli, copy, "--files-only")
    assert (code, found["record in the page"]) == (4, "differs")


def test_numbers_that_do_not_come_again_are_named(cli: Cli, copy: Path) -> None:
    summary = copy / "report.json"
    data = json.loads(summary.read_text(encoding="utf-8"))
    data["evaluation"]["faithfulness"] += 0.5
    summary.write_text(json.dumps(data), encoding="utf-8")
    done = cli("verify", copy, "--rerun", "-q")
    assert done.code == 4
    assert "evaluation.faithfulness" in done.out
    assert "numbers differs" in done.err


def test_a_page_alone_is_checked_as_far_as_it_goes(cli: Cli, copy: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.html"
    shutil.copy(copy / "report.html", alone)
    code, found = outcomes(cli, alone, "--rerun")
    assert code == 0
    assert (found["record in the page"], found["circuit.json"], found["numbers"]) == ("same", "missing", "missing")


def test_what_is_no_report_is_refused(cli: Cli, copy: Path, tmp_path: Path) -> None:
    missing = cli("verify", tmp_path / "none")
    assert (missing.code, "no report at" in missing.err) == (3, True)
    other = tmp_path / "other.html"
    other.write_text("<p>hello</p>", encoding="utf-8")
    assert "holds no record" in cli("verify", other).err
    page = copy / "report.html"
    text = page.read_text(encoding="utf-8")
    head, tail = text.rsplit('data-name="mechwork-report"', 1)
    page.write_text(
        head + 'data-name="mechwork-report"' + tail.replace('"format":1', '"format":9', 1), encoding="utf-8"
    )
    newer = cli("verify", page)
    assert newer.code == 3
    assert "format 9; this version reads up to 1. Upgrade" in newer.err
    page.write_text(head + 'data-name="mechwork-report">{"format": </script>', encoding="utf-8")
    assert "cannot be read" in cli("verify", page).err
    assert cli("verify", copy, "--rerun", "--files-only").code == 2
    summary = copy / "report.json"
    page.write_text(text, encoding="utf-8")
    summary.write_text("[", encoding="utf-8")
    assert "is not a JSON object" in cli("verify", copy, "--files-only").out or "differs" in cli("verify", copy).out


def test_differences_are_relative_and_say_where() -> None:
    before = {"a": 1000.0, "b": [1, {"c": "x"}], "d": None, "e": True}
    assert not list(differences(before, {**before, "a": 1000.5}, 1e-3))
    after = {"a": 1002.0, "b": [1, {"c": "y"}, 2], "d": 1, "e": False, "f": 1}
    found = list(differences(before, after, 1e-3))
    assert [place.split(":")[0] for place in found] == ["a", "b", "b[1].c", "d", "e", "f"]
