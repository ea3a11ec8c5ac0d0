"""What rules cost: CPU time and memory of one forward and backward pass under every preset, as ratios to the plain
gradient.

    python -m tests.benchmarks.rules             # a 12-layer model of GPT-2's size, a few minutes on one thread
    python -m tests.benchmarks.rules --layers 4

8 prompts of 15 tokens, float32, one thread, process time. Presets take turns, so that a busy machine slows all alike;
memory is the peak of a fresh process per preset, less that of the same process before its first pass.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import mechwork as mw
from mechwork.relevance import PRESETS, Composite
from mechwork.runs import record_run
from tests.benchmarks.common import random_task

ROUNDS = 3


def main() -> None:
    """Print one row per preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, task = mw.load_model(hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=args.layers)).eval()), random_task()
    if args.memory_of:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading (Linux)
        before = memory("VmRSS")
        one_pass(model, task, PRESETS[args.memory_of])
        print(memory("VmHWM") - before)
        return
    presets = {name: preset for name, preset in PRESETS.items() if not preset.grad_drop}
    times: dict[str, list[float]] = {name: [] for name in presets}
    for _ in range(ROUNDS):
        for name, preset in presets.items():
            begun = time.process_time()
            one_pass(model, task, preset)
            times[name].append(time.process_time() - begun)
    seconds = {name: sorted(found)[ROUNDS // 2] for name, found in times.items()}
    added = {name: memory_of(name, args.layers) for name in presets}
    print(f"{'preset':<12}{'CPU-s':>8}{'ratio':>8}{'+MiB':>8}{'ratio':>8}")
    for name in presets:
        time_ratio, memory_ratio = seconds[name] / seconds["gradient"], added[name] / added["gradient"]
        print(f"{name:<12}{seconds[name]:8.3f}{time_ratio:8.2f}{added[name]:8.0f}{memory_ratio:8.2f}")


def one_pass(model: Any, task: mw.Task, preset: Composite) -> None:
    """From the metric back to the stream entering block 0."""
    with preset.context(model):
        run = record_run(model, task.pairs, ["resid_pre"], grad=True)
        torch.autograd.grad(task.metric(run.logits, task.pairs).sum(), run.layers["resid_pre"][0])


def memory_of(preset: str, layers: int) -> float:
    """Peak MiB that one pass adds in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.rules", "--layers", str(layers), "--memory-of", preset]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def memory(kind: str) -> float:
    """Resident memory of this process in MiB: now (``VmRSS``) or at its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


if __name__ == "__main__":
    main()
