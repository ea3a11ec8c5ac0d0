"""mechwork lens: train, resume, show, evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Cli

TEXT = "\n\n".join(
    f"When Mary and John went to the shop, John gave {'a drink ' * (i % 7)} to Mary. The cats are here."
    for i in range(60)
)
SMALL = ("--model", "attn-only-2l", "--text", "text.txt", "--steps", "4", "--rows", "4")


def test_train_resume_show_and_evaluate(cli: Cli) -> None:
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    stopped = cli("lens", "train", *SMALL, "--out", "run", "--stop-after", 2)
    assert stopped.code == 0, stopped.err
    assert "--resume" in stopped.out
    assert "--resume" in cli("lens", "train", *SMALL, "--out", "run").err
    done = cli("lens", "train", *SMALL, "--out", "run", "--resume", "--json")
    assert done.code == 0, done.err
    assert done.json["finished"]
    assert done.json["step"] == 4
    assert done.json["evaluation"]["places"] == ["resid_pre.0", "resid_pre.1", "resid_post.1"]
    shown = cli("lens", "show", "When Mary and", "--model", "attn-only-2l", "--lens", "run/lens")
    assert shown.code == 0, shown.err
    assert "resid_post.1" in shown.out
    measured = cli(
        "lens", "evaluate", "--model", "attn-only-2l", "--lens", "run/lens", "--text", "text.txt", "--rows", 6
    )
    assert measured.code == 0, measured.err
    assert "logit lens" in measured.out


def test_what_is_refused(cli: Cli) -> None:
    assert cli("lens", "show").code == 2
    assert cli("lens", "train", "--model", "attn-only-2l", "--out", "x", "--resume").code == 2
    outcome = cli("lens", "show", "The cat", "--model", "attn-only-2l", "--lens", "nowhere")
    assert outcome.code == 3
    assert "no lens is shipped" in outcome.err
    several = cli("lens", "show", "The cat", "--model", "attn-only-2l", "--lens", "logit", "--target", " unbelievable")
    assert several.code == 2
    assert "single token" in several.err


@pytest.mark.parametrize("lens", ["logit"])
def test_the_logit_lens_needs_no_file(cli: Cli, lens: str) -> None:
    outcome = cli("lens", "show", "The cats", "--model", "attn-only-2l", "--lens", lens, "--json")
    assert outcome.code == 0
    assert outcome.json["lens"] == "logit lens"
