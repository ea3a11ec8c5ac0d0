"""Choices that were measured: ``python -m tests.benchmarks.choices split|precision|compile|peer [MODEL ...]``.

- ``split``: faithfulness on held-out IOI pairs by number of edges, with one key/value reader per group of heads (the
  default) and with one per head (``split_kv``). Percentages of the two graphs are not the same number of edges.
- ``precision``: a forward, a backward and all edges in float32 and bfloat16, and how far the scores are apart.
- ``compile``: a forward and a forward with backward, plain and under ``torch.compile``.
- ``peer``: all edges of one pair (plain gradients) by TransformerLens 4 and here, on a model with split keys and values
  (TransformerLens has no edges under grouped ones); and of 8 pairs by the paper's recipe in plain torch hooks
  (`tests.benchmarks.literal`).

Models default to the bundled ``llama-6l`` and, where MECHWORK_REAL_MODEL names one, a real one. CPU time, one thread.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

import mechwork as mw
from mechwork.relevance import GRADIENT
from tests.benchmarks.common import backward, cpu, plain_forward, tl_edges
from tests.benchmarks.literal import literal_eap
from tests.benchmarks.real import one_length

COUNTS = (50, 100, 200, 400, 700, 1400, 2800, 5600)


def split(name: str) -> None:
    """Faithfulness by number of edges, both ways."""
    print(f"{name}: held-out faithfulness, EAP-IG 5", flush=True)
    for split_kv in (False, True):
        model = mw.load_model(name, split_kv=split_kv)
        task = mw.tasks.ioi(model, n=32, seed=0)
        scores = mw.score_edges(model, task.train, preset="eap-ig")
        n = scores.space.n_edges
        fractions = [count / n for count in COUNTS if count < n]
        curve = mw.evaluate(model, task.test, scores, fractions=fractions, n_random=0)
        cells = "".join(f"{size:7d}:{value:6.3f}" for size, value in zip(curve.sizes, curve.faithfulness, strict=True))
        print(f"  {'per head' if split_kv else 'per group':<10}{n:7d} edges{cells}", flush=True)


def precision(name: str) -> None:
    """What half the bits save and cost."""
    wanted = None
    for dtype in ("float32", "bfloat16"):
        model = mw.load_model(name, dtype=dtype)
        task = mw.tasks.ioi(model, n=16, seed=0).train
        spent = [_faster(work) for work in _works(model, task)]
        scores = mw.score_edges(model, task, preset="eap").values.double()
        wanted = scores if wanted is None else wanted
        top = set(scores.abs().flatten().topk(200).indices.tolist())
        first = set(wanted.abs().flatten().topk(200).indices.tolist())
        both = torch.stack([scores[scores != 0], wanted[scores != 0]])
        print(
            f"{dtype:<10}forward {spent[0]:6.2f}  forward + backward {spent[1]:6.2f}  edges {spent[2]:6.2f} CPU-s; "
            f"Pearson with float32 {torch.corrcoef(both)[0, 1]:.4f}, {len(top & first)} of the 200 strongest the same",
            flush=True,
        )


def compiled(name: str) -> None:
    """Whether TorchInductor makes the passes shorter; hooks on every site are part of what it has to trace."""
    model = mw.load_model(name)
    task = mw.tasks.ioi(model, n=16, seed=0).train
    forward, both, _ = _works(model, task)
    print(f"plain      forward {_faster(forward):6.2f}  forward + backward {_faster(both):6.2f} CPU-s", flush=True)
    original = model.original_model
    tokens = task.pairs.clean_tokens
    bare = cpu(lambda: original(tokens))
    quick = torch.compile(original)
    first = cpu(lambda: quick(tokens))
    later = _faster(lambda: quick(tokens))
    print(f"the module without hooks {bare:6.2f}; compiled {later:6.2f}, first {first:6.2f} CPU-s")


def peer(name: str) -> None:
    """One pair, the same edges, the same run."""
    model = mw.load_model(name, split_kv=True)
    task = one_length(model)[:1]
    forward = _faster(lambda: plain_forward(model, task))
    ours, theirs = _faster(lambda: mw.score_edges(model, task, preset="eap")), tl_edges(model, task)
    print(
        f"{name}: forward {forward:.2f} CPU-s; TransformerLens {theirs:.2f} CPU-s = {theirs / forward:.0f} F, "
        f"mechwork {ours:.2f} CPU-s = {ours / forward:.1f} F",
        flush=True,
    )
    model = mw.load_model(name)
    task = one_length(model)
    forward = _faster(lambda: plain_forward(model, task))
    scores = mw.score_edges(model, task, preset="eap")
    apart = (literal_eap(model, task) * scores.space.mask - scores.values).abs().max() / scores.values.abs().max()
    spent = [_faster(lambda: mw.score_edges(model, task, preset="eap")), cpu(lambda: literal_eap(model, task))]
    print(
        f"  {len(task)} pairs, grouped: forward {forward:.2f} CPU-s; literal hooks {spent[1] / forward:.1f} F, "
        f"mechwork {spent[0] / forward:.1f} F; largest difference {float(apart):.0e} of the largest score",
        flush=True,
    )


def _works(model: Any, task: mw.Task) -> tuple[Callable[[], Any], ...]:
    return (
        lambda: plain_forward(model, task),
        lambda: backward(model, task, GRADIENT),
        lambda: mw.score_edges(model, task, preset="eap"),
    )


def _faster(work: Callable[[], Any]) -> float:
    work()
    return min(cpu(work) for _ in range(2))


def main(what: str, *models: str) -> None:
    """One choice on each of the models."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    real = os.environ.get("MECHWORK_REAL_MODEL")
    choices = {"split": split, "precision": precision, "compile": compiled, "peer": peer}
    for name in models or ("llama-6l", *([real] if real else [])):
        choices[what](name)


if __name__ == "__main__":
    main(*sys.argv[1:])
