"""Faults under presets that replace forwards, gradients and softmaxes, on every family: see `state`."""

from __future__ import annotations

from tests.families import FAMILIES
from tests.faults.core import Tally
from tests.faults.interrupts import OPERATIONS
from tests.faults.state import endure

N = 1100
UNDER = {name: run for name, run in OPERATIONS.items() if "gim" in name}


def run(tally: Tally) -> None:
    """As many for each family."""
    assert UNDER
    families = ("gpt2", "opt", "gemma2") if tally.scale < 0.5 else tuple(FAMILIES)
    endure(tally, families, UNDER, tally.times(N))
