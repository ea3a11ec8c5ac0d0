"""mechwork features: list, train and resume, evaluate, circuit; what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

from .conftest import Cli

TEXT = "\n\n".join(
    f"When Mary and John went to the shop, John gave {'a drink ' * (i % 7)} to Mary. The cats are here."
    for i in range(60)
)
SMALL = (
    "--model", "attn-only-2l", "--text", "text.txt", "--kinds", "resid_post", "--n-features", 32, "--k", 4, "--steps",
    4, "--held-out-rows", 4,
    "--rows", 4,
)  # fmt: skip


def test_train_resume_evaluate_and_circuit(cli: Cli) -> None:
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    stopped = cli("features", "train", *SMALL, "--out", "run", "--stop-after", 2)
    assert stopped.code == 0, stopped.err
    assert "--resume" in stopped.out
    assert "--resume" in cli("features", "train", *SMALL, "--out", "run").err
    done = cli("features", "train", *SMALL, "--out", "run", "--resume", "--json")
    assert done.code == 0, done.err
    assert (done.json["finished"], done.json["step"]) == (True, 4)
    assert [row["place"] for row in done.json["evaluation"]] == ["resid_post.0", "resid_post.1", "all places"]
    measured = cli(
        "features", "evaluate", "--model", "attn-only-2l", "--features", "run/features", "--text", "text.txt", "--rows",
        4, "--n-pairs", 16,
        "--html", "page.html",
    )  # fmt: skip
    assert measured.code == 0, measured.err
    assert "unexplained" in measured.out
    assert "all places" in Path("page.html").read_text(encoding="utf-8")
    circuit = cli(
        "features", "circuit", "induction", "--model", "attn-only-2l", "--features", "run/features", "--n-pairs", 8,
        "--ig-steps", 2,
        "--n-random", 1, "--json", "--html", "circuit.html",
    )  # fmt: skip
    assert circuit.code == 0, circuit.err
    assert set(circuit.json["areas"]) == {"relp", "ig (2 steps)", "gradient", "random"}
    assert circuit.json["curves"][0]["n_nodes"] == 10
    assert "whole model" in Path("circuit.html").read_text(encoding="utf-8")


def test_the_shipped_features_are_listed(cli: Cli) -> None:
    listed = cli("features", "list", "--json")
    assert listed.code == 0
    assert "gpt2-6l" in [row["name"] for row in listed.json["features"]]


def test_what_is_refused(cli: Cli) -> None:
    assert cli("features").code == 2
    assert cli("features", "train", "--out", "x", "--resume").code == 2
    missing = cli("features", "circuit", "--model", "attn-only-2l")
    assert missing.code == 3
    assert "no features are shipped for attn-only-2l" in missing.err
    assert cli("features", "circuit", "agreemen").code == 2
    assert cli("features", "evaluate", "--features", "nowhere").code == 3
    assert cli("features", "train", "--model", "attn-only-2l", "--kinds", "pattern", "--out", "y").code == 2
