"""mechwork diverge: two steps of a training, compared from the shell."""

from __future__ import annotations

from pathlib import Path

from .conftest import Cli


def test_two_steps_of_training(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "diverge.html"
    outcome = cli(
        "diverge", "attn-only-2l@500", "attn-only-2l", "induction", "--n-pairs", 32, "--n-null", 1,
        "--across", "resid_post",
        "z", "--json", "--html", page,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert found["metric"][1] > found["metric"][0] + 3
    assert {(row["kind"], row["layer"]) for row in found["rows"]} == {
        (kind, layer) for kind in ("resid_post", "attn_out") for layer in (0, 1)
    }
    shares = {row["site"]: row["share"] for row in found["across"]}
    assert set(shares) == {"resid_post.0", "resid_post.1", "z.0.0", "z.0.1", "z.1.0", "z.1.1"}
    assert shares["resid_post.1"] > 0.3
    html = page.read_text(encoding="utf-8")
    assert "Where two models come apart" in html
    assert "noise" in html
    assert "carries most of the difference" in html


def test_contracts_come_first(cli: Cli) -> None:
    assert cli("diverge", "attn-only-2l", "attn-only-2l").code == 2  # no task
    assert cli("diverge", "attn-only-2l", "attn-only-2l", "--task", "inductoin").code == 2
    assert cli("diverge", "attn-only-2l", "attn-only-2l", "--task", "induction", "--kinds", "resid").code == 2
    assert (
        cli("diverge", "attn-only-2l", "attn-only-2l", "--task", "induction", "--html", "nowhere/page.html").code == 2
    )
    assert cli("diverge", "attn-only-2l@7", "attn-only-2l", "--task", "induction").code == 2
    outcome = cli("diverge", "attn-only-2l", "gpt2-6l", "--task", "induction")
    assert outcome.code == 2
    assert "one anatomy" in outcome.err
