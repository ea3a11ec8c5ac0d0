"""An estimator by name: rules of the backward pass, and points on the path. ``"relp"``, ``"ig5"``, ``"relp-ig5"``.

Cost in F, one forward of the same pairs, a backward counted as two: 2 forwards and a backward; with k points 2 + k
forwards and k backwards; with GradDrop (AtP*) one backward per layer instead of each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..relevance import Composite, find_composite


@dataclass(frozen=True)
class Estimator:
    """A composite of rules, and the points on the path from corrupt to clean (1 = plain)."""

    rules: Composite
    ig_steps: int = 1

    def __post_init__(self) -> None:
        if self.ig_steps < 1:
            raise InputError(f"a path has at least one point; got ig_steps={self.ig_steps}")

    @property
    def name(self) -> str:
        """``"relp"``, ``"ig5"`` (gradients at five points), ``"relp-ig5"``."""
        if self.ig_steps == 1:
            return self.rules.name
        return f"ig{self.ig_steps}" if self.rules.name == "gradient" else f"{self.rules.name}-ig{self.ig_steps}"

    def cost(self, n_layers: int) -> int:
        """F of one `attribute` (see the module's docstring), queries and keys of AtP* aside."""
        forwards = 2 if self.ig_steps == 1 else 2 + self.ig_steps
        backwards = self.ig_steps * (n_layers if self.rules.grad_drop else 1)
        return forwards + 2 * backwards

    def to_json(self) -> dict[str, Any]:
        return {"rules": self.rules.to_json(), "ig_steps": self.ig_steps}


def find_estimator(text: str | Composite | Estimator) -> Estimator:
    """The estimator of that name: a preset of rules, ``"ig5"``, or both as ``"relp-ig5"``.

    >>> find_estimator("relp-ig5").ig_steps
    5
    """
    if isinstance(text, Estimator):
        return text
    if isinstance(text, str) and (found := re.fullmatch(r"(?:(.+)-)?ig(\d+)", text)):
        return Estimator(find_composite(found[1] or "gradient"), int(found[2]))
    return Estimator(find_composite(text))
