"""mechwork steer: a direction from training pairs, held-out prompts moved along it, everything else watched."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Cli


@pytest.mark.slow
def test_pronouns_are_steered(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "steering.html"
    outcome = cli(
        "steer", "pronoun", "--answer", " she", "--n-pairs", 64, "--methods", "add", "mirror_below", "--strengths", 1,
        "--others", "agreement", "--n-random", 1, "--layer", 4, "--json", "--out", page,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    rows = {(row["method"], row["control"]): row for row in outcome.json["rows"]}
    assert set(rows) == {(m, c) for m in ("add", "mirror_below") for c in ("", "random 0")}
    assert rows["mirror_below", ""]["success"] > 0.7 > rows["mirror_below", "random 0"]["success"]
    html = page.read_text(encoding="utf-8")
    assert "side effect" in html
    assert "random directions" in html


def test_contracts_come_first(cli: Cli) -> None:
    assert cli("steer", "pronoun", "--fit", "prob").code == 2
    assert cli("steer", "pronoun", "--methods", "ad").code == 2
    assert cli("steer", "pronoun", "--out", "nowhere/page.html").code == 2
    outcome = cli("steer", "pronoun", "--answer", "she", "--n-pairs", 8)
    assert outcome.code == 2
    assert "leading space" in outcome.err or "no pair" in outcome.err
