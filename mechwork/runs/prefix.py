"""The columns that all runs of some pairs share: computed once, as the keys and values that later columns attend to.

Prompts of a pair are often equal up to the first name or number that differs. In a causal model no run of either
prompt, no circuit whose cut edges carry the other prompt's writes, and no point between the two inputs differs there,
so those columns run once and everything else runs on the columns after them: exact, and the cost of a pass falls by
their share.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UnsupportedModelError
from ..models.anatomy import NATIVE, check_ready, device_of
from ..provenance import package_version
from ..shapes import Tokens
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first `n` columns of some prompts, as a cache of keys and values that is never written to."""

    n: int
    cache: Any

    def rest(self, tokens: Tokens) -> Int[Tensor, "batch later"]:
        """The columns that still have to run."""
        return tokens[:, self.n :]

    def arguments(self, n_pos: int, device: torch.device) -> dict[str, Any]:
        """What a forward of `rest` of prompts of `n_pos` columns is called with."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]  # updates make new tensors: these stay
        positions = torch.arange(self.n, n_pos, device=device)[None]
        return {"past_key_values": cache, "use_cache": True, "position_ids": positions}


def count_shared(model: TransformerBridge, task: Task, pairs: PromptPairs) -> int:
    """How many first columns are the same in both prompts of every pair, and are not read by the metric."""
    anatomy = check_ready(model)
    if not pairs.aligned or not task.metric.reads_final or anatomy.architecture == NATIVE or not anatomy.causal:
        return 0
    differing = (pairs.clean_tokens != pairs.corrupt_tokens).any(dim=0).nonzero()
    first = int(differing[0]) if len(differing) else 0
    return max(0, min(first, pairs.clean_tokens.shape[1] - pairs.n_tail))


def record_prefix(model: TransformerBridge, task: Task, pairs: PromptPairs) -> Prefix | None:
    """The columns that the two prompts of every pair share; None when there are none. Cost: a forward of those
    columns. Raises `UnsupportedModelError` where the host's attention does not fill its cache.
    """
    n = count_shared(model, task, pairs)
    if n == 0:
        return None
    from transformers import DynamicCache

    cache = DynamicCache(config=cast(Any, model.original_model).config)
    with torch.no_grad():
        model(
            pairs.clean_tokens[:, :n].to(device_of(model)),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    if cache.get_seq_length() != n:
        raise UnsupportedModelError(
            f"the attention of {type(model.original_model).__name__} did not keep its keys and values: transformers "
            f"{package_version('transformers')} and transformer-lens {package_version('transformer-lens')} do not fit "
            "together, and whatever is cached would be wrong. Install transformers<5.24."
        )
    return Prefix(n, cache)
