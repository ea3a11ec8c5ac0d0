"""How a lens is trained: a frozen recipe, of which (with the text) the lens is a pure function."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError, check_seed, check_whole
from .states import RESIDUAL
from .translators import find_form

AT_LEAST_ONE = ("step_tokens", "ridge_tokens", "check_every", "patience")


@dataclass(frozen=True)
class LensRecipe:
    """Settings of a training run. Tokens are real positions of the text, padding not counted.

    `ridge_tokens` are read once for the closed-form start (`ridge`: its penalty, as a share of the states' mean
    variance), then `steps` steps of `step_tokens` train every place at once with Adam: linear warm-up over `warm_up` of
    all steps, linear decay to zero at the last one, gradients clipped per place to `clip`, weights decaying towards the
    identity. `held_out_rows` rows of the text are never trained on: every other one decides when to stop (every
    `check_every` steps; when no place has improved `patience` times in a row), the rest is left for the final
    evaluation.
    `share`: the random share of a step's positions that is read (neighbouring positions say much the same).
    `top_k`: how many of the model's most probable tokens the teacher tells apart; 0: all.
    """

    form: str = "full"
    kind: str = "resid_pre"
    steps: int = 300
    step_tokens: int = 2048
    ridge_tokens: int = 50_000
    ridge: float = 1e-3
    held_out_rows: int = 512
    check_every: int = 25
    patience: int = 6
    learning_rate: float = 1e-3
    warm_up: float = 0.05
    clip: float = 1.0
    weight_decay: float = 0.0
    share: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        find_form(self.form)
        if self.kind not in RESIDUAL:
            raise InputError(f"a lens reads one of {', '.join(RESIDUAL)}; got kind={self.kind!r}")
        for names, least in ((AT_LEAST_ONE, 1), (("steps", "top_k"), 0), (("held_out_rows",), 4)):
            for name in names:
                check_whole(name, getattr(self, name), least=least)
        check_seed(self.seed)
        if not (self.learning_rate > 0 and self.clip > 0 and self.ridge >= 0 and self.weight_decay >= 0):
            raise InputError("learning_rate and clip are positive, ridge and weight_decay at least 0")
        if not (0 < self.share <= 1 and 0 <= self.warm_up < 1):
            raise InputError(f"share is in (0, 1] and warm_up in [0, 1); got {self.share} and {self.warm_up}")

    def rate(self, step: int) -> float:
        """The learning rate of a step (counted from 0): up to the peak over the warm-up, down to zero at the end."""
        rise = max(1, round(self.warm_up * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (self.steps - step) / max(1, self.steps - rise)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
