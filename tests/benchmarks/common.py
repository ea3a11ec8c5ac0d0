"""What the benchmarks share: the random pairs, CPU time, and what a plain pass and TransformerLens' edges cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformer_lens.tools.analysis import attribution_patching as tl_attribution

import mechwork as mw
from mechwork.runs import record_run

N_PAIRS, N_POS, D_VOCAB = 8, 15, 50_257


def random_task() -> mw.Task:
    """Random pairs that differ at two positions."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(D_VOCAB, (N_PAIRS, N_POS), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 3], corrupt[:, 7] = (clean[:, 3] + 1) % D_VOCAB, (clean[:, 7] + 1) % D_VOCAB
    return mw.Task.from_tokens(clean, corrupt, list(range(8)), list(range(8, 16)))


def cpu(work: Callable[[], Any], repeat: int = 1) -> float:
    """Median process time."""
    times = []
    for _ in range(repeat):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return sorted(times)[len(times) // 2]


def plain_forward(model: Any, task: mw.Task) -> None:
    with torch.no_grad():
        model(task.pairs.clean_tokens)


def backward(model: Any, task: mw.Task, rules: Any) -> None:
    """What every estimate rests on: one forward and one backward from the metric to the embedding."""
    with rules.context(model):
        run = record_run(model, task.pairs, ["resid_pre"], grad=True)
        torch.autograd.grad(task.metric(run.logits, task.pairs).sum(), run.layers["resid_pre"][0])


def tl_edges(model: Any, task: mw.Task) -> float:
    """CPU-seconds of TransformerLens' edge attribution of one pair (it takes pairs one at a time)."""
    one = task.pairs[:1]
    config = tl_attribution.EdgeAttributionConfig(granularity="edge")
    model.requires_grad_(True)
    try:
        return cpu(
            lambda: tl_attribution.attribution_patch(
                model, one.clean_tokens, one.corrupt_tokens, lambda logits: task.metric(logits, one).mean(), config
            )
        )
    finally:
        model.requires_grad_(False)
