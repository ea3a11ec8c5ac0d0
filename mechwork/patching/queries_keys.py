"""The query/key fix of AtP* (Kramár et al. 2024, section 3.1): patched queries and keys go through the softmax exactly.

    estimate = sum over (query, key) of (pattern with the donor's q or k - pattern) * d m / d pattern

A saturated softmax has no gradient, so a linear estimate of what a query or key does is 0 where its effect is large.
Cost: one forward per layer and kind, restarted at the layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UnsupportedModelError
from ..interventions import Value, Write, intervene
from ..models.anatomy import read_anatomy
from ..runs.record import record_run
from ..runs.restart import restart_at
from ..sites import Site
from ..tasks.pairs import PromptPairs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

QUERY_KEY = ("q", "k")


def check_open(model: TransformerBridge, what: str = "the query/key fix") -> None:
    """Raises `UnsupportedModelError` where the pattern is not part of the graph that gradients are taken through."""
    anatomy = read_anatomy(model)
    if not anatomy.open_attention:
        raise UnsupportedModelError(
            f"{what} needs gradients at attention patterns, which {anatomy.architecture} computes inside the wrapped "
            "module, out of reach. "
            "Use another kind of score there, e.g. rules='relp' at sites, or edges without positions."
        )


def patched_scores(
    model: TransformerBridge,
    pairs: PromptPairs,
    kind: str,
    layer: int,
    value: Float[Tensor, "batch pos own_head d_head"],
    resid_pre: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Attention scores of a layer with all its queries (or keys) replaced by `value`. Cost: 1 forward from the layer
    on.
    """
    with restart_at(model, layer, resid_pre), intervene(model, [Write(Site(kind, layer), Value(value))]):
        recorded = record_run(model, pairs, ["attn_scores"], n_tail=1).layers["attn_scores"]
    return recorded[0]  # the blocks below did not run


def fixed_cells(
    kind: str,
    host: Float[Tensor, "batch head query_pos key_pos"],
    patched: Float[Tensor, "batch head query_pos key_pos"],
    coefficient: Float[Tensor, "batch head query_pos key_pos"],
    masks: Bool[Tensor, "cell batch pos"],
    group_size: int,
) -> Float[Tensor, "batch cell own_head"]:
    """The estimate for every cell (a set of positions whose query or key is patched) and head of the kind.

    A query changes its own row of the scores, a key its own column; a key/value head serves `group_size` query heads.
    """
    pattern, cells = host.softmax(dim=-1), []
    for mask in masks.to(host.device):
        where = mask[:, None, :, None] if kind == "q" else mask[:, None, None, :]
        change = torch.where(where, patched, host).softmax(dim=-1) - pattern
        by_head = (change * coefficient).sum(dim=(-2, -1))
        cells.append(by_head if kind == "q" else by_head.unflatten(1, (-1, group_size)).sum(dim=-1))
    return torch.stack(cells, dim=1)
