"""mechwork ablate."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Cli

SMALL = ("-n", 16, "--model", "attn-only-2l", "--task", "induction")


@pytest.mark.parametrize(
    ("study", "text"),
    [
        ("sweep", "a1.h0"), ("cumulative", ("least important "
                                           "first")), ("interactions", "redundant"), ("knock-in", "with it alone"),
        ("self-repair", "backups"), ("suppression", "OV lowest"), ("roles", "previous token"),
        ("remove", "matched random sets"),
        ("telemetry", "perplexity"),
    ],
)  # fmt: skip
def test_every_study_prints_its_table(cli: Cli, study: str, text: str) -> None:
    outcome = cli("ablate", study, *SMALL)
    assert outcome.code == 0, outcome.err
    assert text in outcome.out


def test_impairment_as_json_and_as_a_page(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "impairment.html"
    outcome = cli(
        "ablate",
        "impairment",
        "ioi",
        "docstring",
        "-n",
        16,
        "--heads",
        "a1.h0,a1.h1,a1.h2,a1.h3,a0.h0,a0.h1,a0.h2,a0.h3",
        "--html",
        page,
        "--json",
    )
    assert outcome.code == 0, outcome.err
    assert {row["task"] for row in outcome.json["rows"]} == {"ioi", "docstring"}
    assert outcome.json["provenance"]["model"]["name"] == "gpt2-6l"
    assert "Selective impairment" in page.read_text(encoding="utf-8")
    again = cli("ablate", "sweep", *SMALL, "--html", page)
    assert again.code == 2
    assert "not overwritten" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweeps"], "nearest: sweep"),
        (["sweep", "--kind", "means"], "nearest: mean"),
        (["sweep", "--task", "io"], "nearest: ioi"),
        (["sweep", "--task", "ioi,induction"], "two or more tasks"),
        (["impairment"], "two or more tasks"),
        (["formation", "--model", "gpt2-6l"], "at least two checkpoints"),
        (["self-repair", "--heads", "a9.h9"], "a9.h9"),
    ],
)
def test_what_is_refused(cli: Cli, arguments: list[str], message: str) -> None:
    outcome = cli("ablate", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_telemetry_follows_checkpoints(cli: Cli) -> None:
    outcome = cli("ablate", "telemetry", "--checkpoints", *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    assert {row["step"] for row in outcome.json["rows"]} >= {0, 500, 2500}
    assert "Loading weights" not in outcome.err
    assert cli("ablate", "telemetry", "--checkpoints", "--model", "gpt2-6l").code == 2
    assert "belongs to telemetry" in cli("ablate", "sweep", "--checkpoints", *SMALL).err


def test_suppression_on_a_text(cli: Cli, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cats near the house are here, and the dogs near the cats were there. " * 80)
    asked = ("ablate", "suppression", "--model", "attn-only-2l", "--text", text, "-n", 16, "--json")
    outcome = cli(*asked, "--heads", "a1.h0")
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json["rows"]
    assert row["head"] == "a1.h0"
    assert row["low"] <= row["share"] <= row["high"]
    assert row["kl_ablated"] > 0
    assert cli("ablate", "sweep", "--text", text).code == 2
