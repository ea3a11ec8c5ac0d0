"""Induction by hand: a previous-token head writes what the induction head's keys read (Elhage et al. 2021; Olsson et
al. 2022).

Prompts ``BOS A B C D A`` -> B. In the corrupt prompt A and C are exchanged, ``BOS C B A D A`` -> D: queries and values
at what is attended to are the same, only *which token came before* B and D differs. So the difference travels from the
embeddings through the previous-token head's values into the induction head's keys, and nowhere else. The second head of
each layer writes real differences into a subspace that nobody reads.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

from ...tasks.task import Task
from .case import KnownCircuit
from .weights import SHARP, BlockWeights, Blueprint, HeadWeights, NamedStream, copy_head, one_hot

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_LETTERS = 6
N_POS = 6


def build_induction() -> TransformerBridge:
    """Two attention-only layers of two heads."""
    s = NamedStream(token=N_LETTERS, pos=N_POS, previous=N_LETTERS, out=N_LETTERS, junk=N_LETTERS)
    token, pos = s.read("token"), s.read("pos")
    before = pos @ one_hot([0, *range(N_POS - 1)], N_POS)  # a query at p looks for the key at p - 1
    unembed = torch.cat([torch.zeros(s.d_model, 1), s.read("out")], dim=1)
    return Blueprint(
        name="induction",
        embed=s.write("token", torch.cat([torch.zeros(1, N_LETTERS), torch.eye(N_LETTERS)])),
        pos=s.write("pos", torch.eye(N_POS)),
        unembed=unembed,
        blocks=[
            BlockWeights([
                HeadWeights(**copy_head(s, "token", "previous"), q=SHARP * before, k=pos),
                HeadWeights(**copy_head(s, "token", "junk"), q=SHARP * pos, k=pos),
            ]),
            BlockWeights([
                HeadWeights(**copy_head(s, "token", "out"), q=SHARP * token, k=s.read("previous")),
                HeadWeights(**copy_head(s, "previous", "junk")),
            ]),
        ],
    ).build()  # fmt: skip


def induction_task(n: int = 16, seed: int = 0) -> Task:
    """``BOS A B C D A`` against ``BOS C B A D A``; B is correct, D incorrect."""
    rng = random.Random(seed)
    rows = [rng.sample(range(1, N_LETTERS + 1), 4) for _ in range(n)]
    return Task.from_tokens(
        [[0, a, b, c, d, a] for a, b, c, d in rows],
        [[0, c, b, a, d, a] for a, b, c, d in rows],
        [b for _, b, _, _ in rows],
        [d for _, _, _, d in rows],
        name="induction by hand",
    )


_MOVED = {
    "input->a0.h0<v>": "the previous-token head reads which token stands before",
    "a0.h0->a1.h0<k>": "the induction head's keys are the previous tokens",
    "a1.h0->logits": "it copies the token it attends to",
}
_CONSTANT = {
    "input->a0.h0<q>": "by its position a token looks one place back; the same in both prompts",
    "input->a0.h0<k>": "positions as keys; the same in both prompts",
    "input->a1.h0<q>": "the last token is what it looks for; the same in both prompts",
    "input->a1.h0<v>": "the token that is copied; the two candidates stand in the same places in both prompts",
}

_CERTAIN = (
    "the induction head attends with certainty, so at either prompt its softmax has derivative 0 and nothing before "
    "it gets a "
    "score; only between the prompts, where attention is divided and the path of EAP-IG has points, is there a gradient"
)

INDUCTION = KnownCircuit(
    name="induction",
    description="previous-token head -> keys of the induction head -> logits, in two attention-only layers",
    citation="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; Olsson et al. 2022, "
    "arXiv:2209.11895",
    build_model=build_induction,
    build_task=induction_task,
    edges={"corrupt": tuple(_MOVED), "zero": (*_MOVED, *_CONSTANT), "mean": (*_MOVED, *_CONSTANT)},
    reasons={**_MOVED, **_CONSTANT},
    explanations={"gradient": _CERTAIN, "relp": _CERTAIN},
)
