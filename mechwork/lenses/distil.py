"""The loss of a tuned lens: how far a place's reading is from the model's own output, and its gradient, place by place.

    loss_l = mean over positions of D(p || q_l) = sum_v p(v) (log p(v) - log q_l(v)),    d loss / d logits = (q_l - p) /
    n

The gradient is formed where the loss is, so autograd keeps nothing of the vocabulary's size; one chunk of rows is read
by the teacher once and by all places in turn, so at most a few [rows, d_vocab] tensors exist, never [place, batch, pos,
d_vocab].

A top-k teacher keeps the k most probable tokens and lumps the others together; the loss is then the divergence between
those k + 1 outcomes, a lower bound of the whole one, with gradient q (1 - p_rest / q_rest) on the lumped tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .readout import Readout
from .translators import Form, Parts, translate


class _Divergence(torch.autograd.Function):
    """Mean divergence of a chunk from whole distributions, per row; its gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, p: Tensor, minus_entropy: Tensor) -> Tensor:
        log_q = logits.to(p.dtype).log_softmax(dim=-1)
        loss = minus_entropy - (p * log_q).sum(dim=-1)
        ctx.save_for_backward(log_q.exp_().sub_(p).to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None


class _TopDivergence(torch.autograd.Function):
    """The same over k tokens and the rest, whose share is summed and not taken as what k tokens leave of 1: a reading
    far from the model leaves less than a float tells from nothing.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, log_p: Tensor, log_p_rest: Tensor) -> Tensor:
        log_q = logits.to(log_p.dtype).log_softmax(dim=-1)
        top, p, p_rest = log_q.gather(-1, ids), log_p.exp(), log_p_rest.exp()
        others = log_q.scatter_(-1, ids, -torch.inf)
        log_q_rest = others.logsumexp(dim=-1)
        surprise = torch.where(p_rest > 0, p_rest * (log_p_rest - log_q_rest), 0)
        loss = torch.where(p > 0, p * (log_p - top), 0).sum(dim=-1) + surprise
        gradient = others.exp() - p_rest[:, None] * (others - log_q_rest[:, None]).exp_()
        gradient.scatter_(-1, ids, top.exp() - p)
        ctx.save_for_backward(gradient.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None


@dataclass(frozen=True, eq=False)
class Teacher:
    """The model's own distributions of a chunk: probabilities and minus their entropy; or, of its `ids` most probable
    tokens, the logarithms of theirs and of the share of all others.
    """

    values: Float[Tensor, "n v"]
    rest: Float[Tensor, " n"]
    ids: Int[Tensor, "n v"] | None = None

    @classmethod
    def of(cls, readout: Readout, last: Float[Tensor, "n d_model"], top_k: int) -> Teacher:
        with torch.no_grad():
            log_p = readout.log_probabilities(last)
            if top_k:
                top = log_p.topk(top_k, dim=-1)
                rest = log_p.scatter(-1, top.indices, -torch.inf).logsumexp(dim=-1)
                return cls(top.values, rest, top.indices)
            p = log_p.exp()
            return cls(p, torch.linalg.vecdot(p, log_p.clamp(min=torch.finfo(p.dtype).min)))

    def divergence(self, logits: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " n"]:
        """Nats per row, differentiable in the logits."""
        if self.ids is not None:
            return _TopDivergence.apply(logits, self.ids, self.values, self.rest)
        return _Divergence.apply(logits, self.values, self.rest)


def descend(
    readout: Readout, form: Form, parts: Sequence[Parts], states: Sequence[Float[Tensor, "n d_model"]], top_k: int = 0
) -> Float[Tensor, " place"]:
    """Adds the gradient of every place's mean loss to its parts; returns the losses in nats.

    `states` are the places' and then the last one. Cost per place and row: two products with the unembedding.
    """
    *places, last = states
    losses = torch.zeros(len(places), dtype=torch.float64)
    n = len(last)
    with torch.enable_grad():
        for chunk in readout.chunks(n):
            teacher = Teacher.of(readout, last[chunk], top_k)
            for i, (x, own) in enumerate(zip(places, parts, strict=True)):
                loss = teacher.divergence(readout.logits(translate(form, own, x[chunk]))).sum() / n
                loss.backward()
                losses[i] += float(loss.detach())
    return losses


@torch.no_grad()
def divergences(
    readout: Readout, maps: Sequence[Callable[[Tensor], Tensor]], states: Sequence[Float[Tensor, "n d_model"]]
) -> Float[Tensor, "place n"]:
    """D(p || q) in nats of every place and row, without gradient; ``maps[i]`` translates ``states[i]``."""
    *places, last = states
    found: list[list[Tensor]] = [[] for _ in places]
    for chunk in readout.chunks(len(last)):
        teacher = Teacher.of(readout, last[chunk], 0)
        for column, x, to_last in zip(found, places, maps, strict=True):
            column.append(teacher.divergence(readout.logits(to_last(x[chunk]))))
    return torch.stack([torch.cat(column) for column in found]) if places else last.new_zeros(0, len(last))
