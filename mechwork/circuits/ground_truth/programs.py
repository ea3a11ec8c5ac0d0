"""Three RASP programs as transformers, compiled by hand (Weiss et al. 2021; Lindner et al. 2023).

program | at position i of the word w | how:

- reverse | ``w[n - 1 - i]`` | a0.h0 averages the flag of BOS: 1 / (n + 1); m0 turns it into the length n; m1 n - i; m2
  n - i - 1; a3.h0 fetches
- frac_prevs | share of ``x`` among ``w[0..i]`` | m0 says whether a token is x; a1.h0 averages over the positions up to
  i
- hist | how often ``w[i]`` occurs in w | a0.h0 attends to equal tokens and to BOS, averages the flag of BOS: 1 / (count
  + 1); m0 turns it into the count

Prompts are ``BOS w``, words of one to six letters of ``x y z``; attention is bidirectional. Constants come from a
direction that the embedding sets to 1, as in tracr, so zero ablation of an edge from the input takes them away. For
every input, at every position, the models equal the Python functions below (tests).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...tasks.task import Task
from .case import KnownCircuit
from .weights import SHARP, BlockWeights, Blueprint, HeadWeights, Mlp, NamedStream, copy_head, one_hot

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LETTERS = "xyz"
MAX_LENGTH = 6
N_POS = MAX_LENGTH + 1
BOS, FIRST = 0, 1
"""Token ids: BOS, then the letters, then a program's other outputs."""
COUNTS = FIRST + len(LETTERS)
"""The token of count 1 in `hist`; count n is ``COUNTS + n - 1``."""
FRACTION, NOTHING = COUNTS, COUNTS + 1
"""In `frac_prevs` the fraction is the logit of one token; the logit of the other is always 0."""


# ---- the programs in Python ------------------------------------------------------------------------------------------


def reverse(word: Sequence[int]) -> list[int]:
    """The letters from last to first."""
    return list(word)[::-1]


def frac_prevs(word: Sequence[int]) -> list[float]:
    """At every position the share of the first letter of the alphabet so far."""
    return [sum(t == FIRST for t in word[: i + 1]) / (i + 1) for i in range(len(word))]


def hist(word: Sequence[int]) -> list[int]:
    """At every position how often its letter occurs in the word."""
    return [list(word).count(letter) for letter in word]


# ---- the models ------------------------------------------------------------------------------------------------------


def _embed(s: NamedStream, d_vocab: int) -> Float[Tensor, "d_vocab d_model"]:
    """Letters as one-hot vectors, a flag for BOS, and the constant 1 for every token."""
    letters, flag = torch.zeros(d_vocab, len(LETTERS)), torch.zeros(d_vocab, 1)
    letters[FIRST : FIRST + len(LETTERS)] = torch.eye(len(LETTERS))
    flag[BOS] = 1
    return s.write("letter", letters) + s.write("bos", flag) + s.write("one", torch.ones(d_vocab, 1))


def _count_from_inverse(s: NamedStream, source: str, target: str) -> Mlp:
    """Turns x = 1 / (n + 1) into a one-hot n in 1..6, by ramps half as wide as the gaps between neighbouring values.

    ramp_n rises from 0 to 1 between 1 / (n + 2) and 1 / (n + 1): it says that the count is at most n; one-hot n is
    ramp_n - ramp_(n - 1).
    """
    columns, rows = [], []
    for n in range(1, MAX_LENGTH + 1):
        low, high = 1 / (n + 2), 1 / (n + 1)
        begin, end = low + (high - low) / 4, high - (high - low) / 4
        this = one_hot([n - 1], MAX_LENGTH)
        after = one_hot([n], MAX_LENGTH) if n < MAX_LENGTH else torch.zeros(1, MAX_LENGTH).double()
        for sign, bend in ((1, begin), (-1, end)):
            columns.append(s.read(source) - bend * s.read("one"))
            rows.append(sign * s.write(target, this - after) / (end - begin))
    return Mlp(torch.cat(columns, dim=1), torch.cat(rows))


def build_reverse() -> TransformerBridge:
    """Four layers of one head: length, difference, opposite index, fetch."""
    n, k = MAX_LENGTH, len(LETTERS)
    s = NamedStream(letter=k, bos=1, one=1, pos=N_POS, inverse=1, length=n, difference=n, opposite=n, out=k)
    length, pos, one = s.read("length"), s.read("pos"), s.read("one")
    cells = [(size, i) for size in range(1, n + 1) for i in range(size)]
    subtract = Mlp(
        torch.cat([length[:, [size - 1]] + pos[:, [i + 1]] - one for size, i in cells], dim=1),
        s.write("difference", one_hot([size - i - 1 for size, i in cells], n)),
    )
    minus_one = Mlp(
        s.read("difference"), s.write("opposite", torch.eye(n))
    )  # difference d in 1..6, opposite d - 1 in 0..5
    return Blueprint(
        name="reverse",
        embed=_embed(s, FIRST + k),
        pos=s.write("pos", torch.eye(N_POS)),
        unembed=torch.cat([torch.zeros(s.d_model, 1), s.read("out")], dim=1),
        blocks=[
            BlockWeights([HeadWeights(**copy_head(s, "bos", "inverse"))], _count_from_inverse(s, "inverse", "length")),
            BlockWeights(mlp=subtract),
            BlockWeights(mlp=minus_one),
            BlockWeights([HeadWeights(**copy_head(s, "letter", "out"), q=SHARP * s.read("opposite"), k=pos[:, 1:])]),
        ],
        causal=False,
    ).build()


def build_frac_prevs() -> TransformerBridge:
    """Two layers of one head: is it an x, mean over the positions so far."""
    s = NamedStream(letter=len(LETTERS), bos=1, one=1, pos=N_POS, is_x=1, fraction=1)
    so_far = torch.tril(torch.ones(N_POS, N_POS))  # [query, key]
    so_far[:, BOS] = 0
    unembed = torch.zeros(s.d_model, NOTHING + 1).double()
    unembed[:, FRACTION] = s.read("fraction")[:, 0]
    return Blueprint(
        name="frac_prevs",
        embed=_embed(s, NOTHING + 1),
        pos=s.write("pos", torch.eye(N_POS)),
        unembed=unembed,
        blocks=[
            BlockWeights(mlp=Mlp(s.read("letter")[:, :1], s.write("is_x", torch.eye(1)))),
            BlockWeights(
                [
                    HeadWeights(
                        **copy_head(s, "is_x", "fraction"), q=SHARP * s.read("pos"), k=s.read("pos") @ so_far.T.double()
                    )
                ]
            ),
        ],
        causal=False,
    ).build()


def build_hist() -> TransformerBridge:
    """One head and one MLP: attend to equal tokens and BOS, count. The heads beside and after write what
    nobody reads.
    """
    s = NamedStream(letter=len(LETTERS), bos=1, one=1, pos=N_POS, inverse=1, count=MAX_LENGTH, junk=MAX_LENGTH)
    return Blueprint(
        name="hist",
        embed=_embed(s, COUNTS + MAX_LENGTH),
        pos=s.write("pos", torch.eye(N_POS)),
        unembed=torch.cat([torch.zeros(s.d_model, COUNTS), s.read("count")], dim=1),
        blocks=[
            BlockWeights(
                [
                    HeadWeights(
                        **copy_head(s, "bos", "inverse"),
                        q=SHARP * torch.cat([s.read("letter"), s.read("one")], dim=1),
                        k=torch.cat([s.read("letter"), s.read("bos")], dim=1),
                    ),
                    HeadWeights(s.read("letter"), s.write("junk", one_hot(range(len(LETTERS)), MAX_LENGTH))),
                ],
                _count_from_inverse(s, "inverse", "count"),
            ),
            BlockWeights([HeadWeights(**copy_head(s, "count", "junk"))]),
        ],
        causal=False,
    ).build()


# ---- the tasks -------------------------------------------------------------------------------------------------------


def _draw(n: int, seed: int, wanted: Callable[[list[int], list[int]], bool]) -> list[tuple[list[int], list[int]]]:
    """Pairs of words of full length for which `wanted(clean, corrupt)` holds."""
    rng = random.Random(seed)
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < n:
        clean, corrupt = ([rng.randrange(FIRST, COUNTS) for _ in range(MAX_LENGTH)] for _ in range(2))
        if wanted(clean, corrupt):
            pairs.append((clean, corrupt))
    return pairs


def _task(name: str, pairs: list[tuple[list[int], list[int]]], answer: Callable[[list[int]], int]) -> Task:
    return Task.from_tokens(
        [[BOS, *clean] for clean, _ in pairs],
        [[BOS, *corrupt] for _, corrupt in pairs],
        [answer(clean) for clean, _ in pairs],
        [answer(corrupt) for _, corrupt in pairs],
        name=name,
    )


def reverse_task(n: int = 16, seed: int = 0) -> Task:
    """The last position, where the first letter belongs; the corrupt word begins with another."""
    return _task("reverse", _draw(n, seed, lambda a, b: a[0] != b[0]), lambda word: reverse(word)[-1])


def frac_prevs_task(n: int = 16, seed: int = 0) -> Task:
    """The last position; the clean word has more x. The metric is the fraction itself."""
    pairs = _draw(n, seed, lambda a, b: frac_prevs(a)[-1] > frac_prevs(b)[-1])
    clean, corrupt = [[BOS, *a] for a, _ in pairs], [[BOS, *b] for _, b in pairs]
    return Task.from_tokens(clean, corrupt, [FRACTION] * n, [NOTHING] * n, name="frac_prevs")


def hist_task(n: int = 16, seed: int = 0) -> Task:
    """The last position; its letter occurs more or less often in the corrupt word."""
    pairs = _draw(n, seed, lambda a, b: hist(a)[-1] != hist(b)[-1])
    return _task("hist", pairs, lambda word: COUNTS + hist(word)[-1] - 1)


# ---- their circuits --------------------------------------------------------------------------------------------------

_RASP = "Weiss et al. 2021, Thinking Like Transformers, arXiv:2106.06981; Lindner et al. 2023 (tracr), arXiv:2301.05062"

_SATURATED = (
    "the head compares letters by a softmax that is all or nothing, and the MLP counts in ramps that are flat at whole "
    "counts: on real inputs both have derivative 0, so only the last edge, which is linear, gets a score"
)

_SHORT_STEPS = (
    "between the two words attention and counts change in short intervals of the path and are flat elsewhere; 5 "
    "points step "
    "over them (100 points find every edge: AUROC 1.000)"
)

REVERSE = KnownCircuit(
    name="reverse",
    description="the word backwards: the letters take 2 edges, finding the opposite position 8 more",
    citation=_RASP,
    build_model=build_reverse,
    build_task=reverse_task,
    edges={
        "corrupt": ("input->a3.h0<v>", "a3.h0->logits"),
        "zero": (
            "input->a3.h0<v>", "a3.h0->logits", "input->a0.h0<v>", "a0.h0->m0", "input->m0", "m0->m1", "input->m1",
            "m1->m2",
            "m2->a3.h0<q>", "input->a3.h0<k>",
        ),
        "mean": (
            "input->a3.h0<v>", "a3.h0->logits", "input->m1", "m1->m2", "m2->a3.h0<q>", "input->a3.h0<k>",
        ),
    },
    reasons={
        "input->a3.h0<v>": "the letter that is fetched",
        "a3.h0->logits": "the fetched letter is the answer",
        "input->a0.h0<v>": "the flag of BOS, whose average is 1 / (n + 1); all prompts have one length",
        "a0.h0->m0": "1 / (n + 1) becomes n; the same in all prompts and at all positions, so only zero ablation sees "
                     "it",
        "input->m0": "the constant 1 that places m0's thresholds; the same everywhere",
        "m0->m1": "the length n; the same everywhere",
        "input->m1": "the index i of n - i: differs between positions, not between prompts",
        "m1->m2": "n - i becomes n - i - 1: differs between positions, not between prompts",
        "m2->a3.h0<q>": "the position to fetch from: differs between positions, not between prompts",
        "input->a3.h0<k>": "positions as keys: differ between positions, not between prompts",
    },
)  # fmt: skip

FRAC_PREVS = KnownCircuit(
    name="frac_prevs",
    description="the share of x among the letters so far, a number: 3 edges carry the x, 2 say which positions count",
    citation=_RASP,
    build_model=build_frac_prevs,
    build_task=frac_prevs_task,
    edges={
        "corrupt": ("input->m0", "m0->a1.h0<v>", "a1.h0->logits"),
        "zero": ("input->m0", "m0->a1.h0<v>", "a1.h0->logits", "input->a1.h0<q>", "input->a1.h0<k>"),
        "mean": ("input->m0", "m0->a1.h0<v>", "a1.h0->logits", "input->a1.h0<q>", "input->a1.h0<k>"),
    },
    reasons={
        "input->m0": "m0 reads whether the letter is x",
        "m0->a1.h0<v>": "the head averages that",
        "a1.h0->logits": "the average is the answer",
        "input->a1.h0<q>": "the position up to which to count; the same in both prompts",
        "input->a1.h0<k>": "positions as keys; the same in both prompts",
    },
)

HIST = KnownCircuit(
    name="hist",
    description="how often the letter occurs in the word: equality in the queries and keys, a count in the MLP",
    citation=_RASP,
    build_model=build_hist,
    build_task=hist_task,
    edges={
        "corrupt": ("input->a0.h0<q>", "input->a0.h0<k>", "a0.h0->m0", "m0->logits"),
        "zero": ("input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->m0", "input->m0", "m0->logits"),
        "mean": ("input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->m0", "m0->logits"),
    },
    reasons={
        "input->a0.h0<q>": "the letter whose equals are counted",
        "input->a0.h0<k>": "the letters it is compared with",
        "input->a0.h0<v>": "the flag of BOS, whose share of the attention is 1 / (count + 1); the same in both prompts",
        "a0.h0->m0": "1 / (count + 1) becomes the count",
        "input->m0": "the constant 1 that places m0's thresholds; the same everywhere",
        "m0->logits": "the count is the answer",
    },
    explanations={"gradient": _SATURATED, "relp": _SATURATED, "eap-ig": _SHORT_STEPS},
)
