"""GradDrop (Kramár et al. 2024, section 3.2): backward passes that skip what one layer adds to the stream.

Direct and indirect effects of a place can cancel in a gradient. Leaving out one layer at a time makes such a
cancellation show in most of the passes, so magnitudes are averaged over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..models.anatomy import check_ready
from ..models.borrow import hooked
from ..sites import Site, hook_name
from .straight import scale_gradient

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(eq=False)
class LayerDrop:
    """Which layer's writes the next backward pass goes around; None: it takes every way."""

    layer: int | None = None


@contextmanager
def droppable_layers(model: TransformerBridge) -> Iterator[LayerDrop]:
    """Inside, forward passes build a graph whose backward passes skip the writes of the layer chosen at that time."""
    anatomy, drop = check_ready(model), LayerDrop()

    def gate(layer: int) -> Any:
        def hook(written: Tensor, hook: Any) -> Tensor:
            return scale_gradient(written, lambda: 0.0 if drop.layer == layer else 1.0)

        return hook

    kinds = [kind for kind in ("attn_out", "mlp_out") if anatomy.has_site(kind)]
    hooks = [(hook_name(Site(kind, layer)), gate(layer)) for kind in kinds for layer in range(anatomy.n_layers)]
    with hooked(model, hooks):
        yield drop
