"""The default executor: this process, one unit at a time."""

from __future__ import annotations

import time

from .executor import Outcome
from .unit import Run, Unit, Work


class Local:
    """Units run here. What a unit raises is raised at once, as it is."""

    kind = "local"
    n_workers = 1

    def open(self, work: Work, here: Run) -> LocalPool:
        return LocalPool(here)

    def close(self) -> None:
        """Nothing is shared."""


class LocalPool:
    """Holds one unit and runs it when it is waited for."""

    window = 1

    def __init__(self, here: Run) -> None:
        self._here = here
        self._unit: Unit | None = None

    def offer(self, unit: Unit) -> bool:
        if self._unit is not None:
            return False
        self._unit = unit
        return True

    def wait(self) -> list[Outcome]:
        assert self._unit is not None
        unit, self._unit = self._unit, None
        begun = time.perf_counter()
        return [Outcome(unit, self._here(unit), None, "here", time.perf_counter() - begun)]

    def close(self) -> None:
        """Nothing runs when nobody waits."""
