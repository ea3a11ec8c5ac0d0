"""Exercises of notebook 0, Inside a transformer."""

from __future__ import annotations

from typing import Any

from .build import Case, judges
from .exercise import Exercise, add


def _rank(answer: Any, model: Any) -> str | None:
    if int(answer) == model.cfg.d_head:
        return None
    if int(answer) == model.cfg.d_model:
        return "this is the size of the product. How narrow is the place that everything passes through?"
    return "a product of two matrices has at most the rank of the narrower one."


def _looks_at(answer: Any) -> str | None:
    known = {
        5: "this is where the same token stood before. It is what came *after* it that is wanted.",
        16: "this is what a previous-token head looks at.",
        18: "a head cannot look ahead.",
        4: "this is one before the earlier mention; it should be on the other side.",
    }
    return (
        None if int(answer) == 6 else known.get(int(answer), "find the same token's first mention, then go on by one.")
    )


INDUCTION_SCORE = """
import torch


def induction_score(pattern, period):
    here = torch.arange(period, 2 * period)
    return pattern[here, here - period + 1].mean()
"""


@judges
def _induction_score() -> list[Case]:
    import torch

    cases = []
    for period in (5, 12):
        scores = torch.randn(2 * period, 2 * period, generator=torch.Generator().manual_seed(period))
        pattern = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf")).softmax(-1)
        here = torch.arange(period, 2 * period)
        right = pattern[here, here - period + 1]
        mistakes = (
            ("this is attention to the earlier mention of the same token.", pattern[here, here - period].mean()),
            ("this is attention to the token just before.", pattern[here, here - 1].mean()),
            ("query and key are swapped: the first axis is the position that looks.",
             pattern[here - period + 1, here].mean()),
            ("this is the sum; the mean is asked for.", right.sum()),
            ("one position too many: the first half ends at period - 1.",
             pattern.diagonal(1 - period).mean()),
            ("the last position of the second half is missing.", right[:-1].mean()),
            ("the last position of the second half is missing.", right[:-1].sum() / period),
            ("this is the mean of a whole block: each query has one key that it should look at.",
             pattern[period:, 1:period + 1].mean()),
        )  # fmt: skip
        cases.append(Case(f"a period of {period}", None, (pattern, period), right.mean(), mistakes))
    return cases


WRITE_OF = """
def write_of(model, layer, head, token):
    return model.W_E[token] @ model.W_V[layer, head] @ model.W_O[layer, head] @ model.W_U
"""


@judges
def _write_of() -> list[Case]:
    import mechwork as mw

    cases = []
    for name in ("attn-only-2l", "attn-only-2l@500"):
        model = mw.load_model(name)
        for layer, head, token in ((1, 0, 300), (0, 1, 1200)):
            embedding, values = model.W_E[token], model.W_V[layer, head]
            other = model.W_V[layer, 1 - head] @ model.W_O[layer, 1 - head]
            mistakes = (
                ("this is the direct path, from the embedding to the logits without the head.", embedding @ model.W_U),
                ("this is the other head of the layer.", embedding @ other @ model.W_U),
                ("this takes W_K in place of W_V: keys say where to look, values what to take along.",
                 embedding @ model.W_K[layer, head] @ model.W_O[layer, head] @ model.W_U),
                ("this takes W_Q in place of W_V: queries say what is looked for, values what to take along.",
                 embedding @ model.W_Q[layer, head] @ model.W_O[layer, head] @ model.W_U),
                ("layer and head are swapped: the first axis of W_V and W_O is the layer.",
                 embedding @ model.W_V[head, layer] @ model.W_O[head, layer] @ model.W_U),
                ("the embedding is still in it: what the head adds is asked for, not the stream afterwards.",
                 embedding @ model.W_U + embedding @ values @ model.W_O[layer, head] @ model.W_U),
                ("these are probabilities: logits are asked for, without a softmax.",
                 (embedding @ values @ model.W_O[layer, head] @ model.W_U).softmax(-1)),
                ("this is what is added to the stream; go on to the logits.", embedding @ values
                 @ model.W_O[layer, head]),
            )  # fmt: skip
            truth = embedding @ values @ model.W_O[layer, head] @ model.W_U
            cases.append(Case(f"{name}, a{layer}.h{head}", model, (model, layer, head, token), truth, mistakes))
    return cases


add(
    Exercise(
        "0.1",
        _rank,
        hint="Look at the shapes: what is the width of a value?",
        solution="rank = model.cfg.d_head",
        why="A head passes only a narrow part of the stream on: it reads from a subspace and writes to one.",
    ),
    Exercise(
        "0.2",
        _looks_at,
        hint="Which token stands at position 17, where did it stand the first time, and what is asked about it?",
        solution="looks_at = 17 - 12 + 1",
        why="It is found because a previous-token head has written there which token came before.",
    ),
    Exercise(
        "0.3",
        _induction_score,
        hint="Two lists of positions, queries and keys, can index a matrix together: pattern[queries, keys].",
        solution=INDUCTION_SCORE,
        why="One diagonal of the pattern. The score says where the head looks, not yet that it is used.",
    ),
    Exercise(
        "0.4",
        _write_of,
        hint="Follow the vector through the table of matrices, and at the end from the stream to logits.",
        solution=WRITE_OF,
        why="The weights alone say what a head would write; no prompt was needed.",
    ),
)
