"""CPU time of patching, scoring and evaluating on a random model of GPT-2's size, in forwards and against TransformerLens.

    python -m tests.benchmarks.speed            # everything, about ten minutes on one thread
    python -m tests.benchmarks.speed --layers 4 # a smaller model, for a quick look

12 layers, 12 heads, d_model 768, vocabulary 50257, 8 pairs of 15 tokens, float32, one thread, process time; the model
itself is timed in the same run, so that ratios can be compared between machines. TransformerLens runs on a few cells or
one pair and is scaled up, as each of its cells and pairs costs the same.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import pandas
import torch
import transformers as hf
from transformer_lens import patching as tl_patching
from transformer_lens.tools.analysis import attribution_patching as tl_attribution

import mechwork as mw
from mechwork.relevance import GRADIENT, RELP
from mechwork.runs import record_run

N_PAIRS, N_POS, D_VOCAB = 8, 15, 50_257
TL_CELLS = 6


def main() -> None:
    """Print one row per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    layers = parser.parse_args().layers
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = mw.load_model(hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=layers)).eval())
    task = random_task()
    forward = cpu(lambda: plain_forward(model, task), repeat=5)
    print(f"one forward of {N_PAIRS} x {N_POS} tokens, {layers} layers: {forward:.3f} CPU-s\n")
    print(f"{'what':<58}{'CPU-s':>9}{'forwards':>10}{'TransformerLens':>17}{'ratio':>8}{'+MiB':>8}")

    def row(what: str, work: Callable[[], Any], theirs: float | None = None, per: int = 1) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = cpu(work) / per
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        versus = f"{theirs:17.2f}{theirs / seconds:7.1f}x" if theirs is not None else " " * 25
        print(f"{what:<58}{seconds:9.3f}{seconds / forward:10.2f}{versus}{added:8.0f}", flush=True)

    cells = layers * N_POS
    theirs = tl_cell(model, task, "resid_pre") * cells
    row(f"exact resid_pre by position, {cells} cells", lambda: mw.patch(model, task, ["resid_pre"]), theirs)
    row(f"exact attn_out by position, {cells} cells", lambda: mw.patch(model, task, ["attn_out"]), theirs)
    row(
        f"exact z of all heads, {layers * 12} cells", lambda: mw.patch(model, task, ["z"]), theirs / cells * layers * 12
    )
    plain = cpu(lambda: backward(model, task, GRADIENT), repeat=3)
    row("forward + backward, gradient", lambda: backward(model, task, GRADIENT))
    row("forward + backward, relp", lambda: backward(model, task, RELP))
    print(f"{'  relp / gradient':<58}{cpu(lambda: backward(model, task, RELP), repeat=3) / plain:9.2f}")
    row("estimates at four sites, relp", lambda: mw.attribute(model, task, ["resid_pre", "attn_out", "mlp_out", "z"]))
    edges = tl_edges(model, task) * N_PAIRS
    row("all edges, EAP", lambda: mw.score_edges(model, task, rules="gradient"), edges)
    row("all edges, EAP-IG with 5 steps", lambda: mw.score_edges(model, task, rules="gradient", ig_steps=5))
    row("all edges, relp", lambda: mw.score_edges(model, task, rules="relp"), edges)
    scores = mw.score_edges(model, task, rules="gradient")
    row("ten sizes x 2 rankings, per circuit", lambda: mw.evaluate(model, task, scores, n_random=0), per=22)


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


def tl_cell(model: Any, task: mw.Task, site: str) -> float:
    """CPU-seconds of one of TransformerLens' cells: one whole forward with one hook."""
    with torch.no_grad():
        cache = model.run_with_cache(task.pairs.clean_tokens)[1]
        index = pandas.DataFrame({"layer": [0, 1] * (TL_CELLS // 2), "pos": range(TL_CELLS)})
        work = lambda: tl_patching.generic_activation_patch(  # noqa: E731
            model,
            task.pairs.corrupt_tokens,
            cache,
            lambda logits: task.metric(logits, task.pairs).mean(),
            tl_patching.layer_pos_patch_setter,
            site,
            index_df=index,
        )
        return cpu(work) / TL_CELLS


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


if __name__ == "__main__":
    main()
