"""How many pairs go through one gradient pass: what an attribution takes at its peak, and how much of it fits a budget.

Bytes are counted beside the weights: the donor's and the host's activations at the sites asked for, their coefficients,
what the backward pass needs of every block, and the logits that the metric reads. Counts, not measurements; the tests
measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..execute.memory import MemoryBudget, items_that_fit, parse_budget, require_room
from ..models.anatomy import check_ready, dtype_of
from ..runs.room import DEFAULT_BUDGET, Sizes, d_mlp_of, sizes_of
from ..tasks.task import Task
from .memory import tail_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def pairs_per_pass(
    model: TransformerBridge,
    task: Task,
    kinds: Sequence[str],
    budget: MemoryBudget | None,
    *,
    through_softmax: bool = False,
) -> int:
    """Pairs of a micro-batch within `budget` (None: 1 GiB, or one pair). `through_softmax`: scores and patterns are
    kept.

    Raises `InputError` for a budget that does not hold one pair.
    """
    item = torch.finfo(dtype_of(model)).bits // 8
    tail = tail_of(task.pairs, [task.metric], sparing=True)
    sizes = sizes_of(check_ready(model), d_mlp_of(model), task.pairs, tail, item)
    one = bytes_per_pair(sizes, [*kinds, *(["pattern", "attn_scores"] if through_softmax else [])])
    if budget is None:
        return items_that_fit(DEFAULT_BUDGET, one, len(task))
    size = parse_budget(budget)
    require_room(
        size,
        one,
        "the two runs and the backward pass of one pair",
        "Give more, attribute fewer kinds of site at a time, or use shorter prompts.",
    )
    return items_that_fit(size, one, len(task))


def bytes_per_pair(sizes: Sizes, kinds: Sequence[str]) -> int:
    """Bytes of one pair at the peak of its backward pass.

    Per block: about twelve tensors as wide as the stream, queries to heads' outputs and their rotated copies, six
    tensors as wide as the MLP's hidden layer, five patterns; and at every site donor, host, change and coefficient.
    """
    a, n = sizes.anatomy, sizes.n_pos
    heads = 3 * a.n_heads * a.d_head + 6 * a.n_kv_heads * a.d_head
    mlp = 6 * sizes.d_mlp * (max(2, a.n_experts or 0) if a.n_experts else 1)
    block = n * (12 * a.d_model + heads + mlp) + 5 * a.n_heads * n**2
    kept = 4 * sum(sizes.activation(kind) for kind in dict.fromkeys(("resid_pre", *kinds)))
    return sizes.item * (a.n_layers * (block + kept) + 5 * sizes.n_tail * a.d_vocab)
