"""What a tuned lens costs: CPU time per token and peak memory of a training step and of an evaluation, beside a plain
loop.

    python -m tests.benchmarks.lenses                # a model of GPT-2's size (random weights), a few minutes on one
    thread python -m tests.benchmarks.lenses --bundled      # the bundled gpt2-12l

The plain loop records every layer with the host's cache, makes the logits of all layers at once, ``[layer, n,
d_vocab]``, and lets autograd go back through them. Both run the same tokens through the same full translators; losses
are compared first. Float32, one thread, process time, median of three turns; memory is the peak of a fresh process per
row, less that of the same process before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import mechwork as mw
from mechwork.lenses.distil import descend, divergences
from mechwork.lenses.readout import Readout
from mechwork.lenses.states import lens_sites, record_states
from mechwork.lenses.translators import Full, translate
from mechwork.models.anatomy import read_anatomy
from tests.benchmarks.rules import memory

ROUNDS = 3
ROWS = ("training, plain", "training", "evaluation, plain", "evaluation")


def main() -> None:
    """Print one row per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundled", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    work, n = jobs(bundled=args.bundled)
    if args.memory_of:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading (Linux)
        before = memory("VmRSS")
        work[args.memory_of]()
        print(memory("VmHWM") - before)
        return
    losses = {name: job() for name, job in work.items()}
    for name in ROWS[1:]:
        torch.testing.assert_close(losses[name], losses[ROWS[0]], rtol=1e-3, atol=1e-3)
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, job in work.items():
            begun = time.process_time()
            job()
            times[name].append(time.process_time() - begun)
    print(f"{'':<20}{'ms per token':>14}{'ratio':>8}{'+MiB':>8}{'ratio':>8}")
    added = {name: memory_of(name, bundled=args.bundled) for name in ROWS}
    for name in ROWS:
        plain = ROWS[0] if "training" in name else ROWS[2]
        own, other = sorted(times[name])[ROUNDS // 2], sorted(times[plain])[ROUNDS // 2]
        print(f"{name:<20}{1000 * own / n:14.3f}{own / other:8.2f}{added[name]:8.0f}{added[name] / added[plain]:8.2f}")


def jobs(*, bundled: bool) -> tuple[dict[str, Callable[[], torch.Tensor]], int]:
    """Name -> one step over the same tokens, giving each layer's mean divergence in nats; and how many tokens."""
    torch.manual_seed(0)
    model: Any = mw.load_model("gpt2-12l") if bundled else mw.load_model(hf.GPT2LMHeadModel(hf.GPT2Config()).eval())
    anatomy = read_anatomy(model)
    tokens = torch.randint(anatomy.d_vocab, (16, 128) if bundled else (2, 64))
    sites, form = lens_sites(anatomy), Full()
    parts = {name: 0.02 * torch.randn(anatomy.n_layers, *shape) for name, shape in form.shapes(anatomy.d_model).items()}
    live = {name: part.requires_grad_(True) for name, part in parts.items()}

    def of(layer: int) -> dict[str, torch.Tensor]:
        return {name: part[layer] for name, part in live.items()}

    def plain_losses() -> torch.Tensor:
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(anatomy.n_layers)]
        with torch.no_grad():
            logits, cache = model.run_with_cache(tokens, names_filter=names)
            log_p = logits.flatten(0, 1).log_softmax(dim=-1)
        states = torch.stack(
            [translate(form, of(layer), cache[name].flatten(0, 1)) for layer, name in enumerate(names)]
        )
        log_q = (model.ln_final(states) @ model.W_U + model.b_U).log_softmax(dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean(dim=-1)

    def plain_training() -> torch.Tensor:
        with torch.enable_grad():
            losses = plain_losses()
            losses.sum().backward()
        return losses.detach().double()

    def plain_evaluation() -> torch.Tensor:
        with torch.no_grad():
            return plain_losses().double()

    def training() -> torch.Tensor:
        states = [x.flatten(0, 1) for x in record_states(model, tokens, sites)]
        return descend(Readout.of(model), form, [of(layer) for layer in range(anatomy.n_layers)], states)

    def evaluation() -> torch.Tensor:
        states = [x.flatten(0, 1) for x in record_states(model, tokens, sites)]
        maps = [lambda x, layer=layer: translate(form, of(layer), x) for layer in range(anatomy.n_layers)]
        return divergences(Readout.of(model), maps, states).double().mean(dim=1)

    return dict(zip(ROWS, (plain_training, training, plain_evaluation, evaluation), strict=True)), tokens.numel()


def memory_of(name: str, *, bundled: bool) -> float:
    """Peak MiB that one step adds in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.lenses",
        "--memory-of",
        name,
        *(["--bundled"] if bundled else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
