"""CPU time of ablation sweeps through the exact engine against one plain ablated forward per target.

    python -m tests.benchmarks.ablation             # a random model of GPT-2's size: some minutes on one thread
    python -m tests.benchmarks.ablation --small     # 6 layers of width 256, a vocabulary of 5000

8 pairs of 15 tokens, float32, one thread, process time; median of the repetitions. The plain loop runs the whole model
with one hook per head and reads the last token's logits of a full unembedding; it is timed on some heads and scaled up.
Fitting the means is left out on both sides.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from typing import Any

import torch
import transformers as hf

import mechwork as mw
from mechwork.ablation import AblationSpec, all_heads, fit_ablation
from mechwork.ablation.units import given_by
from mechwork.models.anatomy import read_anatomy
from mechwork.patching.exact import plan_sweep

from .common import N_PAIRS, N_POS, cpu

PLAIN = 6
"""Heads on which the plain loop is timed."""


def main() -> None:
    """Print one row per kind of ablation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a smaller model")
    small = parser.parse_args().small
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = hf.GPT2Config(n_layer=6, n_head=8, n_embd=256, vocab_size=5000) if small else hf.GPT2Config()
    model: Any = mw.load_model(hf.GPT2LMHeadModel(config).eval())
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(config.vocab_size, (N_PAIRS, N_POS), generator=generator)
    task = mw.Task.from_tokens(clean, (clean + 1) % config.vocab_size, list(range(8)), list(range(8, 16)))
    names = all_heads(read_anatomy(model))
    print(f"{len(names)} heads, {N_PAIRS} pairs of {N_POS} tokens")
    print(f"{'ablation':<18}{'plain, ms per head':>20}{'engine, ms per head':>21}{'ratio':>8}")
    for kind in ("zero", "mean", "mean_by_position"):
        fitted = fit_ablation(model, AblationSpec(names, kind), task if kind != "zero" else None)
        some = [names[i * len(names) // PLAIN] for i in range(PLAIN)]
        plain = cpu(lambda some=some, fitted=fitted: [_plain(model, task, fitted, name) for name in some], 3) / PLAIN
        job = plan_sweep(model, task, ["z"], direction="noise", positions="all")
        job = replace(job, given=given_by(model, task, {"z": fitted}))
        engine = cpu(lambda job=job: job.run(), 1) / len(names)
        print(f"{kind:<18}{plain * 1e3:>20.1f}{engine * 1e3:>21.1f}{plain / engine:>7.1f}x", flush=True)


def _plain(model: Any, task: mw.Task, fitted: Any, name: str) -> torch.Tensor:
    one = replace(fitted, spec=fitted.spec.only(name))
    with torch.no_grad(), one.applied(model, task.pairs):
        return task.measure(model(task.pairs.clean_tokens))


if __name__ == "__main__":
    main()
