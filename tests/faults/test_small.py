"""A small part of every attack, in the gate. ``python -m tests.faults`` runs all of it."""

from __future__ import annotations

import importlib
import inspect
import os

import pytest

from tests.faults.core import Tally
from tests.faults.interrupts import PLAIN
from tests.faults.operations import LACKING, MORE, public

HELD = set(MORE) | {name.split()[0] for name in PLAIN}
SCALES = {
    "interrupts": 0.03, "disk": 0.1, "together": 0.05, "loaders": 0.02, "commands": 0.03,
    "state": 0.03, "gim": 0.03, "calls": 0.01, "strings": 0.05, "halves": 0.02, "kills": 0.05, "tampering": 0.1,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", SCALES)
def test_nothing_gives_way(part: str) -> None:
    tally = Tally(part, seed=int(os.environ.get("MECHWORK_SEED", "1")), scale=SCALES[part])
    importlib.import_module(f"tests.faults.{part}").run(tally)
    assert tally.tried > 0
    assert not tally.failures, tally.report()


def test_every_public_function_of_a_model_meets_faults_or_says_why_not() -> None:
    there = public()
    assert len(there) > 150
    assert not set(LACKING) & HELD
    assert set(there) - HELD == set(LACKING), "of tests/faults/operations.py"
    assert all(len(reason) > 20 for reason in LACKING.values())


def test_every_public_function_of_a_model_holds_it_and_looks_at_its_arguments() -> None:
    """What does not ends in Python's own errors for wrong arguments, and shares the model between its forwards."""
    looks = ("@borrows", "@checked", "@contextmanager")
    heads = {name: inspect.getsource(inspect.unwrap(f)).partition("def ")[0] for name, f in public().items()}
    plain = {name for name, head in heads.items() if not any(look in head for look in looks)}
    assert plain == {"read_anatomy"}
