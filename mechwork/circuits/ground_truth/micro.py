"""Circuits that can be solved on paper: a linear model, an AND gate and an OR gate.

**linear**: one token, one position, no non-linearity. With the token's value a and the metric 10 a - 3 a + a + 7, every
edge has the effect of its own term, so every estimate is exact.

**gates**: the prompt ``A B END`` holds two switches; one head carries each to END, where the MLP joins them. Clean:
both
on, corrupt: both off. AND(1, 1): switching one input off already breaks it, so noising finds all edges, but one clean
input put into the corrupt run changes nothing. OR: one clean input is enough, so denoising finds all edges, but taking
one of two away changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...tasks.task import Task
from .case import KnownCircuit
from .weights import SHARP, BlockWeights, Blueprint, HeadWeights, Mlp, NamedStream, one_hot

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LINEAR_VALUES = (2.0, 3.0, -1.0, 1.0)
"""What tokens 0 to 3 of the linear model are worth: two clean ones, two corrupt ones."""

OFF, ON, END = 0, 1, 2
YES, NO = -2, -1
"""Places of the answers in every vocabulary here: the last two tokens."""


def build_linear() -> TransformerBridge:
    """Two layers of two heads on one position; the weights are 2, 3, 5, 7."""
    s = NamedStream(a=1, b=1, c=1, one=1, out=1)
    scale = torch.eye(1)
    values = torch.tensor([[v] for v in LINEAR_VALUES] + [[0.0], [0.0]])
    unembed = torch.zeros(s.d_model, 6).double()
    unembed[:, YES] = (s.read("out") - s.read("c") + s.read("a"))[:, 0]
    return Blueprint(
        name="linear",
        embed=s.write("a", values) + s.write("one", torch.ones(6, 1)),
        pos=torch.zeros(1, s.d_model),
        unembed=unembed,
        blocks=[
            BlockWeights(
                [HeadWeights(s.read("a"), s.write("b", 2 * scale)), HeadWeights(s.read("a"), s.write("c", 3 * scale))]
            ),
            BlockWeights(
                [
                    HeadWeights(s.read("b"), s.write("out", 5 * scale)),
                    HeadWeights(s.read("one"), s.write("out", 7 * scale)),
                ]
            ),
        ],
    ).build()


def linear_task() -> Task:
    """Tokens worth 2 and 3, against tokens worth -1 and 1."""
    return Task.from_tokens([[0], [1]], [[2], [3]], [4, 4], [5, 5], name="linear")


def _build_gate(name: str, threshold: Mlp, s: NamedStream) -> TransformerBridge:
    heads = [
        HeadWeights(
            v=s.read("on"),
            o=s.write(target, torch.eye(1)),
            q=SHARP * s.read("pos")[:, [END]],
            k=s.read("pos")[:, [where]],
        )
        for where, target in enumerate("ab")
    ]
    on = torch.tensor([[0.0], [1.0], [0.0], [0.0], [0.0]])
    unembed = torch.zeros(s.d_model, 5).double()
    unembed[:, YES] = s.read("out")[:, 0]
    return Blueprint(
        name=name,
        embed=s.write("on", on) + s.write("one", torch.ones(5, 1)),
        pos=s.write("pos", one_hot(range(3), 3)),
        unembed=unembed,
        blocks=[BlockWeights(heads, threshold)],
    ).build()


def _gate_stream() -> NamedStream:
    return NamedStream(on=1, pos=3, one=1, a=1, b=1, out=1)


def build_and() -> TransformerBridge:
    """``out = relu(a + b - 1)``."""
    s = _gate_stream()
    a, b, one = (s.read(name) for name in ("a", "b", "one"))
    return _build_gate("and_gate", Mlp(a + b - one, s.write("out", torch.tensor([[1.0]]))), s)


def build_or() -> TransformerBridge:
    """``out = 1 - relu(1 - a - b)``."""
    s = _gate_stream()
    a, b, one = (s.read(name) for name in ("a", "b", "one"))
    w_in = torch.cat([one, one - a - b], dim=1)
    return _build_gate("or_gate", Mlp(w_in, s.write("out", torch.tensor([[1.0], [-1.0]]))), s)


def gate_task() -> Task:
    """Both switches on against both off."""
    return Task.from_tokens([[ON, ON, END]], [[OFF, OFF, END]], [3], [4], name="gate")


_SWITCHES = {
    "input->a0.h0<v>": "head 0 reads whether A is on",
    "input->a0.h1<v>": "head 1 reads whether B is on",
    "a0.h0->m0": "the MLP reads A at END",
    "a0.h1->m0": "the MLP reads B at END",
    "m0->logits": "the gate's output is the answer",
}
_THRESHOLD = {"input->m0": "the constant 1 that sets the gate's threshold"}
_LOOKING = {
    f"input->a0.h{head}<{kind}>": f"by position, head {head} finds {name}: without it, attention is uniform"
    for head, name in enumerate("AB")
    for kind in "qk"
}

LINEAR = KnownCircuit(
    name="linear",
    description="a linear model of two layers; every effect is a product of weights",
    citation="after the micro models of auto-circuit (Miller et al. 2024, arXiv:2407.08734)",
    build_model=build_linear,
    build_task=linear_task,
    edges={
        "corrupt": (
            "input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits",
            "input->a0.h1<v>", "a0.h1->logits", "input->logits",
        ),
        "zero": (
            "input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits",
            "input->a0.h1<v>", "a0.h1->logits", "input->logits",
            "input->a1.h1<v>", "a1.h1->logits",
        ),
        "mean": (
            "input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits",
            "input->a0.h1<v>", "a0.h1->logits", "input->logits",
        ),
    },
    reasons={
        "input->a0.h0<v>": "2 a goes on to a1.h0",
        "a0.h0->a1.h0<v>": "5 x 2 a",
        "a1.h0->logits": "the term 10 a",
        "input->a0.h1<v>": "3 a",
        "a0.h1->logits": "the term -3 a",
        "input->logits": "the term a",
        "input->a1.h1<v>": "7 times the constant 1: the same in both prompts, so only zero ablation sees it",
        "a1.h1->logits": "the term 7: the same in both prompts, so only zero ablation sees it",
    },
)  # fmt: skip

AND = KnownCircuit(
    name="and_gate",
    description="AND of two switches: noising finds the inputs, denoising does not",
    citation="after the logic gates of ACDC (Conmy et al. 2023, arXiv:2304.14997); Heimersheim & Nanda 2024, "
    "arXiv:2404.15255",
    build_model=build_and,
    build_task=gate_task,
    edges={"corrupt": tuple(_SWITCHES), "zero": (*_SWITCHES, *_THRESHOLD, *_LOOKING)},
    reasons={**_SWITCHES, **_THRESHOLD, **_LOOKING},
    direction="noise",
    blind=tuple(edge for edge in _SWITCHES if edge != "m0->logits"),
)

OR = KnownCircuit(
    name="or_gate",
    description="OR of two switches: denoising finds the inputs, noising (and zero ablation) does not",
    citation="after the logic gates of ACDC (Conmy et al. 2023, arXiv:2304.14997); Heimersheim & Nanda 2024, "
    "arXiv:2404.15255",
    build_model=build_or,
    build_task=gate_task,
    edges={"corrupt": tuple(_SWITCHES), "zero": ("m0->logits", *_THRESHOLD)},
    reasons={**_SWITCHES, **_THRESHOLD},
    direction="denoise",
    blind=tuple(edge for edge in _SWITCHES if edge != "m0->logits"),
)
