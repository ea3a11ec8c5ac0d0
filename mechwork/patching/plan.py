"""What patching and attribution share: which cells a result has, and which run is the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import ModelAnatomy
from ..provenance import Provenance
from ..runs.record import Baseline
from ..sites import SITE_KINDS, Site, site_kind
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .result import Direction, Effect

PATCHABLE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_post")
"""Kinds with a position axis whose cells are (layer, position) or (layer, position, head)."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The cells of one kind of site at any layer: masks of positions, times heads for per-head kinds."""

    kind: str
    masks: Bool[Tensor, "cell batch pos"]
    heads: tuple[int | None, ...]
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]

    @property
    def cells(self) -> list[tuple[int, int | None]]:
        """(index of the position mask, head) of every cell of a layer."""
        return [(i, head) for i in range(len(self.masks)) for head in self.heads]

    @property
    def n_cells(self) -> int:
        return len(self.labels["layer"]) * len(self.masks) * len(self.heads)

    def effect(
        self,
        values: Float[Tensor, "batch layer cell"],
        task: Task,
        baseline: Baseline,
        direction: Direction,
        provenance: Provenance,
        *,
        estimated: bool,
    ) -> Effect:
        """The result of these cells: `values` per pair with the cell axis split into the axes of the result."""
        sizes = (len(self.labels[axis]) for axis in self.axes)
        return Effect(
            kind=self.kind,
            per_example=values.reshape(len(values), *sizes).cpu(),
            axes=self.axes,
            labels=self.labels,
            baseline=baseline,
            direction=direction,
            estimated=estimated,
            metric_name=task.metric.name,
            provenance=provenance,
        )


def build_plan(anatomy: ModelAnatomy, task: Task, pairs: PromptPairs, kind: str, positions: str | None) -> Plan:
    """Which cells a kind of site is patched at, and how the result's axes are named."""
    per_head = site_kind(kind).per_head
    positions = positions or ("all" if per_head else "each")
    names, masks = pairs.cells(positions)
    n_heads = anatomy.n_kv_heads if kind in ("k", "v") else anatomy.n_heads
    axes, labels = ["layer"], {"layer": tuple(str(layer) for layer in range(anatomy.n_layers))}
    if positions != "all":
        axes.append("pos")
        labels["pos"] = task.position_labels(names)
    if per_head:
        axes.append("head")
        labels["head"] = tuple(str(head) for head in range(n_heads))
    heads: tuple[int | None, ...] = tuple(range(n_heads)) if per_head else (None,)
    return Plan(kind, masks, heads, tuple(axes), labels)


def host_pairs(pairs: PromptPairs, direction: Direction) -> PromptPairs:
    """Pairs whose `clean` side is the run that is patched."""
    return pairs.corrupt_as_host() if direction == "denoise" else pairs


def check_patchable(anatomy: ModelAnatomy, kinds: Sequence[str]) -> None:
    """Raises `InputError` for kinds that are unknown, not in this model, or without positions."""
    if not kinds or isinstance(kinds, str):
        raise InputError(f"sites is a list of site kinds, e.g. ['resid_pre', 'z']; got {kinds!r}")
    for kind in kinds:
        site_kind(kind)
        anatomy.check_site(Site(kind, 0) if SITE_KINDS[kind].per_layer else Site(kind))
        if kind not in PATCHABLE:
            raise InputError(
                f"patching is by position and layer; {kind!r} cannot be patched so. Patchable: {', '.join(PATCHABLE)}"
            )
