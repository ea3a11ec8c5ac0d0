"""Residual states: record them at every layer in one forward that ends with the last of them.

Places of a reading are sites of the residual stream in the order in which the model computes them, ending with the
stream that leaves the last block, whose reading is the model's own output.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import NATIVE, ModelAnatomy, device_of, read_anatomy
from ..models.borrow import hooked, run_tail
from ..shapes import Tokens
from ..sites import Site, hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RESIDUAL = ("resid_pre", "resid_mid", "resid_post")
"""Kinds of site that hold the residual stream, in order within a block."""


def lens_sites(anatomy: ModelAnatomy, kinds: Sequence[str] = ("resid_pre",)) -> list[Site]:
    """The sites of `kinds`, layer by layer, and the last one of all: the stream leaving the last block.

    Raises `InputError` for kinds that do not hold the stream, or that the model does not have.
    """
    wrong = [kind for kind in kinds if kind not in RESIDUAL]
    if wrong or not kinds:
        raise InputError(f"lenses read the residual stream: {', '.join(RESIDUAL)}; got {', '.join(wrong) or 'none'}")
    sites = [Site(k, layer) for layer in range(anatomy.n_layers) for k in RESIDUAL if k in kinds]
    for site in sites:
        anatomy.check_site(site)
    last = Site("resid_post", anatomy.n_layers - 1)
    return sites if sites[-1] == last else [*sites, last]


class _Recorded(Exception):  # noqa: N818 - a stop, not a fault
    """Every state is there: the rest of the forward would be thrown away."""


def record_states(
    model: TransformerBridge, tokens: Tokens, sites: Sequence[Site]
) -> list[Float[Tensor, "batch pos d_model"]]:
    """The stream at each of `sites`. Cost: 1 forward as far as the last of them, without unembedding."""
    found: dict[Site, Tensor] = {}
    wanted = dict.fromkeys(sites)

    def keep(site: Site) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            found[site] = activation.detach()
            if len(found) == len(wanted):
                raise _Recorded

        return hook

    hooks = [(hook_name(site), keep(site)) for site in wanted]
    with torch.no_grad(), hooked(model, hooks), suppress(_Recorded):
        model(tokens.to(device_of(model)))
    return [found[site] for site in sites]


def run_to_the_end(model: TransformerBridge, tokens: Tokens) -> Tensor:
    """All blocks, and the logits of the last position alone (native models: of all)."""
    tail = None if read_anatomy(model).architecture == NATIVE else 1
    return run_tail(model, tokens.to(device_of(model)), tail)[:, -1]
