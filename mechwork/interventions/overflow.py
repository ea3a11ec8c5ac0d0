"""A guard around any intervention: numbers that are not finite are refused where they first appear, with the layer.

Half precision ends at 65504 (float16); a strength that is harmless in float32 can make every logit NaN, and a metric of
NaN says nothing about where. Cost: one check per block and forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MetricError
from ..models.anatomy import check_ready, dtype_of
from ..models.borrow import hooked
from ..sites import Site, hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def guard_overflow(model: TransformerBridge, what: str = "an intervention") -> Iterator[None]:
    """Inside, a forward whose residual stream stops being finite raises `MetricError` that names the first layer and
    the dtype.

    >>> with intervene(model, [Write(site, Add(vector, 1e6))]), guard_overflow(model, "add at strength 1e6"):
    ...     model(tokens)
    """
    anatomy = check_ready(model)
    dtype = str(dtype_of(model)).removeprefix("torch.")

    def watch(where: str) -> Callable[[Tensor, Any], None]:
        def hook(activation: Tensor, hook: Any) -> None:
            if not bool(activation.isfinite().all()):
                limit = f" (largest number {torch.finfo(activation.dtype).max:.4g})"
                raise MetricError(
                    f"{what} overflows {dtype}{limit}, first in {where}. Use a smaller strength, or a wider dtype"
                )

        return hook

    places = [("the embedding", Site("resid_pre", 0))]
    for layer in range(anatomy.n_layers):
        places.append((f"layer {layer}", Site("resid_post", layer)))
        if layer + 1 < anatomy.n_layers:  # the next block's input: also what was written after this hook
            places.append((f"layer {layer}", Site("resid_pre", layer + 1)))
    places.append(("the logits", Site("logits")))
    with hooked(model, [(hook_name(site), watch(where)) for where, site in places]):
        yield
