"""How features are trained: a frozen recipe, of which (with model and text) they are a pure function."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError, check_seed, check_whole

KINDS = ("topk", "relu")
AT_LEAST_ONE = ("n_features", "k", "step_tokens", "scale_tokens", "dead_tokens", "held_out_rows")


@dataclass(frozen=True)
class FeatureRecipe:
    """Settings of a training run. Tokens are real positions of the text, padding and skipped ones not counted.

    `n_features` per coder; `kind` ``"topk"`` keeps the `k` largest per token, ``"relu"`` pays `penalty` per unit of
    activation (in units in which a place's vectors have a root mean square of 1 per dimension). `scale_tokens` are read
    once for every place's mean and scale. Adam with linear warm-up and linear decay over the last `decay` of all steps;
    decoder rows keep length 1.
    A feature silent for `dead_tokens` tokens is dead: with top-k, the dead ones together rebuild what the others leave,
    with weight `revive` (Gao et al. 2024, AuxK).
    `skip`: positions left out at the start of every row (the first token's vector is another kind of thing: attention
    rests there). The first `held_out_rows` rows of the text are never trained on.
    """

    n_features: int = 512
    kind: str = "topk"
    k: int = 16
    penalty: float = 0.05
    steps: int = 600
    step_tokens: int = 1024
    scale_tokens: int = 10_000
    learning_rate: float = 2e-3
    warm_up: float = 0.05
    decay: float = 0.3
    dead_tokens: int = 50_000
    revive: float = 1 / 32
    skip: int = 1
    held_out_rows: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"features are trained as {' or '.join(KINDS)}; got kind={self.kind!r}")
        for name in AT_LEAST_ONE:
            check_whole(name, getattr(self, name), least=1)
        for name in ("steps", "skip"):
            check_whole(name, getattr(self, name), least=0)
        check_seed(self.seed)
        if self.kind == "topk" and self.k > self.n_features:
            raise InputError(f"k is at most the number of features, {self.n_features}; got {self.k}")
        if not (self.learning_rate > 0 and self.penalty >= 0 and self.revive >= 0):
            raise InputError("learning_rate is positive, penalty and revive at least 0")
        if not (0 <= self.warm_up < 1 and 0 <= self.decay <= 1):
            raise InputError(f"warm_up is in [0, 1) and decay in [0, 1]; got {self.warm_up} and {self.decay}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = max(1, round(self.warm_up * self.steps))
        fall = max(1, round(self.decay * self.steps))
        return self.learning_rate * min(1.0, (step + 1) / rise, (self.steps - step) / fall)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
