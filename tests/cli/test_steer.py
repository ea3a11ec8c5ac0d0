"""mechwork steer: a direction from training pairs, held-out prompts moved along it, everything else watched."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechwork.cli.steering import parse_settings
from mechwork.errors import InputError, UnknownNameError
from mechwork.tasks import find_task

from .conftest import Cli


@pytest.mark.slow
def test_pronouns_are_steered(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "steering.html"
    outcome = cli(
        "steer", "pronoun", "--answer", " she", "--n-pairs", 64, "--methods", "add", "mirror_below", "--strengths", 1,
        "--others", "agreement", "--n-random", 1, "--layer", 4, "--generate", 4, "--json", "--html", page,
        "--show", "curves", "stability", "illusion", "places",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    rows = {(row["method"], row["control"]): row for row in outcome.json["rows"]}
    assert set(rows) == {(m, c) for m in ("add", "mirror_below") for c in ("", "random 0", "as far 0")}
    assert rows["mirror_below", ""]["success"] > 0.7 > rows["mirror_below", "random 0"]["success"]
    assert rows["mirror_below", "as far 0"]["success"] < 0.5
    assert all(row["perplexity"] > 1 and 0 <= row["repetition"] <= 1 for row in rows.values())
    assert {row["change"] for row in outcome.json["stability"]} == {"resample", "relabel", "paraphrase"}
    parts = {row["part"]: row["success"] for row in outcome.json["illusion"]}
    assert abs(parts["null part"]) < 1e-4 < abs(parts["whole"])
    moved = {row["direction"]: row["with"] - row["without"] for row in outcome.json["places"]}
    assert moved["fitted"] > 3 * abs(moved["random"])
    assert next(row["place"] for row in outcome.json["places"]) == "mlp_out.4"  # which carries the write
    html = page.read_text(encoding="utf-8")
    for words in ("side effect", "random directions", "moved as far", "repetition", "oddness"):
        assert words in html


@pytest.mark.slow
def test_french_is_a_function_vector(cli: Cli) -> None:
    outcome = cli(
        "steer", "in_context", "--model", "gemma2-6l", "--set", "relation=french", "--n-pairs", 48, "--fit",
        "function_vector",
        "--others", "capitals", "--show", "function_vector", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    best = {row["put_in"]: row["accuracy"] for row in outcome.json["function_vector"] if row["strength"] == 2}
    assert best["function vector"] > 0.7 > 0.3 > best["random 0"]


def test_settings_are_the_builders_own() -> None:
    assert parse_settings(find_task("ioi"), ["names=Mary,John", "corruption=io"]) == {
        "names": ("Mary", "John"),
        "corruption": "io",
    }
    assert parse_settings(find_task("in_context"), ["shots=2"]) == {"shots": 2}
    with pytest.raises(UnknownNameError, match="nearest: relation"):
        parse_settings(find_task("in_context"), ["relations=french"])
    with pytest.raises(InputError, match="KEY=VALUE"):
        parse_settings(find_task("in_context"), ["french"])


def test_contracts_come_first(cli: Cli) -> None:
    assert cli("steer", "pronoun", "--fit", "prob").code == 2
    assert cli("steer", "pronoun", "--methods", "ad").code == 2
    assert cli("steer", "pronoun", "--criterion", "best").code == 2
    assert cli("steer", "pronoun", "--html", "nowhere/page.html").code == 2
    outcome = cli("steer", "pronoun", "--answer", "she", "--n-pairs", 8)
    assert outcome.code == 2
    assert "leading space" in outcome.err or "no pair" in outcome.err
    outcome = cli("steer", "pronoun", "--order", "NAME", "IO", "--n-pairs", 8)
    assert outcome.code == 2
    assert "span of pronoun" in outcome.err
    outcome = cli("steer", "pronoun", "--fit", "function_vector", "--n-pairs", 8)
    assert outcome.code == 2
    assert "lacks X1" in outcome.err
