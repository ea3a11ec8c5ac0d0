"""Gates per input: what a prompt is like decides once whether, and by which vectors, everything after it is steered.

    c = mean of x at `read` over the prompt's columns `where`
    w = route(c) [vector]: how much of every vector, all 0 for a prompt that passes through
    x -> x + s sum_k w_k v_k        at `site`, every position;   with `keep_norm` as long as x was

`Similarity` is GUARD-IT's route (inference-time unlearning by gated activation redirection, 2026): the mean of the
vectors whose centre has a cosine with c above the threshold. The decision is made in the forward that holds the
prompt's columns and kept while a key-value cache goes on from there, so generation with and without a cache gives the
same. A batch decides row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..models.anatomy import check_ready
from ..sites import Site, hook_name
from .dosed import ORDER, comes_before
from .positions import Columns
from .writes import Hook

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@runtime_checkable
class Route(Protocol):
    """Anything that turns one vector per prompt into the weights of some vectors."""

    def __call__(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n"]: ...


@dataclass(frozen=True, eq=False)
class Similarity(Readable):
    """1 / m for the m centres whose cosine with the state is above `threshold`, 0 for the others; `weighted` gives them
    shares by their cosine.
    """

    centres: Float[Tensor, "n d"]
    threshold: float
    weighted: bool = False

    def cosines(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n"]:
        """Of every state with every centre."""
        return torch.nn.functional.cosine_similarity(state[:, None], self.centres.to(state)[None], dim=-1)

    def __call__(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n"]:
        cosines = self.cosines(state)
        inside = (cosines > self.threshold).to(state)
        shares = inside * cosines.clamp(min=0) if self.weighted else inside
        total = shares.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, shares / total.clamp(min=1e-30), torch.zeros_like(shares))


@dataclass(frozen=True, eq=False)
class Always(Readable):
    """The same weights for every prompt: no gate, the control."""

    weights: Float[Tensor, " n"]

    def __call__(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n"]:
        return self.weights.to(state).expand(len(state), -1)


@dataclass(frozen=True, eq=False)
class PerInput(Readable):
    """`vectors` added at `site` by the weights that `route` finds in the prompt (see the module).

    `where`: the prompt's columns that are read, absolute, ``[batch, pos]`` or one row for all prompts. Raises
    `InputError` for a read site after the one that is written, sites of several vectors per position, or no columns.
    """

    read: Site
    route: Route
    where: Bool[Tensor, "batch pos"]
    site: Site
    vectors: Float[Tensor, "n d"]
    strength: float = 1.0
    keep_norm: bool = False

    def __post_init__(self) -> None:
        late = self.read != self.site and not comes_before(self.read, self.site)
        if late or not {self.read.kind, self.site.kind} <= set(ORDER) or self.read.head is not None:
            raise InputError(
                f"a gate reads a site without a head, at or before the site that it steers; got {self.read} and "
                f"{self.site}"
            )
        if not bool(self.where.any(dim=1).all()):
            raise InputError("every prompt has a column that the gate reads; got a row of `where` without one")

    @property
    def last(self) -> int:
        """The last column that decides."""
        return int(self.where.any(dim=0).nonzero().max())

    def check(self, model: TransformerBridge) -> None:
        """Raises `InputError` when the model has no such places."""
        anatomy = check_ready(model)
        anatomy.check_site(self.read)
        anatomy.check_writable(self.site)

    def hooks(self, columns: Columns) -> list[Hook]:
        """One hook that decides, one that writes."""
        kept: list[Tensor] = []

        def decide(activation: Tensor, hook: Any) -> None:
            start, stop = columns.start, columns.start + activation.shape[1]
            if start == 0 and stop > self.last:
                kept[:] = [self.route(self._state(activation))]
            elif start <= self.last or not kept or len(kept[0]) != len(activation):
                raise InputError(
                    f"a gate per input decides in one forward that holds the prompts' columns 0 to {self.last}; this "
                    f"forward has {len(activation)} rows and columns {start} to {stop - 1}. Run the prompts first, "
                    "whole"
                )

        def put(activation: Tensor, hook: Any) -> Tensor:
            if self.site.head is None:
                return self._moved(activation, kept[0])
            new = activation.clone()
            new[:, :, self.site.head] = self._moved(activation[:, :, self.site.head], kept[0])
            return new

        return [(hook_name(self.read), decide), (hook_name(self.site), put)]

    def _state(self, activation: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch d"]:
        if self.where.shape[0] not in (1, len(activation)):
            raise InputError(
                f"the gate reads columns of {self.where.shape[0]} prompts; a forward has {len(activation)}. Run the "
                "prompts they belong to"
            )
        weights = self.where[:, : self.last + 1].to(activation)
        weights = weights / weights.sum(dim=1, keepdim=True)
        part = activation[:, : self.last + 1]
        return (weights[..., None] * part).sum(dim=1)

    def _moved(
        self, x: Float[Tensor, "batch pos d"], weights: Float[Tensor, "batch n"]
    ) -> Float[Tensor, "batch pos d"]:
        shift = self.strength * weights.to(x) @ self.vectors.to(x)
        new = x + shift[:, None]
        if not self.keep_norm:
            return new
        before, after = (one.norm(dim=-1, keepdim=True) for one in (x, new))
        kept = new * (before / after.clamp(min=torch.finfo(x.dtype).tiny))
        return torch.where((weights != 0).any(dim=-1)[:, None, None] & (after > 0), kept, x)
