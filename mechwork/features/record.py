"""Record features: one forward pass, the vectors at every place read or written, and what coders make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..lenses.states import run_to_the_end
from ..models.anatomy import device_of
from ..models.borrow import borrows, hooked
from ..shapes import Tokens
from ..sites import Site, hook_name
from .coder import Coder, as_vectors, working

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Coded(Readable):
    """One run through one coder: features, error (what was written less its reconstruction), and the vectors
    themselves.
    """

    features: Float[Tensor, "batch pos feature"]
    error: Float[Tensor, "batch pos d_out"]
    written: Float[Tensor, "batch pos d_out"]


def record_sites(
    model: TransformerBridge, tokens: Tokens, sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "batch pos d"]]:
    """One vector per position at each site, heads side by side. Cost: 1 forward."""
    found: dict[Site, Tensor] = {}

    def keep(site: Site) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            found[site] = as_vectors(activation if site.head is None else activation[:, :, site.head]).detach()

        return hook

    with torch.no_grad(), hooked(model, [(hook_name(site), keep(site)) for site in dict.fromkeys(sites)]):
        run_to_the_end(model, tokens.to(device_of(model)))
    return found


@borrows
def record_features(model: TransformerBridge, tokens: Tokens, coders: Sequence[Coder]) -> list[Coded]:
    """What every coder makes of the prompts, in the given order. Cost: 1 forward.

    >>> active = record_features(model, tokens, list(features))[0].features[0, -1].nonzero()
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise InputError(f"features are recorded of token ids [batch, pos]; got {tokens.dtype} {tuple(tokens.shape)}")
    found = record_sites(model, tokens, [site for coder in coders for site in (coder.reads, coder.writes)])
    return [code(coder, found[coder.reads], found[coder.writes]) for coder in coders]


def code(coder: Coder, read: Float[Tensor, "batch pos d_in"], written: Float[Tensor, "batch pos d_out"]) -> Coded:
    """Features and error of recorded vectors; features W_dec + ... + error is `written` to rounding."""
    with torch.no_grad():
        f = coder.encode(read)
        return Coded(f, working(written) - coder.decode(f, read), written)
