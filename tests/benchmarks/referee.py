"""How often the tests of a circuit reject where nothing is to be found: ``python -m tests.benchmarks.referee [MODEL]``.

Real metrics (IOI; default gpt2-6l, 128 pairs, half held out, the circuit of 100 edges), 200 null data sets made of
them, each of 24 pairs drawn without replacement. Every null lies on its claim's bound: residuals keep their sizes and
get random signs, the rest's metrics are reordered, the circuit is itself one of 240 random ones. Nominal rate 5 %; the
interval is Clopper and Pearson's at 95 %.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor

import mechwork as mw
from mechwork.circuits.testing.evaluate import EvaluationSettings
from mechwork.circuits.testing.referee import draw_masks
from mechwork.circuits.testing.trials import Bounds, Sample, over_rows, try_edges, try_equivalence, try_gap, try_rank
from mechwork.statistics import binomial_interval, hsic_p

N_NULL, N_PAIRS, N_POOL, N_REFERENCE, LEVEL = 200, 24, 240, 99, 0.05


def null_p_values(sample: Sample, seed: int) -> dict[str, float]:
    """p-values of every test on one null data set."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(sample.model), generator=draw)[:N_PAIRS]
    bounds = Bounds(LEVEL, seed=seed)

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[..., rows]

    here = over_rows(sample, pick)
    assert here.randoms is not None
    assert here.knocked is not None
    assert here.cut is not None
    signs = 2.0 * torch.randint(2, (N_PAIRS,), generator=draw) - 1
    gap, residual = here.gap, (here.circuit - here.empty) - here.faithfulness(here.circuit) * here.gap
    found = {"gap": try_gap(replace(here, model=here.empty + signs * gap), bounds).p_for}
    for side, share in (("worse", 1 - bounds.margin), ("better", 1 + bounds.margin)):
        planted = replace(here, circuit=here.empty + share * gap + signs * residual)
        test = try_equivalence(planted, bounds)
        found[f"equivalence, for ({side})"], found[f"equivalence, against ({side})"] = test.p_for, test.p_against
    order = torch.randperm(N_PAIRS, generator=draw)
    found["independence, against"] = hsic_p(here.model, (here.rest - here.empty)[order], n=199, seed=seed)
    drop = (here.circuit - here.cut[0]).double()
    noise = drop - drop.mean() / gap.mean() * gap
    edge = replace(here, cut=(here.circuit - bounds.least * gap - signs * noise)[None], added=None)
    test = try_edges(edge, ["edge"], bounds)[0][0]
    found["an edge, for"], found["an edge, against"] = test.p_for, test.p_against
    which = torch.randperm(N_POOL, generator=draw)[: N_REFERENCE + 1]
    own, others = which[0], which[1:]
    ranked = replace(
        here, circuit=here.randoms[own], rest=here.knocked[own], randoms=here.randoms[others],
        knocked=here.knocked[others],
    )  # fmt: skip
    for name in ("sufficiency", "necessity"):
        test = try_rank(ranked, bounds, name)
        found[f"{name}, for"], found[f"{name}, against"] = test.p_for, test.p_against
    return found


def main(name: str) -> None:
    """Measure once, then the table."""
    model = mw.load_model(name)
    task = mw.tasks.ioi(model, n=128, seed=0)
    circuit = mw.score_edges(model, task.train).circuit(n_edges=100)
    sample = draw_masks(circuit, N_POOL, 1, 1, seed=0).measure(model, task.test, EvaluationSettings())
    found = [null_p_values(sample, seed) for seed in range(N_NULL)]
    print(f"{name}, IOI: rejections at {LEVEL:.0%} in {N_NULL} null data sets of {N_PAIRS} pairs")
    for test in found[0]:
        k = sum(p[test] <= LEVEL for p in found)
        low, high = binomial_interval(k, N_NULL)
        print(f"  {test:<32}{k / N_NULL:7.3f}  [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "gpt2-6l")
