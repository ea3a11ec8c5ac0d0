"""What the main pieces of work cost on a real model, in forwards: ``python -m tests.benchmarks.real [MODEL] [ROW]``.

MODEL is a path or a name; default: the file that MECHWORK_REAL_MODEL names, else ``gpt2-12l``. ROWs choose rows by a
part of their names. 8 IOI pairs of one length (20 tokens on SmolLM2-135M), one thread, CPU time. F is one plain forward
of the clean prompts with all logits; it is timed before and after each row, and the smaller counts. Each row is the
faster of two runs.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

import mechwork as mw
from mechwork.circuits.graph.select import select_random
from mechwork.circuits.scoring.nodes import score_nodes
from mechwork.circuits.testing.evaluate import measure_circuits
from tests.benchmarks.common import cpu, plain_forward

N_PAIRS = 8
SITES = ["resid_pre", "attn_out", "mlp_out"]


def one_length(model: Any) -> mw.Task:
    """The IOI pairs of the commonest length."""
    task = mw.tasks.ioi(model, n=96, seed=0)
    lengths = task.pairs.mask.sum(dim=1).tolist()
    common = Counter(lengths).most_common(1)[0][0]
    rows = [i for i, n in enumerate(lengths) if n == common][:N_PAIRS]
    return task[rows]


def rows(model: Any, task: mw.Task) -> dict[str, Callable[[], Any]]:
    """Every row of the table, by what it says."""
    scores = mw.score_edges(model, task, preset="relp")
    space, n = scores.space, scores.space.n_edges

    def circuits(*masks: Any) -> Callable[[], Any]:
        return lambda: measure_circuits(model, task, space, masks)

    found: dict[str, Callable[[], Any]] = {
        "plain forward": lambda: plain_forward(model, task),
        "attribute relp, 3 sites": lambda: mw.attribute(model, task, SITES, rules="relp"),
        "attribute gradient, 3 sites": lambda: mw.attribute(model, task, SITES, rules="gradient"),
        "score_edges relp": lambda: mw.score_edges(model, task, preset="relp"),
        "score_edges gradient": lambda: mw.score_edges(model, task, preset="eap"),
        "score_edges eap-ig 5": lambda: mw.score_edges(model, task, preset="eap-ig"),
        "score_nodes relp": lambda: score_nodes(model, task, preset="relp"),
    }
    for percent in (0.1, 1.0, 10.0, 50.0):
        size = max(1, int(percent / 100 * n))
        chosen = scores.circuit(size).mask
        other = [scores.circuit(size + k).mask for k in (1, 2)]
        found[f"circuit {percent:g} %"] = circuits(chosen)
        found[f"3 circuits {percent:g} %"] = circuits(chosen, *other)
        found[f"random circuit {percent:g} %"] = circuits(select_random(space, size, 0))
    found["evaluate, ten sizes"] = lambda: mw.evaluate(model, task, scores)
    return found


def main(model_name: str, *words: str) -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = mw.load_model(model_name)
    task = one_length(model)
    n_pairs, n_pos = task.pairs.clean_tokens.shape
    plain_forward(model, task)
    print(f"{n_pairs} pairs x {n_pos} tokens; F = {cpu(lambda: plain_forward(model, task), 3):.3f} CPU-s")
    for name, work in rows(model, task).items():
        if words and not any(word in name for word in words):
            continue
        once = "evaluate" in name
        before = min(cpu(lambda: plain_forward(model, task)) for _ in range(2))
        spent = min(cpu(work) for _ in range(1 if once else 2))
        unit = min(before, *(cpu(lambda: plain_forward(model, task)) for _ in range(2)))
        print(f"{name:<32}{spent:>9.2f} CPU-s{spent / unit:>8.2f} F", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:] or [os.environ.get("MECHWORK_REAL_MODEL", "gpt2-12l")]
    main(*arguments)
