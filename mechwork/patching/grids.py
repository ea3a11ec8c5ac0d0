"""The cells of each kind of site, as grids with named axes, and what can be refused before anything runs.

Measured and estimated effects have the same grids: `effect_of` gives either its axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import ModelAnatomy
from ..names import EXPERT_OUT, WORDS
from ..provenance import Provenance
from ..runs.record import Baseline
from ..runs.room import RECORDED_AS
from ..sites import SITE_KINDS, Site, site_kind
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .result import Direction, Effect
from .sides import SQUARE, check_square
from .sweep import Grid

PATCHABLE = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_post", "router_logits",
)  # fmt: skip
"""Kinds with a position axis whose cells are (layer, position) or (layer, position, head): what can be estimated."""

MEASURABLE = (*PATCHABLE, "pattern", "attn_scores", "result", "expert_out", "embed")
"""Kinds that an exact sweep can patch."""

Masks = dict[str, Bool[Tensor, "_place batch pos"]]
"""Position masks by the way positions are resolved: what `Cell.place` indexes."""

NeuronSets = tuple[tuple[int, tuple[int, ...]], ...]

Neurons = Mapping[int, Sequence[int | Sequence[int]]]
"""Neurons to patch: layer -> neurons, each alone, or groups of them patched together."""


def build_grids(
    anatomy: ModelAnatomy,
    d_mlp: int,
    task: Task,
    pairs: PromptPairs,
    kinds: Sequence[str],
    positions: str | None,
    neurons: Neurons | None,
) -> tuple[tuple[Grid, ...], Masks]:
    """The grids of `kinds` and the position masks they refer to. `pairs` has the host as its clean side."""
    check_measurable(anatomy, kinds, pairs)
    if neurons is not None and "mlp_post" not in kinds:
        raise InputError(f"neurons are patched at 'mlp_post'; add it to sites. Got {list(kinds)}")
    grids: list[Grid] = []
    masks: Masks = {}
    for kind in kinds:
        sets = _neuron_sets(anatomy, d_mlp, neurons) if kind == "mlp_post" and neurons is not None else ()
        grid, mask = build_grid(anatomy, task, pairs, kind, positions, sets)
        grids.append(grid)
        masks[grid.positions] = mask
    return tuple(grids), masks


def build_grid(
    anatomy: ModelAnatomy, task: Task, pairs: PromptPairs, kind: str, positions: str | None, sets: NeuronSets = ()
) -> tuple[Grid, Bool[Tensor, "place batch pos"]]:
    """The cells of one kind, and its position masks. `sets`: neurons patched together, instead of whole layers."""
    chosen = positions or ("all" if _has_heads(kind) or sets else "each")
    names, mask = pairs.cells(chosen)
    places = () if chosen == "all" else (("pos", task.position_labels(names)),)
    n_heads = anatomy.n_kv_heads if kind in ("k", "v") else anatomy.n_heads
    heads = range((anatomy.n_experts or 0) if kind == EXPERT_OUT else n_heads) if _has_heads(kind) else ()
    layers = range(anatomy.n_layers if kind in WORDS or SITE_KINDS[kind].per_layer else 1)
    if sets:
        first = (("neuron", tuple(_neuron_label(layer, group) for layer, group in sets)),)
    elif kind == "embed":
        first = () if places else (("layer", ("embed",)),)
    else:
        first = (("layer", tuple(str(layer) for layer in layers)),)
    last = (("expert" if kind == EXPERT_OUT else "head", tuple(str(head) for head in heads)),) if heads else ()
    rows = () if sets else tuple(layers)
    return Grid(kind, chosen, rows, len(names), tuple(heads), sets, (*first, *places, *last)), mask


def effect_of(
    grid: Grid,
    values: Float[Tensor, "batch ..."],
    baseline: Baseline,
    direction: Direction,
    metric_name: str,
    provenance: Provenance,
    *,
    estimated: bool,
) -> Effect:
    """The effects of a grid's cells; `values` per pair, in the cells' order."""
    return Effect(
        kind=grid.kind,
        per_example=values.reshape(len(values), *grid.shape).cpu(),
        axes=grid.axes,
        labels=dict(grid.labels),
        baseline=baseline,
        direction=direction,
        estimated=estimated,
        metric_name=metric_name,
        provenance=provenance,
    )


def check_patchable(anatomy: ModelAnatomy, kinds: Sequence[str]) -> None:
    """Raises `InputError` for kinds that are unknown, not in this model, or that cannot be estimated."""
    if not kinds or isinstance(kinds, str):
        raise InputError(f"sites is a list of site kinds, e.g. ['resid_pre', 'z']; got {kinds!r}")
    for kind in kinds:
        if kind == EXPERT_OUT:
            raise InputError("experts are patched, not estimated here: patch them, or score_nodes(split_experts=True)")
        site_kind(kind)
        anatomy.check_site(Site(kind, 0) if SITE_KINDS[kind].per_layer else Site(kind))
        if kind not in PATCHABLE:
            raise InputError(
                f"patching is by position and layer; {kind!r} cannot be patched so. Patchable: {', '.join(PATCHABLE)}"
            )


def check_measurable(anatomy: ModelAnatomy, kinds: Sequence[str], pairs: PromptPairs) -> None:
    """Raises `InputError` for kinds that are unknown, not in this model, or that no sweep can patch."""
    if not kinds or isinstance(kinds, str):
        raise InputError(f"sites is a list of site kinds, e.g. ['resid_pre', 'z']; got {kinds!r}")
    if len(set(kinds)) != len(kinds):
        raise InputError(f"every kind of site is patched once; got {list(kinds)}")
    for kind in kinds:
        if kind not in MEASURABLE:
            site_kind(kind)
            raise InputError(f"{kind!r} cannot be patched. Patchable: {', '.join(MEASURABLE)}")
        if kind == EXPERT_OUT and anatomy.n_experts is None:
            raise InputError(f"{anatomy.architecture} has no experts; its MLP is one block. Patch 'mlp_out'.")
        recorded = RECORDED_AS.get(kind, kind)
        anatomy.check_writable(Site(recorded, 0) if SITE_KINDS[recorded].per_layer else Site(recorded))
    check_square(kinds, pairs)


def _has_heads(kind: str) -> bool:
    return kind in (*SQUARE, EXPERT_OUT) or SITE_KINDS[RECORDED_AS.get(kind, kind)].per_head


def _neuron_sets(anatomy: ModelAnatomy, d_mlp: int, neurons: Neurons) -> NeuronSets:
    sets = []
    for layer, groups in neurons.items():
        if not 0 <= layer < anatomy.n_layers:
            raise InputError(f"layers of this model are 0 to {anatomy.n_layers - 1}; got neurons of layer {layer}")
        for group in groups:
            members = (group,) if isinstance(group, int) else tuple(group)
            if not members or not all(0 <= neuron < d_mlp for neuron in members):
                raise InputError(f"neurons of this model are 0 to {d_mlp - 1}, at least one per group; got {group!r}")
            sets.append((layer, members))
    if not sets:
        raise InputError("neurons is a mapping from layers to neurons, e.g. {3: [17, (4, 5)]}; got none")
    return tuple(sets)


def _neuron_label(layer: int, group: tuple[int, ...]) -> str:
    return f"m{layer}.n{'+'.join(str(neuron) for neuron in group)}"
