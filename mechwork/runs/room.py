"""Room for a pass: what one prompt takes at its peak, and how many fit a budget at a time.

Counted beside the weights: one forward's own activations, what is recorded, the logits that are kept. Counts, not
measurements; the tests measure. Blocks depend on sizes alone, so that every executor has the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..execute.memory import MemoryBudget, items_that_fit, parse_budget, require_room
from ..models.anatomy import ModelAnatomy, dtype_of, read_anatomy
from ..sites import SQUARE_KINDS, Site
from ..tasks.pairs import PromptPairs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_BUDGET = 2**30
N_KEPT = 4
"""Tables of logits that two runs and their comparison hold at a time."""
RECORDED_AS = {"result": "z", "expert_out": "mlp_in"}
"""A head's write is linear in its z, so patching one is patching the other; an expert's write follows from what the
MLP reads."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one model and task that memory depends on. `n_tail`: columns whose logits are computed."""

    anatomy: ModelAnatomy
    d_mlp: int
    n_pos: int
    n_tail: int
    item: int

    def activation(self, kind: str) -> int:
        """Numbers per pair and layer at one kind of site."""
        a = self.anatomy
        if kind in SQUARE_KINDS:
            return a.n_heads * self.n_pos**2
        if kind == "expert_out":
            return self.n_pos * a.d_model * (a.n_experts or 0)
        if kind == "router_logits":
            return self.n_pos * (a.n_experts or 0)
        heads = {"q": a.n_heads, "z": a.n_heads, "result": a.n_heads, "k": a.n_kv_heads, "v": a.n_kv_heads}
        width = heads[kind] * a.d_head if kind in heads else self.d_mlp if kind == "mlp_post" else a.d_model
        return self.n_pos * width

    def run(self, columns: int, logits: int) -> int:
        """Bytes of one row on `columns` columns at its peak: attention or MLP of one block, or `logits` columns of
        logits.
        """
        a, keys = self.anatomy, self.n_pos
        heads, kv = a.n_heads * a.d_head, 2 * a.n_kv_heads * a.d_head
        attention = columns * (3 * heads + kv) + keys * (kv + 2 * heads) + 5 * a.n_heads * columns * keys
        mlp = columns * 5 * self.d_mlp * (2 if a.n_experts else 1)
        return self.item * (5 * columns * a.d_model + max(attention, mlp, 4 * a.d_vocab * logits))

    def graph(self, kinds: Sequence[str], copies: int = 4, *, remade: bool = False) -> int:
        """Bytes of one pair at the peak of its backward pass; `remade`: see `runs.remake`.

        Per block: about twelve tensors as wide as the stream, queries to heads' outputs and their rotated copies, six
        tensors as wide as the MLP's hidden layer, five patterns; and at every site `copies` (donor, host, change and
        coefficient).
        """
        a, n = self.anatomy, self.n_pos
        heads = 3 * a.n_heads * a.d_head + 6 * a.n_kv_heads * a.d_head
        mlp = 6 * self.d_mlp * (max(2, a.n_experts or 0) if a.n_experts else 1)
        block = n * (12 * a.d_model + heads + mlp) + 5 * a.n_heads * n**2
        kept = copies * sum(self.activation(kind) for kind in dict.fromkeys(("resid_pre", *kinds)))
        return self.item * ((1 if remade else a.n_layers) * block + a.n_layers * kept + 5 * self.n_tail * a.d_vocab)

    def recorded(self, kinds: Sequence[str]) -> int:
        """Bytes per pair that stay while a block of pairs is swept."""
        a = self.anatomy
        stream = (a.n_layers + 1) * self.n_pos * a.d_model
        cache = 2 * a.n_layers * self.n_pos * a.n_kv_heads * a.d_head
        writes = 2 * a.n_layers * self.n_pos * a.d_model
        kept = {RECORDED_AS.get(kind, kind) for kind in kinds}
        both = sum(2 * a.n_layers * self.activation(kind) for kind in kept)
        both += 2 * a.n_layers * self.activation("expert_out") if "expert_out" in kinds else 0
        moved = 4 * max(self.activation(kind) for kind in (*kept, *kinds))
        return self.item * (stream + cache + writes + both + moved + 4 * self.n_tail * a.d_vocab)


def d_mlp_of(model: TransformerBridge) -> int:
    """The width of the MLPs' hidden layer, from the weights where they can be seen (configurations of OPT do
    not say).
    """
    cfg: Any = model.cfg
    out: Any = getattr(getattr(model.blocks[0], "mlp", None), "out", None)
    weight = getattr(getattr(out, "original_component", None), "weight", None)
    return int(cfg.d_mlp or 4 * cfg.d_model) if weight is None else weight.numel() // int(cfg.d_model)


def sizes_of(anatomy: ModelAnatomy, d_mlp: int, pairs: PromptPairs, n_tail: int | None, item: int) -> Sizes:
    """The sizes of a sweep over `pairs`; `n_tail`: columns whose logits are computed (None: all)."""
    n_pos = pairs.clean_tokens.shape[1]
    return Sizes(anatomy, d_mlp, n_pos, n_tail or n_pos, item)


def prompts_that_fit(
    model: TransformerBridge,
    pairs: PromptPairs,
    budget: MemoryBudget | None = None,
    *,
    sites: Sequence[Site] = (),
    n_tail: int | None = None,
    extra: int = 0,
) -> int:
    """How many of `pairs` one pass takes: whole questions, at least one; `n_tail` None: the answers' columns. See
    `rows_that_fit`.
    """
    tail = pairs.n_tail if n_tail is None else n_tail
    return pairs.whole(rows_that_fit(model, pairs.clean_tokens, budget, sites=sites, n_tail=tail, extra=extra))


def rows_that_fit(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    budget: MemoryBudget | None = None,
    *,
    sites: Sequence[Site] = (),
    n_tail: int = 1,
    extra: int = 0,
) -> int:
    """How many rows of `tokens` one pass takes, at least one.

    `sites` are recorded, `n_tail` columns of logits kept, `extra` bytes per row are the caller's own. Raises
    `InputError` when not even one row fits a budget that was given; without one it is 1 GiB, or what one row takes.
    """
    size, item = DEFAULT_BUDGET if budget is None else parse_budget(budget), torch.finfo(dtype_of(model)).bits // 8
    sizes = Sizes(read_anatomy(model), d_mlp_of(model), tokens.shape[1], n_tail, item)
    recorded = sum(sizes.activation(RECORDED_AS.get(site.kind, site.kind)) for site in sites)
    logits = N_KEPT * n_tail * sizes.anatomy.d_vocab
    one = sizes.run(sizes.n_pos, n_tail) + item * (recorded + logits) + extra
    if budget is not None:
        require_room(size, one, "the runs of one prompt", "Give more, or use shorter prompts.")
    return items_that_fit(size, one, len(tokens))
