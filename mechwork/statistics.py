"""Ranks, correlations, intervals, p-values and divergences: each written once, and used by every folder.

    interval:  percentiles of the mean over resampled pairs (Efron 1979)
    p-value:   share of random sign patterns s with abs(mean(s * e)) >= abs(mean(e)), the identity counted, so that it
    is
               at least 1 / (n + 1): a test of "effects are symmetric around zero" that keeps each pair's size
               (all 2^batch patterns when there are no more than asked for, and then exact)
    kl_nats(p, q):  sum over the last axis of p (log p - log q), of log-probabilities

All are deterministic given a seed. Intervals and p-values are per cell: with many cells, some p-values are small by
chance; `holm` and `benjamini_hochberg` correct for that. Tensors stay where they are and keep their dtype, so that sums
have one order everywhere; scipy, which would move them to numpy, is not used.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import InputError


def bootstrap_interval(
    per_example: Float[Tensor, "batch ..."], level: float = 0.95, n: int = 2000, seed: int = 0
) -> Float[Tensor, "2 ..."]:
    """Lower and upper end of the central `level` of bootstrap means over pairs.

    Raises `InputError` for a level outside (0, 1), fewer than two resamples or fewer than two pairs.
    """
    if not 0 < level < 1 or n < 2:
        raise InputError(f"level is between 0 and 1 and n at least 2; got level={level}, n={n}")
    if len(per_example) < 2:
        raise InputError("an interval over pairs needs at least two pairs; got one")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(per_example), (n, len(per_example)), generator=generator)
    weights = torch.zeros(n, len(per_example), dtype=per_example.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=per_example.dtype))
    means = weights @ per_example.reshape(len(per_example), -1) / len(per_example)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=means.dtype)
    return torch.stack([_percentile(means, float(end)) for end in ends]).reshape(2, *per_example.shape[1:])


def sign_flip_p(
    per_example: Float[Tensor, "batch ..."], n: int = 2000, seed: int = 0, *, alternative: str = "two-sided"
) -> Float[Tensor, "..."]:
    """p-value of each mean effect under random flips of the pairs' signs: ``"two-sided"``, or ``"greater"`` than 0."""
    if alternative not in ("two-sided", "greater"):
        raise InputError(f"alternative is 'two-sided' or 'greater'; got {alternative!r}")
    if n < 1:
        raise InputError(f"n counts sign patterns and is at least 1; got {n}")
    batch = len(per_example)
    exact = 2**batch <= n
    if exact:
        codes = torch.arange(2**batch)[:, None] >> torch.arange(batch)
        signs = 1 - 2 * (codes & 1)
    else:
        generator = torch.Generator().manual_seed(seed)
        signs = 2 * torch.randint(2, (n, batch), generator=generator) - 1
    flat = per_example.double().reshape(batch, -1)
    means, observed = (signs.double() @ flat) / batch, flat.mean(dim=0)
    if alternative == "two-sided":
        means, observed = means.abs(), observed.abs()
    reached = means >= observed - 1e-12 * flat.abs().amax(dim=0)
    counts = reached.sum(dim=0).double()
    p = counts / len(signs) if exact else (counts + 1) / (n + 1)
    return p.to(per_example.dtype).reshape(per_example.shape[1:])


def holm(p_values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """p-values corrected for the number of cells (Holm 1979): below x keeps the chance of any false claim below x."""
    flat = p_values.flatten()
    order = flat.argsort()
    scaled = flat[order] * torch.arange(len(flat), 0, -1, dtype=flat.dtype)
    corrected = torch.empty_like(flat)
    corrected[order] = scaled.cummax(dim=0).values.clamp(max=1.0)
    return corrected.reshape(p_values.shape)


def benjamini_hochberg(p_values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """p-values corrected for the number of cells (Benjamini & Hochberg 1995): below x keeps the expected share of false
    claims among all claims below x. NaN is no test, and stays.
    """
    flat = p_values.flatten()
    known = (~flat.isnan()).nonzero().flatten()
    order = known[flat[known].argsort(descending=True)]
    ranks = torch.arange(len(order), 0, -1, dtype=flat.dtype)
    corrected = flat.clone()
    if len(order):
        corrected[order] = (flat[order] * len(order) / ranks).cummin(dim=0).values.clamp(max=1.0)
    return corrected.reshape(p_values.shape)


def rank_p(value: float, others: Float[Tensor, " n"]) -> float:
    """Share of `value` and `others` that are at least `value`: a p-value when all are exchangeable."""
    return float(1 + (others >= value).sum()) / (1 + len(others))


def binomial_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of which `k` of `n` were seen (Clopper & Pearson 1934), by bisection of the binomial sum."""
    if not 0 <= k <= n or n < 1 or not 0 < level < 1:
        raise InputError(f"a share is k of n >= 1, 0 <= k <= n, with a level in (0, 1); got {k} of {n}, {level}")

    def at_most(count: int, p: float) -> float:
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(count + 1))

    def solve(wanted: float, count: int) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(count, middle) > wanted else (low, middle)
        return low

    tail = (1 - level) / 2
    return (0.0 if k == 0 else solve(1 - tail, k - 1)), (1.0 if k == n else solve(tail, k))


def hsic(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Dependence of any form between two variables, in [0, 1] (Gretton et al. 2005): tr(KHLH) over the geometric mean
    of tr(KHKH) and tr(LHLH), Gaussian kernels as wide as the median distance. NaN when one side is constant.
    """
    k, m = _centred_kernel(x), _centred_kernel(y)
    norm = float(k.norm() * m.norm())
    return float((k * m).sum()) / norm if norm > 0 else float("nan")


def hsic_p(x: Float[Tensor, " n"], y: Float[Tensor, " n"], n: int = 999, seed: int = 0) -> float:
    """p-value of `hsic` under random reorderings of y. Raises `InputError` when one side is constant."""
    k, m = _centred_kernel(x), _centred_kernel(y)
    if not (float(k.norm()) > 0 and float(m.norm()) > 0):
        raise InputError("dependence on what is constant is undefined; both sides need at least two different values")
    generator = torch.Generator().manual_seed(seed)
    observed, reached = float((k * m).sum()), 0
    for _ in range(n):
        order = torch.randperm(len(x), generator=generator)
        reached += float((k * m[order][:, order]).sum()) >= observed * (1 - 1e-12)
    return (1 + reached) / (1 + n)


def _centred_kernel(x: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    x = x.double()
    squares = (x[:, None] - x[None, :]).square()
    apart = squares[squares > 0]
    if not len(apart):
        return torch.zeros_like(squares)
    kernel = (-squares / (2 * apart.median())).exp()
    return kernel - kernel.mean(dim=0) - kernel.mean(dim=1, keepdim=True) + kernel.mean()


def _percentile(values: Float[Tensor, "n cell"], q: float) -> Float[Tensor, " cell"]:
    """Linear interpolation between order statistics, cell by cell (torch.quantile refuses large inputs)."""
    ordered = values.sort(dim=0).values
    place = q * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def kl_nats(log_p: Float[Tensor, "*batch d_vocab"], log_q: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats over the last axis, of log-probabilities; not clamped, so rounding may leave it just
    below 0.
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def pearson(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Pearson correlation; NaN when one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = a.norm() * b.norm()
    return float((a @ b) / norm) if norm > 0 else float("nan")


def spearman(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Pearson correlation of the average ranks; NaN when one side is constant."""
    return pearson(average_ranks(a), average_ranks(b))


def average_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks from 1, ties shared."""
    unique, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse] if unique.numel() else values


def area_under_roc(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> float:
    """The chance that a positive scores above a negative, ties half (Mann & Whitney 1947); NaN for one class only."""
    n, m = int(labels.sum()), int((~labels).sum())
    if not n or not m:
        return float("nan")
    return float((average_ranks(scores.double())[labels].sum() - n * (n + 1) / 2) / (n * m))


def ordinal_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Rank of each value, 1/n for the smallest to 1 for the largest; of equal ones the first is lower."""
    ranks = torch.empty_like(values)
    ranks[values.argsort(stable=True)] = torch.arange(1, len(values) + 1).to(values) / len(values)
    return ranks


def bootstrap_weights(n: int, n_resamples: int, seed: int) -> Float[Tensor, "resample batch"]:
    """How often each of `n` pairs is drawn in each resample, divided by n; rows sum to 1."""
    draws = torch.randint(n, (n_resamples, n), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(n_resamples, n).scatter_add_(1, draws, torch.ones(n_resamples, n))
    return counts / n


def percentile_interval(
    means: Float[Tensor, "resample cell"], level: float
) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"]]:
    """Low and high end of the central `level` of the resamples."""
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is between 0 and 1, e.g. 0.95; got {level}")
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=means.dtype)
    pieces = [torch.quantile(piece, tail, dim=0) for piece in means.split(2**16, dim=1)]
    low, high = torch.cat(pieces, dim=1)
    return low, high


def bootstrap_agreement(
    estimate: Float[Tensor, " n"], truth: Float[Tensor, " n"], level: float = 0.95, n: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals over places of ``pearson``, ``spearman`` and ``relative_error`` (|a - b| / |b|).

    Each resample draws as many places as there are; one in which a side is constant has no correlation and is left
    out. NaN where there are fewer than three places.
    """
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is between 0 and 1, e.g. 0.95; got {level}")
    if len(truth) < 3:
        return dict.fromkeys(("pearson", "spearman", "relative_error"), (float("nan"), float("nan")))
    drawn = torch.randint(len(truth), (n, len(truth)), generator=torch.Generator().manual_seed(seed))
    a, b = estimate.double()[drawn], truth.double()[drawn]
    found = {
        "pearson": row_correlations(a, b),
        "spearman": row_correlations(row_ranks(a), row_ranks(b)),
        "relative_error": (a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-30),
    }
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return {name: tuple(values.nanquantile(ends).tolist()) for name, values in found.items()}


def row_correlations(a: Float[Tensor, "row n"], b: Float[Tensor, "row n"]) -> Float[Tensor, " row"]:
    """`pearson` of every row with its own; NaN where one side is constant."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 0, (a * b).sum(dim=1) / norm, torch.nan)


def row_ranks(values: Float[Tensor, "row n"]) -> Float[Tensor, "row n"]:
    """`average_ranks` of every row."""
    ordered = values.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (below + upto + 1).double() / 2
