"""A probe of several classes that is trained on line: one example after another, each once, as they come.

At example t, with a state x and its class k:

    z = (x - mean) / spread          running moments of the states so far, x among them (Welford 1962)
    p = softmax(W z + b)
    W, b  ->  W, b - (rate / sqrt t) (p - onehot k) [z, 1] / (1 + norm(z)^2)

the gradient step of the log-loss, as long whatever the width. Before each step the probe says which class it takes the
example for; the share that is right (`as they came`) tests every example before it is learnt. This is the form of
probe that G-ACT trains while the model runs. Cost: none beyond the states.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError, MetricError, check_whole
from .classes import ClassProbe

RATE = 4.0


class OnlineProbe(Readable):
    """Weights that change with every example. `n`: examples so far, of which `right` were told before they were
    learnt.

    Raises `InputError` for fewer than two classes or a rate that is not above 0.
    """

    def __init__(self, width: int, n_classes: int, rate: float = RATE) -> None:
        if check_whole("n_classes", n_classes) < 2 or check_whole("width", width) < 1 or not rate > 0:
            raise InputError(
                f"a probe tells two classes or more apart, at a rate above 0; got {n_classes} classes, {rate=}"
            )
        self.rate, self.n, self.right = rate, 0, 0
        self.weights = torch.zeros(n_classes, width, dtype=torch.float64)
        self.biases = torch.zeros(n_classes, dtype=torch.float64)
        self._mean, self._squares = (torch.zeros(width, dtype=torch.float64) for _ in range(2))

    @property
    def _spread(self) -> Float[Tensor, " d"]:
        """1 where nothing has varied yet."""
        spread = (self._squares / max(self.n, 1)).sqrt()
        return torch.where(spread > 1e-9, spread, torch.ones_like(spread))

    @property
    def probe(self) -> ClassProbe:
        """What it has learnt so far, on states as they are."""
        weights = self.weights / self._spread
        return ClassProbe(weights, self.biases - weights @ self._mean)

    @property
    def as_they_came(self) -> float:
        """Share of examples that were told before they were learnt; NaN before the first."""
        return self.right / self.n if self.n else float("nan")

    def learn(self, state: Float[Tensor, " d"], target: int) -> int:
        """One example; returns the class that it was taken for before. Raises `InputError` for an unknown class,
        `MetricError` for a state that is not finite.
        """
        if not 0 <= target < len(self.biases):
            raise InputError(f"classes are 0 to {len(self.biases) - 1}; got {target}")
        x = state.double().cpu()
        if not bool(x.isfinite().all()):
            raise MetricError("the state is not finite; nothing can be learnt from it")
        said = int(self.probe.judge(x[None])[0])
        self.n, self.right = self.n + 1, self.right + int(said == target)
        before = x - self._mean
        self._mean = self._mean + before / self.n
        self._squares = self._squares + before * (x - self._mean)
        z = (x - self._mean) / self._spread
        error = (self.weights @ z + self.biases).softmax(dim=0)
        error[target] -= 1
        step = self.rate / self.n**0.5 / (1 + float(z @ z))
        self.weights = self.weights - step * error[:, None] * z
        self.biases = self.biases - step * error
        return said


def train_online(
    states: Float[Tensor, "n d"], targets: Int[Tensor, " n"], n_classes: int, rate: float = RATE
) -> OnlineProbe:
    """The probe after one pass over some examples, in their order."""
    found = OnlineProbe(states.shape[1], n_classes, rate)
    for state, target in zip(states, targets.tolist(), strict=True):
        found.learn(state, target)
    return found
