"""How many pairs go through one gradient pass: what an attribution takes at its peak, and how much of it fits a budget.

Bytes are counted beside the weights: the donor's and the host's activations at the sites asked for, their coefficients,
what the backward pass needs of every block, and the logits that the metric reads (`runs.room.Sizes.graph`). Where one
pair's blocks do not fit together, they run again one by one (`runs.remake`). Counts, not measurements; the tests
measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..execute.memory import MemoryBudget, items_that_fit, parse_budget, require_room
from ..models.anatomy import check_ready, dtype_of
from ..runs.room import DEFAULT_BUDGET, d_mlp_of, sizes_of
from ..tasks.task import Task
from .memory import tail_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class PassPlan:
    """Pairs of a micro-batch, and whether blocks run again in the backward pass."""

    n_pairs: int
    remade: bool = False


def plan_passes(
    model: TransformerBridge,
    task: Task,
    kinds: Sequence[str],
    budget: MemoryBudget | None,
    *,
    through_softmax: bool = False,
    whole: bool = False,
) -> PassPlan:
    """Micro-batches within `budget` (None: 1 GiB, or what one pair takes). `through_softmax`: scores and patterns are
    kept; `whole`: blocks cannot run again (GradDrop goes back through one graph many times).

    Raises `InputError` for a budget that does not hold one pair.
    """
    item = torch.finfo(dtype_of(model)).bits // 8
    tail = tail_of(task.pairs, [task.metric], sparing=True)
    sizes = sizes_of(check_ready(model), d_mlp_of(model), task.pairs, tail, item)
    kept = [*kinds, *(["pattern", "attn_scores"] if through_softmax else [])]
    one, least = sizes.graph(kept), sizes.graph(kept, remade=not whole)
    size = DEFAULT_BUDGET if budget is None else parse_budget(budget)
    if budget is not None:
        require_room(
            size,
            least,
            "the two runs and the backward pass of one pair",
            "Give more, attribute fewer kinds of site at a time, or use shorter prompts.",
        )
    remade = size < one and not whole
    return PassPlan(items_that_fit(size, least if remade else one, len(task)), remade)
