"""The two recorded runs of some pairs: the donor, whose values are put in, and the host, which is patched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..interventions.routing import expert_writes
from ..models.anatomy import ModelAnatomy, device_of, read_anatomy
from ..names import EXPERT_OUT
from ..runs.frame import Frame, build_frame, keep_attention_calls
from ..runs.record import Run, align_donor, record_run
from ..runs.room import RECORDED_AS
from ..sites import SQUARE_KINDS
from ..tasks.marks import is_marked
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .result import Direction

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Share = Callable[[Tensor, Tensor], Tensor]
"""``(donor, host) -> what is put in``: the donor itself, or its part along some directions."""

Given = Callable[[str, int, Tensor], Tensor]
"""``(kind, layer, the host's activation) -> what is put in``, in place of a donor's activation: how ablations are
swept.
"""

SQUARE = SQUARE_KINDS
"""Kinds with a query and a key axis; a cell's positions are the queries'."""


def host_pairs(pairs: PromptPairs, direction: Direction) -> PromptPairs:
    """Pairs whose `clean` side is the run that is patched."""
    return pairs.corrupt_as_host() if direction == "denoise" else pairs


@dataclass(frozen=True, eq=False)
class Sides:
    """Host and donor of one block of pairs. `pairs` has the host as its clean side; `share` says what of the donor is
    put in, `given` what is put in instead of it.
    """

    model: TransformerBridge
    anatomy: ModelAnatomy
    pairs: PromptPairs
    host: Run
    donor: Run
    frame: Frame | None
    share: Share | None = None
    given: Given | None = None

    @cached_property
    def _index(self) -> Tensor:
        return self.pairs.alignment().to(device_of(self.model))

    @cached_property
    def _writes(self) -> dict[tuple[bool, int], Tensor]:
        """Experts' writes that were worked out, of the donor or not, by layer."""
        return {}

    def _read(self, kind: str, layer: int, *, donor: bool) -> Tensor:
        run = self.donor if donor else self.host
        if kind != EXPERT_OUT:
            return run.layers[RECORDED_AS.get(kind, kind)][layer]
        if (donor, layer) not in self._writes:
            with torch.no_grad():
                writes = expert_writes(self.model, layer, run.layers["mlp_in"][layer])
            self._writes[donor, layer] = rearrange(writes, "expert batch pos d_model -> batch pos expert d_model")
        return self._writes[donor, layer]

    def own(self, kind: str, layer: int) -> Tensor:
        """The host's activation."""
        return self._read(kind, layer, donor=False)

    def value(self, kind: str, layer: int) -> Tensor:
        """What is put in: the donor's activation (or the share of it), moved to the host's positions."""
        kind = kind if kind == EXPERT_OUT else RECORDED_AS.get(kind, kind)
        if self.given is not None:
            return self.given(kind, layer, self.own(kind, layer))
        if kind in SQUARE:  # only for pairs of equal length, whose positions correspond one to one
            return self.donor.layers[kind][layer]
        own = self.own(kind, layer)
        moved = align_donor(self._read(kind, layer, donor=True), own, self._index)
        return moved if self.share is None else self.share(moved, own)

    def changed(self, kind: str, layer: int) -> Bool[Tensor, "batch pos ..."]:
        """Where donor and host differ: ``[batch, pos]``, or with a last axis of heads, experts or neurons."""
        differs = self.value(kind, layer) != self.own(kind, layer)
        if kind in SQUARE:
            return differs.any(dim=-1).transpose(1, 2)
        return differs if kind == "mlp_post" else differs.any(dim=-1)

    @property
    def embedded(self) -> Float[Tensor, "batch pos d_model"]:
        """The stream entering block 0 with the donor's token embeddings at the host's positions."""
        stream = align_donor(self.donor.layers["resid_pre"][0], self.host.layers["resid_pre"][0], self._index)
        if not hasattr(self.model, "pos_embed"):
            return stream  # positions enter by rotation only
        return self.value("embed", 0) + (self.host.layers["resid_pre"][0] - self.own("embed", 0))


def record_sides(
    model: TransformerBridge, task: Task, kinds: Sequence[str], direction: str, *, stepping: bool, n_tail: int | None
) -> Sides:
    """Both runs of the task's pairs; with `stepping`, the host's as a frame. Cost: 2 forwards.

    `n_tail`: how many last columns the metrics read (None: all). Raises `UnsupportedModelError` with `stepping` when
    the model cannot be stepped through.
    """
    pairs = (task.pairs.corrupt_as_host() if direction == "denoise" else task.pairs).to(device_of(model))
    if stepping and is_marked(pairs.clean_tokens):
        raise InputError(
            "a run with writes is patched by whole forwards: pass Tricks(suffix=False, readout=False), or patch the "
            "run without them (direction='denoise')"
        )
    needed = list(dict.fromkeys(["resid_pre", *(RECORDED_AS.get(kind, kind) for kind in kinds)]))
    donor = record_run(
        model, pairs, [k for k in needed if k != "resid_pre" or _reads_stream(kinds)], corrupt=True, n_tail=n_tail
    )
    if not stepping:
        needed += ["mlp_out"] if EXPERT_OUT in kinds and "mlp_out" not in needed else []
        return Sides(model, read_anatomy(model), pairs, record_run(model, pairs, needed, n_tail=n_tail), donor, None)
    extra = [kind for kind in ("attn_out", "mlp_out", "resid_post") if read_anatomy(model).has_site(kind)]
    with keep_attention_calls(model) as calls:
        host = record_run(model, pairs, list(dict.fromkeys([*needed, *extra])), n_tail=n_tail)
    with torch.no_grad():
        frame = build_frame(model, [*host.layers["resid_pre"], host.layers["resid_post"][-1]], calls)
    return Sides(model, frame.anatomy, pairs, host, donor, frame)


def _reads_stream(kinds: Sequence[str]) -> bool:
    return bool({"resid_pre", "embed"} & set(kinds))


def check_square(kinds: Sequence[str], pairs: PromptPairs) -> None:
    """Raises `InputError` when patterns of prompts of different length are to be exchanged."""
    square = [kind for kind in kinds if kind in SQUARE]
    if square and not pairs.aligned:
        raise InputError(
            f"{square[0]!r} has a query and a key position, which correspond only in prompts of equal length; pairs "
            "of this task differ. "
            "Reword them to equal length, or patch 'z', 'q', 'k' or 'v' by span."
        )


def as_mask(places: Bool[Tensor, "n batch pos"], extra: Any) -> Bool[Tensor, "n batch pos ..."]:
    """Position masks narrowed to one entry of a further axis each: ``[n, batch, pos, k]``."""
    return places[..., None] & extra
