"""Slow literal forms of the tests of a circuit: every sign pattern, every double sum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def sign_pattern_p(values: Sequence[float]) -> float:
    """Share of all sign patterns whose sum is at least the observed one."""
    observed = sum(values)
    patterns = list(itertools.product((-1, 1), repeat=len(values)))
    slack = 1e-12 * len(values) * max(map(abs, values))
    return sum(sum(s * v for s, v in zip(p, values, strict=True)) >= observed - slack for p in patterns) / len(patterns)


def literal_equivalence(
    model: Sequence[float], empty: Sequence[float], circuit: Sequence[float], margin: float
) -> tuple[float, float]:
    """(p for, p against) of 1 - margin < F < 1 + margin."""
    gap = [m - e for m, e in zip(model, empty, strict=True)]
    kept = [c - e for c, e in zip(circuit, empty, strict=True)]
    above = [k - (1 - margin) * g for k, g in zip(kept, gap, strict=True)]
    below = [(1 + margin) * g - k for k, g in zip(kept, gap, strict=True)]
    inside = max(sign_pattern_p(above), sign_pattern_p(below))
    outside = min(sign_pattern_p([-x for x in above]), sign_pattern_p([-x for x in below]))
    return inside, outside


def literal_edge(gap: Sequence[float], drop: Sequence[float], least: float) -> tuple[float, float]:
    """(p for, p against) of "the mean drop is further from 0 than `least` of the gap"."""
    more = [sign_pattern_p([s * d - least * g for d, g in zip(drop, gap, strict=True)]) for s in (1, -1)]
    less = [sign_pattern_p([least * g - s * d for d, g in zip(drop, gap, strict=True)]) for s in (1, -1)]
    return min(1.0, 2 * min(more)), max(less)


def literal_hsic(x: Sequence[float], y: Sequence[float]) -> float:
    """HSIC over its greatest value, from the sums of Gretton et al. 2005 (biased form)."""

    def kernel(values: Sequence[float]) -> list[list[float]]:
        apart = sorted((a - b) ** 2 for a in values for b in values if a != b)
        width = apart[(len(apart) - 1) // 2]
        return [[math.exp(-((a - b) ** 2) / (2 * width)) for b in values] for a in values]

    def trace(k: list[list[float]], m: list[list[float]]) -> float:
        n = len(k)
        both = sum(k[i][j] * m[i][j] for i in range(n) for j in range(n)) / n**2
        alone = sum(map(sum, k)) * sum(map(sum, m)) / n**4
        cross = sum(k[i][j] * m[i][q] for i in range(n) for j in range(n) for q in range(n)) / n**3
        return both + alone - 2 * cross

    k, m = kernel(x), kernel(y)
    return trace(k, m) / math.sqrt(trace(k, k) * trace(m, m))


def literal_benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """For each p the least m p' / rank(p') over all p' that are at least p."""
    ordered = sorted(p_values)
    scaled = [p * len(ordered) / (rank + 1) for rank, p in enumerate(ordered)]
    return [min(1.0, *(s for s, q in zip(scaled, ordered, strict=True) if q >= p)) for p in p_values]
