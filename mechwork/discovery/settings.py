"""What a discovery is asked to do, as plain data: the part that decides the numbers, and the part that says how
deep.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..circuits import EdgeSpace
from ..circuits.graph.budget import parse_bytes
from ..errors import InputError

Mode = Literal["default", "quick", "thorough"]
_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
MEMORY = "2GB"


@dataclass(frozen=True)
class Settings:
    """What to compute. The circuit's size is `n_edges`, or `fraction` of the edges, or what `target` needs."""

    rules: str = "gradient"
    ig_steps: int = 5
    n_edges: int | None = None
    fraction: float | None = None
    target: float = 0.9
    seed: int = 0
    min_accuracy: float | None = None
    memory_budget: int | str = MEMORY

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise InputError(f"target is a faithfulness above 0 and below 1; got {self.target}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise InputError(f"fraction is above 0 and at most 1; got {self.fraction}")
        if self.n_edges is not None and self.n_edges < 1:
            raise InputError(f"n_edges is at least 1; got {self.n_edges}")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            raise InputError(f"min_accuracy is from 0 to 1; got {self.min_accuracy}")
        parse_bytes(self.memory_budget)

    @property
    def memory(self) -> int:
        """Bytes beside the weights."""
        return parse_bytes(self.memory_budget)

    def given_size(self, space: EdgeSpace) -> tuple[int, str] | None:
        """The size that was chosen by hand, and how; raises `InputError` when the graph has fewer edges."""
        if self.n_edges is not None:
            if self.n_edges > space.n_edges:
                raise InputError(f"this model's graph has {space.n_edges} edges; got --n-edges {self.n_edges}")
            return self.n_edges, "chosen by hand"
        if self.fraction is not None:
            return max(1, int(self.fraction * space.n_edges)), f"chosen by hand, {self.fraction:g} of all edges"
        return None


def parse_seconds(budget: float | str | None) -> float | None:
    """Seconds from a number or from text such as ``"5min"``, ``"90 s"``, ``"1.5h"``."""
    if budget is None:
        return None
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", budget.lower()) if isinstance(budget, str) else None
    if found and found[2] in ("", *_UNITS):
        seconds = float(found[1]) * _UNITS.get(found[2], 1.0)
    elif isinstance(budget, int | float) and not isinstance(budget, bool):
        seconds = float(budget)
    else:
        raise InputError(f"a budget is a number of seconds or text such as '5min' or '1.5h'; got {budget!r}")
    if not 0 < seconds < float("inf"):
        raise InputError(f"a budget is more than 0 seconds; got {budget!r}")
    return seconds
