"""The gate in one command: ``python -m tests.gate`` runs all of it, ``python -m tests.gate quick`` what each push runs.

name | what runs:

- (none), ``whole`` | format, lint, types, layers, every test (on six architecture families; of a few that take
  minutes, some cases or none) and eight of the notebooks
- ``quick`` | the same four checks; tests that are not slow, on three architecture families, without browser and
  notebooks
- ``unit``, ``families``, ``browser``, ``pages`` | shards of the tests, which together are all of them (a test checks
  that), on all sixteen families, with all cases
- ``lint types`` | single steps by name

Steps run in order and the first failure stops. Tests come last, so that pytest's own summary is the last thing on the
screen.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
PYTEST = [sys.executable, "-m", "pytest", "-rs", "-n", "auto"]
NOTEBOOKS = ["--nbmake", "--nbmake-timeout=300"]

SHARD = "MECHWORK_SHARD"
"""The shard of the tests that conftest keeps: one of `SHARDS`; unset: all of them."""

FAMILIES = "MECHWORK_FAMILIES"
"""Architecture families that parametrised tests run on, with commas; unset: every family."""

QUICK_FAMILIES = "gpt2,llama,gemma2"
"""Learned positions and LayerNorm; rotary, grouped heads and gates; soft caps, sliding windows and norms behind blocks.
"""

WHOLE_FAMILIES = "gpt2,neox,llama,qwen3,gemma2,mixtral"
"""The whole gate's: those and parallel blocks, norms of queries and keys, experts. The others are close to one of
these; the shard ``families`` runs every one.
"""

SLOW = ROOT / "tests" / "slow.txt"
"""One ``file::function`` a line. To renew it: the whole gate with ``--junitxml``, then keep what takes long."""

SHARDS = ("unit", "families", "browser", "pages")

DEAR = frozenset(
    {
        "notebooks/03_activation_patching.ipynb::03_activation_patching.ipynb",
        "notebooks/06_ablation.ipynb::06_ablation.ipynb",
        "notebooks/09_real_model.ipynb::09_real_model.ipynb",
        "notebooks/11_steering.ipynb::11_steering.ipynb",
        "tests/circuits/test_search.py::test_learned_masks_beat_random_ones_and_meet_their_size",
        "tests/execute/test_ray.py::test_a_cluster_of_two_machines_one_of_which_goes",
        "tests/execute/test_ray.py::test_workers_killed_at_ten_random_moments",
        "tests/circuits/test_ground_truth.py::test_every_method_has_a_column",
        "tests/circuits/test_search.py::test_acdc_is_one_trial_after_another",
        "tests/discovery/test_card.py::test_a_finished_discovery_gets_the_card_and_nothing_is_run_again",
        "tests/discovery/test_resume.py::test_killed_at_random_moments_it_ends_in_the_same_bytes",
        "tests/execute/test_operations.py::test_a_real_model",
        "tests/models/test_hub.py::test_a_cached_model_needs_no_hub_and_a_broken_download_goes_on",
        "tests/notebooks/test_claims.py::test_todays_table_is_made_again",
        "tests/relevance/test_composites.py::test_rules_hold_in_a_compiled_model",
        "tests/render/test_browser_large.py::test_it_is_faster_than_plotly_and_fast_enough",
    }
)
"""Tests (``file::function``) that only the shards run: 20 to 60 seconds each, for what seldom breaks
or has a cheaper relative in the gate."""

TWICE = slice(1, None, 3)
"""Of the lessons in order, those that the whole gate runs with every exercise answered (the shard: all of them), which
holds what nbmake shows of the others: that they run.
"""


@dataclass(frozen=True)
class Step:
    """One command; `what` says in words what holds when it succeeds."""

    what: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    tests: bool = False

    def run(self) -> int:
        return subprocess.run(self.command, cwd=ROOT, env={**os.environ, **self.environment}, check=False).returncode


def _shard(name: str, *paths: str) -> Step:
    return Step(f"the shard {name!r} of the tests passes", [*PYTEST, *paths], {SHARD: name}, tests=True)


STEPS: dict[str, Step] = {
    "format": Step("the code is formatted", [sys.executable, "-m", "ruff", "format", "--check", "."]),
    "lint": Step("the linter finds nothing", [sys.executable, "-m", "ruff", "check", "."]),
    "types": Step("types agree", [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]),
    "layers": Step("modules import only downward", [str(TOOLS / "lint-imports")]),
    "tests": Step(
        "tests and notebooks pass",
        [*PYTEST, *NOTEBOOKS, "tests", "notebooks"],
        {FAMILIES: WHOLE_FAMILIES},
        tests=True,
    ),
    "few": Step(
        "tests that are not slow pass on three families",
        [*PYTEST, "-m", "not slow", "--ignore=tests/notebooks", "--ignore=tests/test_docs.py", "tests"],
        {SHARD: "quick", FAMILIES: QUICK_FAMILIES},
        tests=True,
    ),
    "unit": _shard("unit", "tests"),
    "families": _shard("families", "tests"),
    "browser": _shard("browser", "tests"),
    "pages": _shard("pages", *NOTEBOOKS, "tests", "notebooks"),
}

CHECKS = ("format", "lint", "types", "layers")
GATES = {"whole": (*CHECKS, "tests"), "quick": (*CHECKS, "few"), "checks": CHECKS}


def shard_of(path: str, fixtures: frozenset[str] | set[str]) -> str:
    """The shard of a test, from its file (relative to the root) and the names of its fixtures."""
    if path.startswith(("tests/notebooks/", "notebooks/")) or path == "tests/test_docs.py":
        return "pages"
    if fixtures & {"open_page", "browser"}:
        return "browser"
    return "families" if "family" in fixtures else "unit"


def fewer(everything: Sequence[T], few: Sequence[T]) -> Sequence[T]:
    """The cases of a test that takes minutes: `few` of them in the quick and the whole gate, all in the shards."""
    return few if FAMILIES in os.environ else everything


@cache
def measured_slow() -> frozenset[str]:
    """Tests (``file::function``) that took more than .4 s each when the whole gate was last measured: `SLOW`."""
    return frozenset(SLOW.read_text(encoding="utf-8").split())


@cache
def answered_lessons() -> frozenset[str]:
    """The notebooks of `TWICE`, relative to the root."""
    return frozenset(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("notebooks/*.ipynb"))[TWICE])


def kept(shard: str, wanted: str, name: str = "") -> bool:
    """Whether the test `name` of `shard` runs when `wanted` is asked for.

    ``quick`` leaves out browser, pages and what was measured to be slow; the whole gate (nothing asked for, but
    families chosen) what is dear.
    """
    if not wanted and FAMILIES in os.environ:
        return name not in DEAR and name.partition("::")[0] not in answered_lessons()
    quick = wanted == "quick" and shard in ("unit", "families") and name not in measured_slow()
    return not wanted or shard == wanted or quick


def plan(wanted: list[str]) -> list[str]:
    """The steps that names of gates and of steps stand for, in order; raises `SystemExit` for an unknown name."""
    if unknown := [name for name in wanted if name not in STEPS and name not in GATES]:
        sys.exit(f"unknown step {', '.join(unknown)}; gates are {', '.join(GATES)}; steps are {', '.join(STEPS)}")
    chosen = {step for name in wanted or ["whole"] for step in GATES.get(name, (name,))}
    return [name for name in STEPS if name in chosen]


def main(wanted: list[str]) -> int:
    """Run the steps; returns the exit status of the first that fails."""
    for name in plan(wanted):
        step = STEPS[name]
        print(f"== {name}: {step.what}", flush=True)
        begun = time.monotonic()
        status = step.run()
        if status or not step.tests:
            print(f"== {name}: {'FAILED' if status else 'ok'} in {time.monotonic() - begun:.0f} s", flush=True)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
