"""mechwork referee: a circuit judged from the command line."""

from __future__ import annotations

from pathlib import Path

from mechwork.circuits import CircuitReview

from .conftest import Cli


def test_a_circuit_is_found_and_judged(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "review.safetensors"
    outcome = cli("referee", "induction", "--model", "attn-only-2l", "-n", 24, "--n-edges", 8, "--n-random", 19,
                  "--preset", "eap", "--json", "--out", out)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["verdict"] in ("pass", "fail", "inconclusive")
    assert outcome.json["trials"][0]["name"] == "gap"
    assert CircuitReview.load(out).verdict == outcome.json["verdict"]


def test_the_rest_of_the_card_comes_with_it(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "card.html"
    outcome = cli("referee", "induction", "--model", "attn-only-2l", "-n", 24, "--n-edges", 8, "--n-random", 5,
                  "--max-edges", 1, "--null", "none", "--no-random-model", "--preset", "eap", "--also", "mechanisms",
                  "--json", "--html", page)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["null"] == []
    assert outcome.json["random_model"] == []
    assert set(outcome.json["also"]) == {"mechanisms"}
    assert "One mechanism or several" in page.read_text(encoding="utf-8")


def test_contracts_come_first(cli: Cli) -> None:
    assert cli("referee", "ioi", "--also", "everything").code == 2
    assert cli("referee", "iou").code == 2
    assert cli("referee", "ioi", "--null", "labels").code == 2
    assert cli("referee", "ioi", "--circuit", "nowhere.json").code == 3
