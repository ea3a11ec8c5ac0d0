"""The one readout of every decoder: what the model itself would say about a vector of its residual stream.

    logits(x) = transform(ln_final(x) @ W_U + b_U)

with the model's own final norm and its own last transform (Gemma's soft cap): TransformerLens' `logit_readout`, to the
bit (tested on every architecture), so that the last layer's state gives the model's logits. The host computes one
quantity per call; here one product gives all that is asked for (most probable tokens, rank and surprisal of a target,
entropy, divergence from a reference) while at most `budget` logits exist at a time, whatever the vocabulary.

Units: bits. Divergence: D(reference || read) = sum_v p(v) log2(p(v) / q(v)), p the reference's distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..models.anatomy import check_ready
from ..models.pulse import beat
from ..sites import FINAL_NORM

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUDGET = 2**23
"""Logits held at a time: 32 MiB in float32."""

BITS = 1 / math.log(2)
"""Bits per nat."""


@dataclass(frozen=True, eq=False)
class Reading(Readable):
    """What some states say; every tensor has the states' leading axes. What was not asked for is None.

    `entropy`, `kl` and `surprisal` are in bits; `rank` counts tokens with a strictly larger logit (0: the first).
    """

    entropy: Float[Tensor, "*batch"]
    top_ids: Int[Tensor, "*batch k"] | None = None
    top_probabilities: Float[Tensor, "*batch k"] | None = None
    rank: Int[Tensor, "*batch"] | None = None
    surprisal: Float[Tensor, "*batch"] | None = None
    kl: Float[Tensor, "*batch"] | None = None


@dataclass(frozen=True, eq=False)
class Readout(Readable):
    """The model's final norm, unembedding, bias and last transform, as one function of vectors."""

    model: TransformerBridge
    budget: int = BUDGET

    @classmethod
    def of(cls, model: TransformerBridge, budget: int = BUDGET) -> Readout:
        """The readout of a model; raises `InputError` for a budget without room and a model in training mode."""
        check_ready(model)
        if budget < 1:
            raise InputError(f"the budget counts logits held at a time and is at least 1; got {budget}")
        return cls(model, budget)

    @property
    def d_vocab(self) -> int:
        return int(self.model.W_U.shape[1])

    @property
    def rows(self) -> int:
        """How many vectors are read at a time."""
        return max(1, self.budget // self.d_vocab)

    def logits(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """All logits of some vectors, in the autograd graph where one is wanted. Memory: all of them."""
        weight = self.model.W_U
        flat = x.reshape(-1, x.shape[-1]).to(weight)
        normed = getattr(self.model, FINAL_NORM)(flat.unsqueeze(0)).squeeze(0)
        logits = self.model.adapter.apply_output_logits_transform(normed @ weight + self.model.b_U)
        return logits.reshape(*x.shape[:-1], -1)

    def log_probabilities(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Natural log-probabilities, in at least float32."""
        logits = self.logits(x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)

    @torch.no_grad()
    def read(
        self,
        x: Float[Tensor, "*batch d_model"],
        *,
        top_k: int = 0,
        targets: Int[Tensor, "*#batch"] | None = None,
        reference: Float[Tensor, "*#batch d_model"] | None = None,
    ) -> Reading:
        """Everything asked for in one pass over the vectors. `reference`: states whose reading is the true
        distribution.

        Cost: one product with the unembedding (two with a reference). Raises `InputError` for a `top_k` beyond the
        vocabulary or targets outside it.
        """
        many = self.read_places([x], top_k=top_k, targets=targets, reference=reference)
        return Reading(**{name: value[0] for name, value in vars(many).items() if value is not None})

    @torch.no_grad()
    def read_places(
        self,
        states: Sequence[Float[Tensor, "*batch d_model"]],
        *,
        top_k: int = 0,
        targets: Int[Tensor, "*#batch"] | None = None,
        reference: Float[Tensor, "*#batch d_model"] | None = None,
    ) -> Reading:
        """`read` of several places at once, stacked on a leading axis; the reference is unembedded once for all."""
        if not 0 <= top_k <= self.d_vocab:
            raise InputError(f"top_k is 0 to {self.d_vocab}, the size of the vocabulary; got {top_k}")
        lead, d_model = states[0].shape[:-1], states[0].shape[-1]
        rows = [x.reshape(-1, d_model) for x in states]
        wanted = None if targets is None else targets.to(rows[0].device).expand(lead).reshape(-1)
        if wanted is not None and not bool(((wanted >= 0) & (wanted < self.d_vocab)).all()):
            raise InputError(f"target ids are 0 to {self.d_vocab - 1}; got {int(wanted.min())} to {int(wanted.max())}")
        truth = None if reference is None else reference.expand(*lead, d_model).reshape(-1, d_model)
        # Room for the results is made once: small tensors that stay, made between large ones that go, would keep the
        # large ones' memory from being given back.
        kept: dict[str, Tensor] = {}
        for part in self.chunks(len(rows[0])):
            log_p = None if truth is None else self.log_probabilities(truth[part])
            p = None if log_p is None else log_p.exp()
            for place, x in enumerate(rows):
                beat()
                log_q = self.log_probabilities(x[part])
                found = {"entropy": -(log_q.exp() * log_q.clamp(min=torch.finfo(log_q.dtype).min)).sum(dim=-1) * BITS}
                if top_k:
                    top = log_q.topk(top_k, dim=-1)
                    found |= {"top_ids": top.indices, "top_probabilities": top.values.exp()}
                if wanted is not None:
                    own = log_q.gather(-1, wanted[part, None])
                    found |= {"rank": (log_q > own).sum(dim=-1), "surprisal": -own[:, 0] * BITS}
                if log_p is not None and p is not None:
                    found["kl"] = (p * (log_p - log_q)).sum(dim=-1).clamp(min=0) * BITS
                for name, value in found.items():
                    if name not in kept:
                        kept[name] = torch.empty(len(states), len(rows[0]), *value.shape[1:], dtype=value.dtype)
                    kept[name][place, part] = value.cpu()
        return Reading(**{name: flat.reshape(len(states), *lead, *flat.shape[2:]) for name, flat in kept.items()})

    def chunks(self, n: int) -> Iterator[slice]:
        """Slices of at most `rows` vectors."""
        return (slice(start, min(start + self.rows, n)) for start in range(0, n, self.rows))
