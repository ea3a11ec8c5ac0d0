"""What the main pieces of work cost on a real model, in forwards: ``python -m tests.benchmarks.real [MODEL] [ROW]``.

MODEL is a path or a name; default: the file that MECHWORK_REAL_MODEL names, else ``gpt2-12l``. ROWs choose rows by a
part of their names. 8 IOI pairs of one length (20 tokens on SmolLM2-135M), one thread, CPU time. F is one plain forward
of the clean prompts with all logits; it is timed before and after each row, and the smaller counts. Each row is the
faster of two runs. ``... real growth``: the cost of all edges over layers, on random models of SmolLM2-135M's width.
``... real peak``: MiB that edges add to the loaded model, beside the passes alone, each in a fresh process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as hf

import mechwork as mw
from mechwork.circuits import EdgeSpace
from mechwork.circuits.graph.select import select_random
from mechwork.circuits.scoring.nodes import score_nodes
from mechwork.circuits.testing.evaluate import measure_circuits
from mechwork.models.anatomy import read_anatomy
from mechwork.models.borrow import run_tail
from mechwork.relevance import GRADIENT
from mechwork.runs import record_run
from tests.benchmarks.common import backward, cpu, plain_forward
from tests.benchmarks.edges import added_peak, random_task

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


def growth() -> None:
    """Edges over 6 to 48 layers of random Llama models (9 heads of 64, 3 key/value heads).

    *Passes* are what any such method runs at least: both prompts forward, one backward, the answer's column unembedded.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'layers':>7}{'edges':>9}{'F, CPU-s':>10}{'passes, F':>11}{'eap, F':>9}{'eap / passes':>14}")
    for n_layers in (6, 12, 24, 48):
        config = hf.LlamaConfig(
            num_hidden_layers=n_layers, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True,
        )  # fmt: skip
        model = mw.load_model(hf.LlamaForCausalLM(config).eval())
        task = random_task(N_PAIRS, 24, 49_152)
        mw.score_edges(model, task[:1], preset="eap")
        passes, edges = partial(_passes, model, task), partial(mw.score_edges, model, task, preset="eap")
        forward = [min(cpu(partial(plain_forward, model, task)) for _ in range(3))]
        spent = [min(cpu(work) for _ in range(3)) for work in (passes, edges)]
        forward.append(min(cpu(partial(plain_forward, model, task)) for _ in range(3)))
        unit = min(forward)
        n_edges = EdgeSpace.of(read_anatomy(model)).n_edges
        print(
            f"{n_layers:7d}{n_edges:9d}{unit:10.3f}{spent[0] / unit:11.2f}{spent[1] / unit:9.2f}"
            f"{spent[1] / spent[0]:14.2f}",
            flush=True,
        )


def _passes(model: Any, task: mw.Task) -> None:
    with torch.no_grad():
        run_tail(model, task.pairs.corrupt_tokens, task.pairs.n_tail)
    with torch.enable_grad():
        run = record_run(model, task.pairs, ["resid_pre"], grad=True, n_tail=task.pairs.n_tail)
        torch.autograd.grad(task.measure(run.logits, task.pairs).sum(), run.layers["resid_pre"][0])


def peak(model_name: str, what: str = "") -> None:
    """Without `what`, every row in a process of its own."""
    if not what:
        for what in ("F + B", "passes", "eap", "relp", "eap-ig"):
            subprocess.run([sys.executable, "-m", "tests.benchmarks.real", "peak", model_name, what], check=True)
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = mw.load_model(model_name)
    task = one_length(model)
    plain_forward(model, task[:1])
    work = partial(mw.score_edges, model, task, preset=what)
    if what in ("F + B", "passes"):
        work = partial(_passes, model, task) if what == "passes" else partial(backward, model, task, GRADIENT)
    print(f"{what:<10}{added_peak(work):8.0f} MiB", flush=True)


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
    if sys.argv[1:] == ["growth"]:
        growth()
        sys.exit()
    if sys.argv[1:2] == ["peak"]:
        peak(*(sys.argv[2:] or [os.environ.get("MECHWORK_REAL_MODEL", "gpt2-12l")]))
        sys.exit()
    arguments = sys.argv[1:] or [os.environ.get("MECHWORK_REAL_MODEL", "gpt2-12l")]
    main(*arguments)
