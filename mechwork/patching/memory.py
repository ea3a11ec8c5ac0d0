"""What a sweep takes at its peak, and how much of it fits a budget: pairs per block, patched runs per chunk.

Bytes are counted beside the weights: the two recorded runs with the kinds that are patched, the frame's keys and
values, one forward's own activations, and the patched runs of a chunk. Counts, not measurements; the tests measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..execute.memory import MemoryBudget, items_that_fit, parse_budget, require_room
from ..models.anatomy import ModelAnatomy
from ..tasks.metrics import Metric
from ..tasks.pairs import PromptPairs
from .sides import RECORDED_AS, SQUARE
from .sweep import CHUNK_BYTES

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


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
        if kind in SQUARE:
            return a.n_heads * self.n_pos**2
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

    def recorded(self, kinds: Sequence[str]) -> int:
        """Bytes per pair that stay while a block of pairs is swept."""
        a = self.anatomy
        stream = (a.n_layers + 1) * self.n_pos * a.d_model
        cache = 2 * a.n_layers * self.n_pos * a.n_kv_heads * a.d_head
        writes = 2 * a.n_layers * self.n_pos * a.d_model
        kept = {RECORDED_AS.get(kind, kind) for kind in kinds}
        both = sum(2 * a.n_layers * self.activation(kind) for kind in kept)
        moved = 4 * max(self.activation(kind) for kind in kept)
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


def tail_of(pairs: PromptPairs, metrics: Sequence[Metric], *, sparing: bool) -> int | None:
    """How many last columns of either run the metrics read; None: all."""
    final = sparing and all(metric.reads_final for metric in metrics)
    return max(pairs.n_tail, pairs.corrupt_as_host().n_tail) if final else None


def fit(
    sizes: Sizes, kinds: Sequence[str], n_pairs: int, budget: MemoryBudget | None, logits: int, device: str
) -> tuple[int, int]:
    """(pairs per block, bytes of a chunk) within `budget`; raises `InputError` when not even one pair fits.

    `logits`: columns of logits that each patched run computes; `device`: the kind of device.
    """
    most = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"])
    if budget is None:
        return n_pairs, most
    size = parse_budget(budget)
    recorded, forward = sizes.recorded(kinds), sizes.run(sizes.n_pos, sizes.n_tail)
    one = recorded + max(forward, sizes.run(sizes.n_pos, logits))
    require_room(
        size,
        one,
        "the two recorded runs and one patched run of one pair",
        "Give more, patch fewer kinds of site at a time, or use shorter prompts.",
    )
    block = items_that_fit(size, one, n_pairs)
    return block, min(most, size - block * recorded)
