"""Which edges of a circuit can matter: those on a path from the input to the logits, and those whose outcome is not
known anyway.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from ...models.pulse import beat
from ...shapes import EdgeMask
from .space import EdgeSpace


def prune(space: EdgeSpace, mask: EdgeMask) -> EdgeMask:
    """`mask` without the edges that lie on no path from the input to the logits.

    A component is alive when some edge from a living writer reaches one of its readers, and useful when some edge
    leads from it to a useful reader. Writers are in running order, so one sweep each way is enough; each writer's edges
    are looked at once. Cost: writers x readers.
    """
    return mask & living(space, mask)[:, None] & useful(space, mask)[None, :]


def living(space: EdgeSpace, mask: EdgeMask, coupled: tuple[bool, ...] | None = None) -> Bool[Tensor, " writer"]:
    """Writers that a path leads to from the input (or a source of the space). Heads of layers that are `coupled` live
    all when one does.
    """
    alive = space.begins.clone()
    fed = mask[: space.n_inputs].any(dim=0)
    for layer in range(space.n_layers):
        rows = space.head_writers(layer)
        alive[rows] |= (space.feeds[rows] & fed).any(dim=1)
        if coupled is not None and coupled[layer]:
            alive[rows] = bool(alive[rows].any())
        parallel = fed
        fed = fed | (mask[rows] & alive[rows, None]).any(dim=0)
        if not space.attn_only:
            rows = space.mlp_writers(layer)
            alive[rows] |= (parallel if space.parallel else fed)[space.mlp_reader(layer)]
            fed = fed | (mask[rows] & alive[rows, None]).any(dim=0)
    return alive


def useful(space: EdgeSpace, mask: EdgeMask, coupled: tuple[bool, ...] | None = None) -> Bool[Tensor, " reader"]:
    """Readers from which a path leads to the logits. Heads of layers that are `coupled` are useful all when one is."""
    heard = torch.zeros(space.n_readers, dtype=torch.bool)
    heard[space.logits_reader] = True
    for layer in reversed(range(space.n_layers)):
        if not space.attn_only and bool((mask[space.mlp_writers(layer)] & heard).any()):
            heard[space.mlp_reader(layer)] = True
        rows = space.head_writers(layer)
        speaks = (mask[rows] & heard).any(dim=1)
        if coupled is not None and coupled[layer]:
            speaks = speaks.any().expand(len(speaks))
        heard |= (space.feeds[rows] & speaks[:, None]).any(dim=0)
    return heard


def effective(space: EdgeSpace, mask: EdgeMask, coupled: tuple[bool, ...], *, paired: bool) -> EdgeMask:
    """The edges of `mask` that can change the logits: circuits that agree in them compute the same.

    Edges into readers that lead nowhere never do. When cut edges carry the writes of one other run (`paired`), a
    component that no path reaches from the input computes its write in that run, so that edges from it do not either.
    """
    beat()
    kept = mask & useful(space, mask, coupled)[None, :]
    return kept & living(space, kept, coupled)[:, None] if paired else kept
