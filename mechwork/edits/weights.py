"""The two weights of a layer that write to the residual stream, named and turned alike in every architecture.

    W_O.l    [n_heads * d_head, d_model]   attention of layer l puts out  z W_O (+ b_O)
    W_out.l  [d_mlp, d_model]              the MLP of layer l puts out  mlp_post W_out (+ b_out)

Host modules keep them either way round; `find_weight` says which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..display import Readable
from ..errors import InputError, UnsupportedModelError
from ..models.anatomy import Norm, block_norm, check_ready
from ..models.borrow import borrows
from ..sites import Site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("W_O", "W_out")
INPUTS = {"W_O": "z", "W_out": "mlp_post"}
"""The kind of site that each reads."""
POST_NORMS = {"W_O": "ln1_post", "W_out": "ln2_post"}


@dataclass(frozen=True, eq=False)
class Weight(Readable):
    """A live parameter; `flipped` when the host keeps it as ``[d_model, d_in]``."""

    parameter: nn.Parameter
    flipped: bool
    bias: Tensor | None

    def read(self) -> Float[Tensor, "d_in d_model"]:
        """The numbers, this way round."""
        value = self.parameter.detach()
        return value.T if self.flipped else value

    def as_host(self, value: Float[Tensor, "d_in d_model"]) -> Tensor:
        """Numbers of this way round as the host keeps them."""
        return value.T if self.flipped else value


def parse_weight(name: str) -> tuple[str, int]:
    """Kind and layer of ``"W_out.3"``; raises `InputError` for anything else."""
    match = re.fullmatch(r"(W_O|W_out)\.(\d+)", name)
    if match is None:
        raise InputError(
            f"weights that can be edited are named {' or '.join(f'{kind}.<layer>' for kind in KINDS)}; got {name!r}"
        )
    return match[1], int(match[2])


@borrows
def find_weight(model: TransformerBridge, name: str) -> Weight:
    """The live parameter called ``"W_O.2"`` or ``"W_out.2"``.

    Raises `InputError` for a layer that is not there or an MLP of experts, `UnsupportedModelError` for a module that is
    not one linear map.
    """
    kind, layer = parse_weight(name)
    check_ready(model).check_site(Site(INPUTS[kind], layer))
    block: Any = model.blocks[layer]
    module = block.attn.o if kind == "W_O" else block.mlp.out
    while isinstance(getattr(module, "original_component", None), nn.Module):
        module = module.original_component
    parameter = getattr(module, "weight", None)
    if not isinstance(parameter, nn.Parameter) or parameter.ndim != 2:
        raise UnsupportedModelError(
            f"{name} of this model is a {type(module).__name__}, not one linear map; it cannot be edited"
        )
    found = Weight(parameter, not isinstance(module, Conv1D), getattr(module, "bias", None))
    host = (block.attn.W_O if kind == "W_O" else block.mlp.W_out).detach().reshape(-1, int(model.cfg.d_model))
    if found.read().shape != host.shape or not torch.equal(found.read(), host):
        raise UnsupportedModelError(f"{name} of this model is not kept as the host shows it; it cannot be edited")
    return found


def post_norm(model: TransformerBridge, name: str) -> Norm | None:
    """The norm between what a weight puts out and the residual stream (Gemma 2, OLMo 2); None in most models."""
    kind, layer = parse_weight(name)
    return block_norm(model, layer, POST_NORMS[kind])
