"""CPU time of exact sweeps against TransformerLens, and how far each is from the floating-point floor.

    python -m tests.benchmarks.sweep             # about a quarter of an hour on one thread
    python -m tests.benchmarks.sweep --cuda      # the same on a GPU
    python -m tests.benchmarks.sweep --quick     # one row

A random model of GPT-2's size (12 layers, d_model 768, vocabulary 50257), 8 pairs of 15 tokens, float32, one thread,
process time. The pairs differ from the first token on, so that no cell is skipped because its values agree.
TransformerLens costs the same per cell everywhere, so it runs on a few cells and is scaled up; ours run whole. *Floor*:
the work that no implementation avoids, as a share of whole forwards: per cell (L - l) / L x (T - p) / T of the blocks,
at the speed at which the whole forward runs its blocks, and no unembedding.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import pandas
import torch
import transformers as hf
from transformer_lens import patching as tl_patching

import mechwork as mw
from mechwork.patching import Tricks

N_LAYERS, N_HEADS, N_PAIRS, N_POS, D_VOCAB = 12, 12, 8, 15, 50_257
TL_CELLS = 6


def main() -> None:
    """Print one row per sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--screen", action="store_true", help="the screened sweep alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = "cuda" if arguments.cuda else "cpu"
    model = mw.load_model(hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=N_LAYERS)).eval(), device=device)
    task = random_task()
    whole, blocks = forward_times(model, task)
    print(
        f"{device}: one forward of {N_PAIRS} x {N_POS} tokens {whole * 1e3:.0f} ms, of it blocks {blocks * 1e3:.0f} ms"
    )
    print(f"{'sweep':<44}{'cells':>7}{'TL ms/cell':>12}{'ms/cell':>9}{'ratio':>8}{'floor':>8}{'of floor':>10}")

    def row(what: str, cells: list[float], theirs: float, work: Callable[[], Any]) -> None:
        ours = clock(work) / len(cells)
        line = f"{what:<44}{len(cells):>7}{theirs * 1e3:>12.0f}{ours * 1e3:>9.1f}{theirs / ours:>7.1f}x"
        if any(cells):  # a screened sweep has no floor: most of its cells are not run
            floor = theirs / (sum(cells) / len(cells) * blocks)
            line += f"{floor:>7.1f}x{theirs / ours / floor:>9.0%}"
        print(line, flush=True)

    def screened(theirs: float) -> None:
        kinds = ["resid_pre", "attn_out", "mlp_out", "z"]
        cells = [0.0] * (3 * N_LAYERS * N_POS + N_LAYERS * N_HEADS * N_POS)
        work = lambda: mw.patch(model, task, kinds, positions="each", screen="relp")  # noqa: E731
        row("screen by relp, verify top 5 % and random 1 %", cells, theirs, work)

    resid = [share(layer, pos) for layer in range(N_LAYERS) for pos in range(N_POS)]
    after = [share(layer + 1, pos) for layer in range(N_LAYERS) for pos in range(N_POS)]
    theirs = tl_cell(model, task, "resid_pre", tl_patching.layer_pos_patch_setter, ("layer", "pos"))
    if arguments.screen:
        screened(theirs)
        return
    row("resid_pre by position", resid, theirs, lambda: mw.patch(model, task, ["resid_pre"]))
    if arguments.quick:
        return
    for kind in ("attn_out", "mlp_out"):
        theirs = tl_cell(model, task, kind, tl_patching.layer_pos_patch_setter, ("layer", "pos"))
        row(f"{kind} by position", after, theirs, lambda kind=kind: mw.patch(model, task, [kind]))
    theirs = tl_cell(model, task, "z", tl_patching.layer_head_vector_patch_setter, ("layer", "head"))
    every = [share(layer, 0) for _ in range(5) for layer in range(N_LAYERS) for _ in range(N_HEADS)]
    kinds = ["z", "q", "k", "v", "pattern"]
    row("heads over all positions, z alone", every[: N_LAYERS * N_HEADS], theirs, lambda: mw.patch(model, task, ["z"]))
    row("heads over all positions, z q k v pattern", every, theirs, lambda: mw.patch(model, task, kinds))
    theirs = tl_cell(model, task, "z", tl_patching.layer_pos_head_vector_patch_setter, ("layer", "pos", "head"))
    by_head = [share for share in after for _ in range(N_HEADS)]
    row("heads by position, z", by_head, theirs, lambda: mw.patch(model, task, ["z"], positions="each"))
    screened(theirs)
    plain = Tricks(suffix=False, readout=False, unchanged=False)
    row(
        "resid_pre by position, bit-equal (no tricks)",
        resid,
        theirs,
        lambda: mw.patch(model, task, ["resid_pre"], tricks=plain),
    )


def share(layer: int, pos: int) -> float:
    """Share of the blocks' work that a cell entering block `layer` at `pos` cannot avoid."""
    return (N_LAYERS - layer) / N_LAYERS * (N_POS - pos) / N_POS


def random_task() -> mw.Task:
    """Random pairs that differ from the first token on."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(D_VOCAB, (N_PAIRS, N_POS), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 0], corrupt[:, 7] = (clean[:, 0] + 1) % D_VOCAB, (clean[:, 7] + 1) % D_VOCAB
    return mw.Task.from_tokens(clean, corrupt, list(range(8)), list(range(8, 16)))


def clock(work: Callable[[], Any], repeat: int = 1) -> float:
    """Median process time on the CPU; wall time, synchronised, when a GPU is in use."""
    times = []
    now = time.perf_counter if torch.cuda.is_available() else time.process_time
    for _ in range(repeat):
        begun = now()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(now() - begun)
    return sorted(times)[len(times) // 2]


def forward_times(model: Any, task: mw.Task) -> tuple[float, float]:
    """Seconds of a whole forward, and of its blocks (a forward that unembeds one column less the same of one block)."""
    tokens = task.pairs.clean_tokens.to(next(model.parameters()).device)
    with torch.no_grad():
        model(tokens)
        whole = clock(lambda: model(tokens), repeat=5)
        blocks = clock(lambda: model(tokens, stop_at_layer=N_LAYERS - 1), repeat=5) * N_LAYERS / (N_LAYERS - 1)
    return whole, blocks


def tl_cell(model: Any, task: mw.Task, site: str, setter: Any, axes: tuple[str, ...]) -> float:
    """Seconds of one of TransformerLens' cells: one whole forward with one hook."""
    with torch.no_grad():
        device = next(model.parameters()).device
        pairs = task.pairs.to(device)
        cache = model.run_with_cache(pairs.clean_tokens)[1]
        index = pandas.DataFrame({axis: list(range(TL_CELLS)) for axis in axes})
        work = lambda: tl_patching.generic_activation_patch(  # noqa: E731
            model,
            pairs.corrupt_tokens,
            cache,
            lambda logits: task.metric(logits, pairs).mean(),
            setter,
            site,
            index_df=index,
        )
        work()
        return clock(work) / TL_CELLS


if __name__ == "__main__":
    main()
