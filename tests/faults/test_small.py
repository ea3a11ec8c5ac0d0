"""A small part of every attack, in the gate. ``python -m tests.faults`` runs all of it."""

from __future__ import annotations

import importlib

import pytest

from tests.faults.core import Tally

SCALES = {
    "interrupts": 0.04, "disk": 0.1, "together": 0.05, "loaders": 0.02, "commands": 0.03,
    "state": 0.03, "gim": 0.03, "calls": 0.01, "strings": 0.05, "halves": 0.02, "kills": 0.05, "tampering": 0.1,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", SCALES)
def test_nothing_gives_way(part: str) -> None:
    tally = Tally(part, seed=1, scale=SCALES[part])
    importlib.import_module(f"tests.faults.{part}").run(tally)
    assert tally.tried > 0
    assert not tally.failures, tally.report()
