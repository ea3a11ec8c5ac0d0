"""plan, and the options of workers on verbs with heavy work."""

from __future__ import annotations

import pytest

from mechwork.cli.entry import build_parser

from .conftest import Cli

HEAVY = ("discover", "verify", "leaderboard", "reuse", "agreement", "ablate", "circuits", "truth")


def test_a_plan_on_paper(cli: Cli) -> None:
    text = cli("plan", "--model-shape", "llama-8b", "--workers", 64).out
    assert "8.03e9 parameters, 16.1 GB of weights, 805,681 edges" in text
    assert "1: more do not pay" in text
    found = cli("plan", "--model-shape", "llama-70b", "--workers", 16, "--tokens", 256, "--json").json
    rows = {row["work"]: row for row in found["rows"]}
    assert rows["exact effects"]["speed_up"] > 12
    assert rows["exact effects"]["gpus"] == 2
    assert rows["edges, EAP-IG 5"]["paying"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model-shape", "llama-9b"), "unknown model shape 'llama-9b'"),
        (("--workers", 0), "at least 1 is needed"),
        (("--gpu-memory", "lots"), "gpu-memory is a positive number of bytes"),
        (("--tflops", 0), "--tflops is above 0"),
        (("--start", -1), "seconds to start 0 or more"),
    ],
)
def test_what_is_no_plan(cli: Cli, words: tuple[str, ...], says: str) -> None:
    outcome = cli("plan", *words)
    assert outcome.code == 2
    assert says in outcome.err


@pytest.mark.parametrize("verb", HEAVY)
def test_heavy_verbs_take_workers(verb: str) -> None:
    task = {"discover": ["ioi"], "verify": ["reports"], "reuse": ["ioi", "induction"], "ablate": ["sweep", "ioi"]}
    words = [verb, *task.get(verb, []), "--workers", "2", "--attempts", "4", "--ledger", "kept"]
    args = build_parser(verb).parse_args(words)
    assert (args.workers, args.attempts, str(args.ledger), args.executor) == (2, 4, "kept", None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--executor", "local", "--workers", 2), "use executor('forked', workers=2)"),
        (("--executor", "forked", "--gpus-per-worker", 1), "belong to executor('ray')"),
        (("--workers", 2, "--threads", 4), "--threads is 1 with --executor forked"),
    ],
)
def test_settings_that_do_not_fit(cli: Cli, words: tuple[str, ...], says: str) -> None:
    outcome = cli("leaderboard", "ioi", *words)
    assert outcome.code == 2
    assert says in outcome.err


def test_a_leaderboard_on_workers_says_the_same(cli: Cli) -> None:
    words = ("leaderboard", "ioi", "--presets", "relp", "--n-pairs", 16, "--json")
    here, there = cli(*words), cli(*words, "--workers", 2)
    assert there.code == 0, there.err
    assert strip(there.json) == strip(here.json)


def strip(found: object) -> object:
    """JSON values without times."""
    if isinstance(found, dict):
        return {name: strip(value) for name, value in found.items() if name not in ("seconds", "time", "command")}
    return [strip(value) for value in found] if isinstance(found, list) else found
