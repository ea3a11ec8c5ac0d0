"""What a sweep takes at its peak, and how much of it fits a budget: pairs per block, patched runs per chunk.

Bytes are counted beside the weights: the two recorded runs with the kinds that are patched, the frame's keys and
values, one forward's own activations, and the patched runs of a chunk. Counts, not measurements; the tests measure.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..execute.memory import MemoryBudget, items_that_fit, parse_budget, require_room
from ..runs.room import Sizes
from ..tasks.metrics import Metric
from ..tasks.pairs import PromptPairs
from .sweep import CHUNK_BYTES


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
