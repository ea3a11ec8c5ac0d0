"""The result of direct logit attribution: named terms that add up to a logit or a logit difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..names import head_name
from ..provenance import Provenance
from ..result import Result, Table
from ..statistics import bootstrap_interval


@dataclass(frozen=True, eq=False)
class LogitAttribution(Result):
    """Shares of `quantity` per prompt, ``per_example[batch, term]``, in logits; their sum is `total` up to rounding.

    Terms: ``embed``, ``pos_embed``, ``a0.h1``, ``a0.bias``, ``m0``, ``m0.bias``, ``norm bias``, ``unembed bias`` (those
    the model has).
    `before_cap`: the model caps its logits and these are of the uncapped ones.
    """

    terms: tuple[str, ...]
    per_example: Float[Tensor, "batch term"]
    total: Float[Tensor, " batch"]
    neurons: Float[Tensor, "batch layer d_mlp"] | None
    sources: Float[Tensor, "batch layer head key_pos"] | None
    tokens: tuple[tuple[str, ...], ...]
    quantity: str
    before_cap: bool
    n_heads: int
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, " term"]:
        """Mean share of each term over prompts."""
        return self.per_example.mean(dim=0)

    @property
    def remainder(self) -> Float[Tensor, " batch"]:
        """What the terms leave unexplained: rounding."""
        return self.total - self.per_example.sum(dim=1)

    def __getitem__(self, term: str) -> Float[Tensor, " batch"]:
        if term not in self.terms:
            raise InputError(f"this model's terms are {', '.join(self.terms)}; got {term!r}")
        return self.per_example[:, self.terms.index(term)]

    @property
    def heads(self) -> Float[Tensor, "layer head"]:
        """Mean share of each head."""
        names = [i for i, term in enumerate(self.terms) if ".h" in term]
        return self.values[names].reshape(-1, self.n_heads)

    def interval(self, level: float = 0.95) -> Float[Tensor, "2 term"]:
        """Bootstrap interval of each term's mean over prompts; raises `InputError` for a single prompt."""
        return bootstrap_interval(self.per_example, level)

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The `k` terms with the largest absolute mean share."""
        order = self.values.abs().argsort(descending=True, stable=True)[:k].tolist()
        return [(self.terms[i], float(self.values[i])) for i in order]

    def top_neurons(self, k: int = 10) -> list[tuple[str, float]]:
        """The `k` neurons with the largest absolute mean share, as ``m3.n17``; raises `InputError` when none were asked
        for.
        """
        if self.neurons is None:
            raise InputError("this attribution has no neurons; call attribute_logits(..., neurons=True)")
        mean = self.neurons.mean(dim=0)
        found = mean.abs().flatten().topk(min(k, mean.numel())).indices.tolist()
        return [(f"m{i // mean.shape[1]}.n{i % mean.shape[1]}", float(mean.flatten()[i])) for i in found]

    def top_sources(self, row: int = 0, k: int = 10) -> list[tuple[str, int, str, float]]:
        """The strongest (head, key position, its token, share) of one prompt; raises `InputError` when none were asked
        for.
        """
        if self.sources is None:
            raise InputError("this attribution is not split by source; call attribute_logits(..., sources=True)")
        cells = self.sources[row, :, :, : len(self.tokens[row])]
        found = cells.abs().flatten().topk(min(k, cells.numel())).indices
        places = torch.stack(torch.unravel_index(found, cells.shape), dim=1).tolist()
        return [
            (head_name(layer, head), pos, self.tokens[row][pos], float(cells[layer, head, pos]))
            for layer, head, pos in places
        ]

    def _table(self) -> Table:
        """One row per term: its mean share over prompts, and its standard deviation over them."""
        spread = self.per_example.std(dim=0, correction=0).tolist()
        return {"term": self.terms, "share": self.values.tolist(), "std": spread}

    def __str__(self) -> str:
        cap = ", before the soft cap" if self.before_cap else ""
        rows = [f"{term:<14} {value:+9.4f}" for term, value in self.top(12)]
        worst = float(self.remainder.abs().max())
        return "\n".join(
            [
                (
                    f"{self.quantity}{cap}: {float(self.total.mean()):+.4f} (mean of {len(self.total)}); largest of "
                    f"{len(self.terms)} terms:"
                ),
                *rows,
                f"terms miss at most {worst:.1e}",
            ]
        )
