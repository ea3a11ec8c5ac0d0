"""What prompts of 2,000 tokens take on a real model: ``python -m tests.benchmarks.long [TOKENS] [ROW]``.

One pair of prompts: a sentence with two names, text of this documentation, and the question. Clean and corrupt differ
in the first sentence already, so nothing is shared. Every row runs in a process of its own, under its budget: MiB that
it adds at its highest to the loaded model, CPU-seconds, and F, one plain forward of the clean prompt in that process.
The model: the file that MECHWORK_REAL_MODEL names, else ``gpt2-12l``. A ROW is a part of a name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mechwork as mw
from mechwork.ablation.heads import study_heads
from mechwork.circuits.scoring.positions import score_positions
from mechwork.tasks.build import build_task
from mechwork.tasks.rows import text_pairs
from tests.benchmarks.common import cpu
from tests.benchmarks.edges import added_peak

SITES = ["resid_pre", "attn_out", "mlp_out"]
PAGES = Path(__file__).parents[2] / "notebooks" / "docs"
QUESTION = " That is all about it. When Mary and John went to the store, {} gave a drink to"
NAMES = (("John", "Mary"), ("Mary", "John"))


def long_task(model: Any, n_tokens: int) -> mw.Task:
    """One pair of about `n_tokens` tokens with the spans FIRST (the first sentence), TEXT and the question."""
    text = " ".join(" ".join(page.read_text(encoding="utf-8").split()) for page in sorted(PAGES.glob("*.md")))
    words = text.replace("<", "").replace("Mary", "she").replace("John", "he").split()

    def sides(n_words: int) -> list[str]:
        body = " ".join(words[:n_words])
        return [f"{a} was late, {b} was not. {body}{QUESTION.format(a)}" for a, b in NAMES]

    def length(n_words: int) -> int:
        return len(model.tokenizer(sides(n_words)[0])["input_ids"])

    low, high = 0, min(n_tokens, len(words))  # a word has a token at least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(middle) <= n_tokens else (low, middle)
    clean, corrupt = sides(low)
    starts = [side.index(words[0]) for side in (clean, corrupt)]
    ends = [len(side) - len(QUESTION.format(a)) for side, (a, _) in zip((clean, corrupt), NAMES, strict=True)]
    spans = [{"FIRST": [0, a], "TEXT": [a, b]} for a, b in zip(starts, ends, strict=True)]
    row = {
        "clean": clean, "corrupt": corrupt, "correct": " Mary", "incorrect": " John",
        "spans": spans[0], "corrupt_spans": spans[1],
    }  # fmt: skip
    return build_task(model, "long", text_pairs([row]))


def plain(model: Any, task: mw.Task) -> None:
    with torch.no_grad():
        model(task.pairs.clean_tokens, logits_to_keep=1)


BUDGET = "3GB"
"""Of the first three calls; the default, 1 GiB, holds what a pass keeps and not what two runs record of every layer."""

WORK: dict[str, Callable[[Any, mw.Task], Any]] = {
    "plain forward": plain,
    "attribute relp, 3 sites": lambda m, t: mw.attribute(
        m, t, SITES, rules="relp", positions="spans", memory_budget=BUDGET
    ),
    "relevance of tokens": lambda m, t: mw.attribute_tokens(
        m, t.pairs.clean_tokens[0].tolist(), (" Mary", " John"), memory_budget=BUDGET
    ),
    "edges by span, eap": lambda m, t: score_positions(
        m, t, positions="spans", preset="eap", intervals=False, memory_budget=BUDGET
    ),
    "edges, eap-ig 5": mw.score_edges,
    "effects of 3 heads": lambda m, t: study_heads(m, t, ["a0.h0", "a2.h1", "a5.h1"]),
    "attribute z": lambda m, t: mw.attribute(m, t, ["z"], rules="relp", positions="spans"),
}


def one(name: str, n_tokens: int) -> None:
    """One row, in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = mw.load_model(os.environ.get("MECHWORK_REAL_MODEL", "gpt2-12l"))
    task = long_task(model, n_tokens)
    unit = cpu(lambda: plain(model, task))
    found: list[Any] = []
    spent: list[float] = []
    mib = added_peak(lambda: spent.append(cpu(lambda: found.append(WORK[name](model, task)))))
    n = task.pairs.clean_tokens.shape[1]
    print(f"{name:<26}{n:6d} tokens{mib:8.0f} MiB{spent[0]:9.1f} CPU-s{spent[0] / unit:8.1f} F", flush=True)


def main(n_tokens: int, *words: str) -> None:
    """Every row in a process of its own."""
    for name in WORK:
        if not words or any(word in name for word in words):
            subprocess.run([sys.executable, "-m", "tests.benchmarks.long", "one", name, str(n_tokens)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]))
        sys.exit()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, *sys.argv[2:])
