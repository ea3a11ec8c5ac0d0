"""``mechwork agreement``: rows by seed and template, tasks that are set aside, and a folder that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mechwork.patching import sampled

from .conftest import Cli

RUN = (
    "agreement", "--model", "attn-only-2l", "--task", "induction", "-n", 4, "--seeds", "0,1", "--templates", 2,
    "--places", 5, "--presets", "gradient,cp_lrp", "--ig-steps", 2, "--edges", "eap,eap-ig",
)  # fmt: skip


def test_a_killed_run_goes_on_and_gives_the_same_bytes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*RUN, "--out", "whole").code == 0
    calls = 0
    real = sampled.attribute

    def dies(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(sampled, "attribute", dies)
    assert cli(*RUN, "--out", "torn").code != 0
    assert not Path("torn/agreement.csv").exists()
    again = cli(*RUN, "--out", "torn")
    assert again.code == 0
    assert calls == 4 + 4 + 1  # two cases, four estimators each: three were kept
    for name in ("agreement.csv", "edges.csv", "evidence.md"):
        assert Path("torn", name).read_bytes() == Path("whole", name).read_bytes()
    page = Path("whole/evidence.md").read_text()
    assert "| induction, seed 1, template 1 |" in page
    assert "5 random places of each kind" in page
    assert page.count("| cost in F | 4 | 4 | 8 | 8 |") == 4
    rows = Path("whole/agreement.csv").read_text().splitlines()
    assert rows[0].startswith("task,base,seed,template,site,rules,pearson,pearson_low")
    assert len(rows) == 1 + 2 * 4 * 4  # cases, kinds of site, estimators
    assert len(Path("whole/edges.csv").read_text().splitlines()) == 1 + 2 * 2


def test_what_the_model_cannot_do_is_listed(cli: Cli) -> None:
    outcome = cli(
        "agreement", "--model", "attn-only-2l", "--task", "induction,pronoun", "-n", 4, "--presets", "gradient",
        "--places", 3, "--json",
    )  # fmt: skip
    data = outcome.json["models"][0]
    assert {row["task"] for row in data["rows"]} == {"induction"}
    assert len(data["left_out"]) == 1
    assert data["left_out"][0].startswith("pronoun: right in 0.")
    refused = cli("agreement", "--model", "attn-only-2l", "--task", "pronoun", "-n", 4, "--presets", "gradient")
    assert refused.code != 0
    assert "nothing is left to measure: pronoun: right in 0." in refused.err


def test_edges_alone(cli: Cli) -> None:
    outcome = cli(
        "agreement", "--model", "attn-only-2l", "--task", "pronoun", "--presets", "none", "--edges", "eap",
        "--edge-pairs", 4, "--least-accuracy", 0, "--out", "edges",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "Faithfulness on held-out pairs" in Path("edges/evidence.md").read_text()
    assert not Path("edges/agreement.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0,0"), "different whole numbers"),
        (("--places", 4, "--screen", "relp"), "give one"),
        (("--least-accuracy", 2), "a share from 0 to 1"),
        (("--edges", "eepp"), "nearest: eap"),
        (("--templates", 0), "at least 1"),
        (("--presets", "none"), "nothing to do without --edges"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(
    cli: Cli, arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechwork.cli import agreement

    monkeypatch.setattr(agreement, "load", lambda args: pytest.fail("the model was loaded"))
    outcome = cli("agreement", *arguments)
    assert outcome.code != 0
    assert message in outcome.err
