"""How many prompts an ablation runs at a time: what one prompt takes at its peak, cut by the one memory planner.

Counted beside the weights: one forward's own activations, the logits that are kept of the plain and of the changed run,
and what is recorded. Counts, not measurements. Blocks depend on sizes alone, so that every executor has the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..execute.memory import MemoryBudget, items_that_fit, parse_budget, require_room
from ..models.anatomy import dtype_of, read_anatomy
from ..patching.memory import Sizes, d_mlp_of
from ..patching.passes import DEFAULT_BUDGET
from ..sites import Site
from ..tasks.pairs import PromptPairs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_KEPT = 4
"""Tables of logits that two runs and their comparison hold at a time."""


def prompts_that_fit(
    model: TransformerBridge,
    pairs: PromptPairs,
    budget: MemoryBudget = DEFAULT_BUDGET,
    *,
    sites: Sequence[Site] = (),
    n_tail: int | None = None,
    extra: int = 0,
) -> int:
    """How many of `pairs` one pass takes: whole questions, at least one.

    `sites` are recorded, `n_tail` columns of logits read (None: those of the answers), `extra` bytes per prompt are the
    caller's own. Raises `InputError` when not even one prompt fits the budget.
    """
    size = parse_budget(budget)
    tail = pairs.n_tail if n_tail is None else n_tail
    one = torch.finfo(dtype_of(model)).bits // 8
    sizes = Sizes(read_anatomy(model), d_mlp_of(model), pairs.clean_tokens.shape[1], tail, one)
    recorded = sum(sizes.activation(site.kind) for site in sites)
    logits = N_KEPT * tail * sizes.anatomy.d_vocab
    per_prompt = sizes.run(sizes.n_pos, tail) + one * (recorded + logits) + extra
    require_room(size, per_prompt, "the runs of one prompt", "Give more, or use shorter prompts.")
    return pairs.whole(items_that_fit(size, per_prompt, len(pairs)))
