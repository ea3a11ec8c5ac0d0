"""A probe trained on line, with lists and sums over everything seen so far instead of running moments."""

from __future__ import annotations

import math


def online_pass(
    states: list[list[float]], targets: list[int], n_classes: int, rate: float
) -> tuple[list[list[float]], list[float], list[int]]:
    """(weights and biases on the states as they are, what each example was taken for before it was learnt)."""
    width = len(states[0])
    w, b = [[0.0] * width for _ in range(n_classes)], [0.0] * n_classes
    mean, spread, said = [0.0] * width, [1.0] * width, []

    def scores(x: list[float]) -> list[float]:
        z = [(x[j] - mean[j]) / spread[j] for j in range(width)]
        return [sum(w[k][j] * z[j] for j in range(width)) + b[k] for k in range(n_classes)]

    for t, (x, target) in enumerate(zip(states, targets, strict=True), start=1):
        before = scores(x)
        said.append(before.index(max(before)))
        seen = states[:t]
        mean = [sum(row[j] for row in seen) / t for j in range(width)]
        spread = [math.sqrt(sum((row[j] - mean[j]) ** 2 for row in seen) / t) or 1.0 for j in range(width)]
        z = [(x[j] - mean[j]) / spread[j] for j in range(width)]
        now = [math.exp(score) for score in scores(x)]
        step = rate / math.sqrt(t) / (1 + sum(value**2 for value in z))
        for k in range(n_classes):
            error = now[k] / sum(now) - (k == target)
            w[k] = [w[k][j] - step * error * z[j] for j in range(width)]
            b[k] -= step * error
    final = [[w[k][j] / spread[j] for j in range(width)] for k in range(n_classes)]
    biases = [b[k] - sum(final[k][j] * mean[j] for j in range(width)) for k in range(n_classes)]
    return final, biases, said
