"""mechwork compare: two circuits over each other, from bundled names, files and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechwork.circuits import load_circuit
from tests.browser import OpenPage

from .conftest import Cli


def test_two_tasks_of_one_model(cli: Cli) -> None:
    outcome = cli("compare", "gpt2-6l/ioi", "gpt2-6l/induction", "--json")
    assert outcome.code == 0, outcome.err
    found, (a, b) = outcome.json, (load_circuit(f"gpt2-6l/{task}") for task in ("ioi", "induction"))
    assert found["same_graph"]
    assert found["overlap"]["edges"] == pytest.approx(a.overlap(b))
    assert a.overlap(b) > found["overlap"]["edges_by_chance"] > 0
    page = Path("compare.html").read_text(encoding="utf-8")
    assert page.count("<!doctype html>") == 1
    assert "gpt2-6l/induction" in page
    again = cli("compare", "gpt2-6l/ioi", "gpt2-6l/induction")
    assert again.code == 2
    assert "--force" in again.err
    text = cli("compare", "gpt2-6l/ioi", "gpt2-6l/induction", "--force", "--names", "one", "two").out
    assert "one / two" in text
    assert "chance" in text


def test_two_models_of_other_shape_and_the_page(cli: Cli, open_page: OpenPage) -> None:
    outcome = cli("compare", "gpt2-6l/ioi", "llama-6l/ioi", "--html", "models.html")
    assert outcome.code == 0, outcome.err
    assert "6 layers of 4 heads, 2 for keys and values" in outcome.out
    assert "says where a component" in outcome.out
    tab = open_page(Path("models.html").read_text(encoding="utf-8"))
    assert "Only gpt2-6l/ioi" in tab.page.locator(".mw-panel-body").inner_text()


def test_folders_and_files(cli: Cli) -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
    load_circuit("gpt2-6l/ioi").save("one/circuit.json")
    load_circuit("gpt2-6l/induction").save("two/circuit.json")
    assert "one / two" in cli("compare", "one", "two/circuit.json").out
    assert "one / two" in cli("compare", "one/report.html", "two", "--html", "again.html").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("gpt2-6l/ioi", "gpt2-6l/ioi"), 2, "under two names"),
        (("gpt2-6l/ioi", "gpt2-6l/iox"), 2, "gpt2-6l/ioi"),
        (("gpt2-6l/ioi", "empty"), 3, "holds no circuit.json"),
        (("gpt2-6l/ioi", "broken.json"), 3, "not valid JSON"),
        (("gpt2-6l/ioi", "newer.json"), 3, "Upgrade mechwork"),
        (("gpt2-6l/ioi", "gpt2-6l/induction", "--html", "no/such/place.html"), 2, "a folder that exists"),
    ],
)
def test_what_is_refused(cli: Cli, arguments: tuple[str, ...], code: int, message: str) -> None:
    Path("empty").mkdir()
    Path("broken.json").write_text("{", encoding="utf-8")
    Path("newer.json").write_text('{"what": "mechwork circuit", "format": 99}', encoding="utf-8")
    outcome = cli("compare", *arguments)
    assert outcome.code == code, outcome.err
    assert message in outcome.err
    assert not list(Path().glob("*.html"))
