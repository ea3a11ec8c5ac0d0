"""How a cell changes the residual stream: the stream rows with which a patched run leaves its host.

Every cell is turned into rows of the stream at some block's entrance, so that the sweep only ever continues rows. A
cell at ``resid_pre`` or ``embed`` enters its own block; every other kind is worked out inside its block, at the changed
columns alone, and enters the next one (entrance ``n_layers`` is the final stream):

    z, result       resid_post = mid + mlp(mid),  mid = resid_pre + [post](W_O z' + b)
    q, k, v, pattern, attn_scores   the same with the attention of the block run again, edited
    attn_out, resid_mid             the same with the new mid given
    mlp_post        resid_post = mid + [post](W_out mlp_post')
    router_logits   resid_post = mid + [post](mlp(mid), its experts chosen and weighted anew)
    mlp_out, expert_out, resid_post by addition
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..interventions import Where
from ..names import EXPERT_OUT
from ..sites import Site, hook_name
from .sides import SQUARE, Sides
from .sweep import Cell

READS_LATER = ("k", "v")
"""Kinds that later queries of the same block read: all columns from the first changed one on come out different."""
IN_ATTENTION = ("q", "k", "v", *SQUARE)
IN_MLP = ("mlp_post", "router_logits")


def entrance(kind: str, layer: int) -> int:
    """The block whose input a cell's rows are."""
    return layer if kind in ("resid_pre", "embed") else layer + 1


def effective_mask(
    kind: str,
    cell: Cell,
    place: Bool[Tensor, "batch pos"],
    changed: Bool[Tensor, "batch pos ..."],
    ends: Tensor | None,
    *,
    last: bool,
) -> Bool[Tensor, "batch pos"]:
    """The positions at which the cell changes anything that the metric can read.

    `changed`: where donor and host differ at the cell's kind and layer (`Sides.changed`); `last`: the last layer.
    `ends`: the columns of each row that the metrics read (None: all of them); a write to the stream of the last layer
    matters there alone.
    """
    if cell.head is not None:
        changed = changed[:, :, cell.head]
    elif kind == "mlp_post":
        changed = (changed[:, :, list(cell.neurons)] if cell.neurons else changed).any(dim=-1)
    mask = place & changed.to(place.device)
    if ends is not None and last and kind not in ("resid_pre", "embed", *READS_LATER):
        mask = mask & (torch.arange(mask.shape[1], device=mask.device) == ends[..., None]).any(dim=1)
    return mask


def stream_rows(
    sides: Sides,
    kind: str,
    layer: int,
    cells: Sequence[Cell],
    places: Bool[Tensor, "n batch pos"],
    start: int,
    ends: Tensor | None,
) -> Float[Tensor, "row column d_model"]:
    """The rows (cells x pairs) with which cells of one kind and layer enter at ``entrance``, columns ``start ..``.

    `places` are the positions each cell patches. Cost: nothing, or the block's changed part at the changed columns.
    """
    frame = sides.frame
    assert frame is not None
    n = len(cells)
    if kind in ("resid_pre", "embed"):
        value = sides.embedded if kind == "embed" else sides.value(kind, layer)
        return _choose(places[:, :, start:, None], value[:, start:], frame.resid_pre[layer][:, start:])
    base = frame.resid_pre[layer + 1]
    if kind == "resid_post":
        return _choose(places[:, :, start:, None], sides.value(kind, layer)[:, start:], base[:, start:])
    if kind == "mlp_out":
        new = frame.resid_pre[layer] + sides.host.layers["attn_out"][layer] + sides.value(kind, layer)
        return _choose(places[:, :, start:, None], new[:, start:], base[:, start:])
    if kind == EXPERT_OUT:
        return (base[:, start:] + expert_change(sides, layer, cells, places)[:, :, start:]).flatten(0, 1)
    columns = _columns(kind, layer, places, start, ends, frame.n_layers)
    post = _post(sides, kind, layer, cells, places, columns)
    rows = base[:, start:].repeat(n, 1, 1)
    rows[:, columns.start - start : columns.stop - start] = post
    return rows


def _columns(
    kind: str, layer: int, places: Bool[Tensor, "n batch pos"], start: int, ends: Tensor | None, n_layers: int
) -> slice:
    """The columns whose stream can come out different from the host's, and can be read."""
    width = places.shape[-1]
    touched = places.any(dim=0).any(dim=0).nonzero().flatten()
    stop = width if kind in READS_LATER else int(touched.max()) + 1
    if ends is not None and layer == n_layers - 1:
        read = slice(start if kind in READS_LATER else max(start, int(ends.min())), min(stop, int(ends.max()) + 1))
        return read if read.start < read.stop else slice(start, stop)
    return slice(start, stop)


def _post(
    sides: Sides, kind: str, layer: int, cells: Sequence[Cell], places: Bool[Tensor, "n batch pos"], columns: slice
) -> Float[Tensor, "row column d_model"]:
    """``resid_post`` of `layer` at `columns`, for kinds whose block has to be worked out."""
    frame, n = sides.frame, len(cells)
    assert frame is not None
    pre = frame.resid_pre[layer][:, columns].repeat(n, 1, 1)
    if kind in IN_MLP:
        attn_out = sides.host.layers["attn_out"][layer][:, columns].repeat(n, 1, 1)
        read = pre if frame.anatomy.parallel else pre + attn_out
        return pre + attn_out + frame.feed(layer, read, _edit(sides, kind, layer, cells, places, columns))
    if kind == "resid_mid":
        old = frame.resid_pre[layer][:, columns] + sides.host.layers["attn_out"][layer][:, columns]
        mid = _choose(places[:, :, columns, None], sides.value(kind, layer)[:, columns], old)
        return mid + frame.feed(layer, mid)
    if kind in IN_ATTENTION:
        attn_out = frame.attend(layer, pre, columns.start, _edit(sides, kind, layer, cells, places, columns))
    elif kind in ("z", "result"):
        mask = entries_of(cells, places[:, :, columns], frame.anatomy.n_heads)[..., None]
        z = _choose(mask, sides.value("z", layer)[:, columns], sides.own("z", layer)[:, columns])
        attn_out = frame.project(layer, z)
    else:
        own = sides.own("attn_out", layer)[:, columns]
        attn_out = _choose(places[:, :, columns, None], sides.value(kind, layer)[:, columns], own)
    mid = pre + attn_out
    if frame.anatomy.parallel:
        return mid + sides.host.layers["mlp_out"][layer][:, columns].repeat(n, 1, 1)
    return mid + frame.feed(layer, mid)


def _edit(
    sides: Sides, kind: str, layer: int, cells: Sequence[Cell], places: Bool[Tensor, "n batch pos"], columns: slice
) -> list[tuple[str, Any]]:
    """The hook that puts the donor's values into an activation inside attention or the MLP, row by row."""
    n, value = len(cells), sides.value(kind, layer)
    at = places[:, :, columns]
    if kind in SQUARE:
        mask = square_entries(cells, at, sides.anatomy.n_heads)
        value = value[:, :, columns, : columns.stop]
    else:
        mask = entries_of(cells, at, value.shape[2]).flatten(0, 1)
        mask = mask if kind in IN_MLP else mask[..., None]
        value = value[:, columns]
    replacement = Where(mask.to(value.device), value.repeat(n, *[1] * (value.ndim - 1)))

    def put(activation: Tensor, hook: Any) -> Tensor:
        return replacement(activation)

    return [(hook_name(Site(kind, layer)), put)]


def expert_change(
    sides: Sides, layer: int, cells: Sequence[Cell], places: Bool[Tensor, "n batch pos"]
) -> Float[Tensor, "n batch pos d_model"]:
    """What each cell's expert adds to the MLP's output with the other run's write in place of its own."""
    change = sides.value(EXPERT_OUT, layer) - sides.own(EXPERT_OUT, layer)
    own = torch.stack([change[:, :, cell.head] for cell in cells])
    return torch.where(places[..., None], own, torch.zeros_like(own))


def entries_of(
    cells: Sequence[Cell], places: Bool[Tensor, "n batch column"], size: int
) -> Bool[Tensor, "n batch column entry"]:
    """The positions and entries (heads, neurons) that each cell patches; all entries for a cell that names none."""
    chosen = torch.ones(len(cells), size, dtype=torch.bool, device=places.device)
    for row, cell in enumerate(cells):
        named = list(cell.neurons) if cell.neurons else [] if cell.head is None else [cell.head]
        if named:
            chosen[row] = False
            chosen[row, named] = True
    return places[..., None] & chosen[:, None, None]


def square_entries(
    cells: Sequence[Cell], places: Bool[Tensor, "n batch query"], n_heads: int
) -> Bool[Tensor, "rows head query 1"]:
    """The same for attention's kinds with two positions, as rows (cells x pairs): whole rows of keys."""
    return rearrange(entries_of(cells, places, n_heads), "n batch query head -> (n batch) head query 1")


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``where(mask, new, old)`` for masks ``[n, batch, ...]``, as rows (n x batch)."""
    return torch.where(mask.to(old.device), new.to(old.device), old).flatten(0, 1)
