"""Features by their definitions: kinds entry by entry, circuits by hand-written hooks, scores as slopes of finite
changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference.literal import hook

Metric = Callable[[Tensor], Tensor]


def encode(coder: Any, x: Tensor) -> Tensor:
    """One vector, one feature at a time, from the formulas of the papers."""
    numbers = coder.activation.tensors()
    b_in = coder.b_in if coder.b_in is not None else torch.zeros_like(x)
    found = []
    for i in range(coder.n_features):
        p = sum(float(x[d] - b_in[d]) * float(coder.W_enc[d, i]) for d in range(len(x)))
        b = float(coder.b_enc[i])
        if coder.activation.name == "gated":
            magnitude = max(p * math.exp(float(numbers["log_scale"][i])) + b, 0.0)
            found.append(magnitude if p + float(numbers["gate_bias"][i]) > 0 else 0.0)
        elif coder.activation.name == "jumprelu":
            found.append(max(p + b, 0.0) if p + b > float(numbers["threshold"][i]) else 0.0)
        else:
            found.append(max(p + b, 0.0))
    if coder.activation.name == "topk":
        least = sorted(found, reverse=True)[coder.activation.k - 1]
        found = [value if value >= least else 0.0 for value in found]
    return torch.tensor(found, dtype=torch.float64)


def run_circuit(
    model: Any, clean: Tensor, corrupt: Tensor, coders: Sequence[Any], kept: Sequence[set[int]], metric: Metric
) -> Tensor:
    """Autoencoders only: at every place decode(live or corrupt features) plus live or corrupt error; ``n_features``
    stands for the error.
    """
    cache = model.run_with_cache(corrupt)[1]
    hooks = []
    for coder, own in zip(coders, kept, strict=True):
        name = hook(coder.writes.kind, coder.writes.layer)
        f_other = coder.encode(cache[name])
        e_other = cache[name] - coder.decode(f_other)

        def put(
            y: Tensor, hook: Any, coder: Any = coder, own: Any = own, f_other: Any = f_other, e_other: Any = e_other
        ) -> Tensor:
            f = coder.encode(y)
            e = y - coder.decode(f)
            for i in range(coder.n_features):
                if i not in own:
                    f[..., i] = f_other[..., i]
            return coder.decode(f) + (e if coder.n_features in own else e_other)

        hooks.append((name, put))
    with torch.no_grad():
        return metric(model.run_with_hooks(clean, fwd_hooks=hooks))


def metric_with_change(model: Any, host: Tensor, site: str, layer: int, change: Tensor, metric: Metric) -> Tensor:
    """The metric when something is added at a place."""
    with torch.no_grad():
        return metric(model.run_with_hooks(host, fwd_hooks=[(hook(site, layer), lambda y, hook: y + change)]))


def js_distance(values: Tensor, labels: Tensor, edges: Tensor) -> float:
    """One feature: count by bin, then the definition."""
    n = len(edges) + 1
    counts = {True: [0] * n, False: [0] * n}
    for value, label in zip(values.tolist(), labels.tolist(), strict=True):
        counts[label][sum(value > edge for edge in edges.tolist())] += 1
    p = [c / sum(counts[True]) for c in counts[True]]
    q = [c / sum(counts[False]) for c in counts[False]]
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += sum(0.5 * c * math.log2(c / m) for c in (a, b) if c > 0)
    return math.sqrt(total)
