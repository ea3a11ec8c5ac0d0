"""CPU time and memory of edge scores and circuit evaluation on random models, and how the cost grows.

    python -m tests.benchmarks.edges            # GPT-2 size against TransformerLens, and the growth table: ten minutes
    python -m tests.benchmarks.edges --no-peers # without TransformerLens
    python -m tests.benchmarks.edges --big      # all edges of a Llama-shaped model of 1.2 billion parameters, 2 GB
    budget
    python -m tests.benchmarks.edges --neurons  # neurons at 8B widths (4 layers) and edges of the 30 strongest, 2 GB

12 layers, 12 heads, d_model 768, vocabulary 50257, 8 pairs of 15 tokens, float32, one thread, process time, in units of
one plain forward of the batch (all logits). TransformerLens takes one pair at a time: it runs on one pair and is scaled
up. Peak memory is that of a process of its own per row, above the loaded model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformer_lens.tools.analysis import attribution_patching as tl_attribution

import mechwork as mw
from mechwork.circuits import EdgeSpace, score_neuron_edges, study_neurons
from mechwork.circuits.graph.select import select_random
from mechwork.circuits.scoring.positions import score_positions
from mechwork.circuits.testing.evaluate import EvaluationSettings, measure_circuits
from mechwork.models.anatomy import read_anatomy
from mechwork.relevance import GRADIENT
from tests.benchmarks.common import backward, cpu, plain_forward, tl_edges

N_PAIRS, N_POS, D_VOCAB = 8, 15, 50_257
N_KEPT = 20_000


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--neurons", action="store_true")
    parser.add_argument("--peak", choices=sorted(WORK), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.peak:
        print(json.dumps(peak(args.peak)))
    elif args.big:
        big()
    elif args.neurons:
        neurons()
    else:
        compare(peers=not args.no_peers)
        growth()


def gpt2(n_layers: int = 12, n_heads: int = 12, d_vocab: int = D_VOCAB) -> Any:
    config = hf.GPT2Config(n_layer=n_layers, n_head=n_heads, vocab_size=d_vocab)
    return mw.load_model(hf.GPT2LMHeadModel(config).eval())


def random_task(n_pairs: int = N_PAIRS, n_pos: int = N_POS, d_vocab: int = D_VOCAB) -> mw.Task:
    """Random pairs that differ at two positions."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(d_vocab, (n_pairs, n_pos), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 3], corrupt[:, 7] = (clean[:, 3] + 1) % d_vocab, (clean[:, 7] + 1) % d_vocab
    return mw.Task.from_tokens(clean, corrupt, list(range(n_pairs)), list(range(n_pairs, 2 * n_pairs)))


WORK: dict[str, Callable[[Any, mw.Task], Any]] = {
    "forward + backward": lambda model, task: backward(model, task, GRADIENT),
    "eap": lambda model, task: mw.score_edges(model, task, preset="eap"),
    "relp": lambda model, task: mw.score_edges(model, task, preset="relp"),
    "clean-corrupt": lambda model, task: mw.score_edges(model, task, preset="clean-corrupt"),
    "eap-ig, 5 steps": lambda model, task: mw.score_edges(model, task, preset="eap-ig"),
    "eap by position": lambda model, task: score_positions(model, task, preset="eap"),
}


def peak(name: str) -> float:
    """Added peak memory in MiB of one piece of work in this process, above the loaded model that has run once."""
    model, task = gpt2(), random_task()
    plain_forward(model, task[:1])
    return added_peak(lambda: WORK[name](model, task))


def added_peak(work: Callable[[], Any]) -> float:
    """MiB by which the resident memory rose above its level at the start, at its highest (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the present level
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_elsewhere(name: str) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.edges", "--peak", name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def compare(*, peers: bool) -> None:
    model, task = gpt2(), random_task()
    space = EdgeSpace.of(read_anatomy(model))
    WORK["eap"](model, task[:2])
    forward = cpu(lambda: plain_forward(model, task), repeat=5)
    print(f"one forward of {N_PAIRS} x {N_POS} tokens: {forward:.3f} CPU-s; {space.n_edges} edges\n")
    print(f"{'what':<44}{'CPU-s':>9}{'forwards':>10}{'TransformerLens':>17}{'ratio':>8}{'+MiB':>8}")
    theirs = {"eap": tl_edges(model, task) * N_PAIRS} if peers else {}
    for name, work in WORK.items():
        seconds = cpu(lambda work=work: work(model, task), repeat=3)
        row(name, seconds, forward, theirs.get(name), peak_elsewhere(name))
    masks = [
        select_random(space, max(1, int(f * space.n_edges)), 0)
        for f in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    ]
    seconds = cpu(lambda: measure_circuits(model, task, space, masks, EvaluationSettings()))
    row("ten random circuits, per circuit", seconds / 10, forward)
    scores = WORK["eap"](model, task)
    seconds = cpu(lambda: mw.evaluate(model, task, scores, n_random=0))
    row("ten sizes x 2 rankings, per circuit", seconds / 20, forward)
    if peers:
        other = tl_faithfulness(model, task)
        row("the same, per pair and size", seconds / 20 / N_PAIRS, forward, other)


def row(what: str, seconds: float, forward: float, theirs: float | None = None, added: float | None = None) -> None:
    versus = f"{theirs:17.2f}{theirs / seconds:7.1f}x" if theirs is not None else " " * 25
    print(
        f"{what:<44}{seconds:9.3f}{seconds / forward:10.2f}{versus}{'' if added is None else f'{added:8.0f}'}",
        flush=True,
    )


def tl_faithfulness(model: Any, task: mw.Task) -> float:
    """CPU-seconds of TransformerLens' faithfulness of one pair with 20,000 edges kept, per size."""
    one = task.pairs[:1]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return task.metric(logits, one).mean()

    config = tl_attribution.EdgeAttributionConfig(granularity="edge")
    model.requires_grad_(True)
    try:
        found = tl_attribution.attribution_patch(model, one.clean_tokens, one.corrupt_tokens, metric, config)
        kept = found.top_edges(k=N_KEPT)
        begun = time.process_time()
        tl_attribution.faithfulness(model, one.clean_tokens, one.corrupt_tokens, metric, kept)
        return time.process_time() - begun
    finally:
        model.requires_grad_(False)


def growth() -> None:
    """EAP over layers, heads, tokens and pairs: forwards stay nearly constant while products grow with the number of
    edges.
    """
    print(
        f"\n{'layers':>7}{'heads':>7}{'tokens':>8}{'pairs':>7}{'edges':>9}{'forward s':>11}{'EAP s':>9}{'forwards':>10}"
    )
    for layers, heads, tokens, pairs in (
        (3, 12, 15, 8), (6, 12, 15, 8), (12, 12, 15, 8), (24, 12, 15, 8),
        (12, 6, 15, 8), (12, 24, 15, 8),
        (12, 12, 30, 8), (12, 12, 60, 8),
        (12, 12, 15, 2), (12, 12, 15, 16),
    ):  # fmt: skip
        model, task = gpt2(layers, heads), random_task(pairs, tokens)
        WORK["eap"](model, task[:1])
        forward = cpu(lambda model=model, task=task: plain_forward(model, task), repeat=3)
        seconds = cpu(lambda model=model, task=task: WORK["eap"](model, task), repeat=3)
        n = EdgeSpace.of(read_anatomy(model)).n_edges
        print(
            f"{layers:7d}{heads:7d}{tokens:8d}{pairs:7d}{n:9d}{forward:11.3f}{seconds:9.3f}{seconds / forward:10.2f}",
            flush=True,
        )


def big() -> None:
    """All edges of 4 pairs x 16 tokens of a random Llama of 16 layers, d_model 2048, 32 query and 8 key/value heads, in
    2 GB.
    """
    model, task = llama(num_hidden_layers=16, hidden_size=2048, intermediate_size=8192), random_task(4, 16, 128_256)
    space = EdgeSpace.of(read_anatomy(model))
    forward = cpu(lambda: plain_forward(model, task), repeat=3)
    found: list[mw.EdgeScores] = []
    begun = time.process_time()
    added = added_peak(lambda: found.append(mw.score_edges(model, task, preset="eap", memory_budget="2GB")))
    seconds = time.process_time() - begun
    n = sum(p.numel() for p in model.parameters())
    print(f"{n / 1e9:.2f} billion parameters, {space.n_edges} edges, 4 pairs x 16 tokens, budget 2 GB")
    print(f"{seconds:.1f} CPU-s = {seconds / forward:.2f} forwards; +{added:.0f} MiB")
    print(f"per edge {1e6 * seconds / space.n_edges:.1f} microseconds and {added * 2**20 / space.n_edges:.0f} bytes")
    print("strongest:", found[0].top(3))


def neurons() -> None:
    """4 pairs x 16 tokens of a random Llama of 4 layers as wide as 8B: d_model 4096, d_mlp 14336; what a layer adds to
    memory, it adds as often as there are layers.
    """
    model, task = llama(num_hidden_layers=4, hidden_size=4096, intermediate_size=14_336), random_task(4, 16, 128_256)
    forward = cpu(lambda: plain_forward(model, task), repeat=3)
    found: list[Any] = []
    works: dict[str, Callable[[], Any]] = {
        "study_neurons": lambda: study_neurons(model, task, positions="all", counts=(100, 1000), memory_budget="2GB"),
        "score_neuron_edges": lambda: score_neuron_edges(
            model, task, found[0], n=30, positions="all", memory_budget="2GB"
        ),
    }
    n = sum(p.numel() for p in model.parameters())
    print(f"{n / 1e9:.2f} billion parameters, 57,344 neurons, 4 pairs x 16 tokens, budget 2 GB")
    for name, work in works.items():
        begun = time.process_time()
        added = added_peak(lambda work=work: found.append(work()))
        seconds = time.process_time() - begun
        print(f"{name:<20}{seconds:8.1f} CPU-s = {seconds / forward:.1f} forwards; +{added:.0f} MiB", flush=True)


def llama(**sizes: Any) -> Any:
    """A random Llama of 32 query and 8 key/value heads."""
    config = hf.LlamaConfig(
        num_attention_heads=32, num_key_value_heads=8, vocab_size=128_256, tie_word_embeddings=True, **sizes
    )
    return mw.load_model(hf.LlamaForCausalLM(config).eval())


if __name__ == "__main__":
    main()
