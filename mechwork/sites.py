"""Sites: places in a model, as values. The only file that spells TransformerBridge's hook strings.

A site is a kind, a layer and (for per-head kinds) a head. ``Site("resid_pre", 3)`` is the residual stream entering
block 3 in any model. Supporting an architecture means teaching this file and `models/anatomy.py`, nothing else.

    >>> Site("z", layer=2, head=1)
    Site(kind='z', layer=2, head=1)
    >>> hook_name(Site("z", layer=2))
    'blocks.2.attn.hook_z'
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InputError, UnknownNameError, check_whole


@dataclass(frozen=True)
class SiteKind:
    """What one kind of site is: where it is hooked, which axes its activation has, and what it means."""

    name: str
    hook: str
    axes: tuple[str, ...]
    meaning: str

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.hook

    @property
    def per_head(self) -> bool:
        return "head" in self.axes


_RESIDUAL = ("batch", "pos", "d_model")
_HEAD = ("batch", "pos", "head", "d_head")
_SQUARE = ("batch", "head", "query_pos", "key_pos")
_MLP = ("batch", "pos", "d_mlp")

SITE_KINDS: dict[str, SiteKind] = {
    kind.name: kind
    for kind in (
        SiteKind("embed", "hook_embed", _RESIDUAL, "token embedding"),
        SiteKind("resid_pre", "blocks.{layer}.hook_resid_pre", _RESIDUAL, "residual stream entering the block"),
        SiteKind("resid_mid", "blocks.{layer}.hook_resid_mid", _RESIDUAL, "residual stream between attention and MLP"),
        SiteKind("resid_post", "blocks.{layer}.hook_resid_post", _RESIDUAL, "residual stream leaving the block"),
        SiteKind("attn_out", "blocks.{layer}.hook_attn_out", _RESIDUAL, "what attention adds to the residual stream"),
        SiteKind("mlp_out", "blocks.{layer}.hook_mlp_out", _RESIDUAL, "what the MLP adds to the residual stream"),
        SiteKind("q", "blocks.{layer}.attn.hook_q", _HEAD, "queries, before rotation and q-norm"),
        SiteKind("k", "blocks.{layer}.attn.hook_k", _HEAD, "keys (head = key/value head), before rotation and k-norm"),
        SiteKind("v", "blocks.{layer}.attn.hook_v", _HEAD, "values (head = key/value head)"),
        SiteKind("z", "blocks.{layer}.attn.hook_z", _HEAD, "head outputs before W_O"),
        SiteKind("attn_scores", "blocks.{layer}.attn.hook_attn_scores", _SQUARE, "attention before the softmax"),
        SiteKind("pattern", "blocks.{layer}.attn.hook_pattern", _SQUARE, "attention after the softmax"),
        SiteKind("mlp_in", "blocks.{layer}.mlp.hook_in", _RESIDUAL, "what the MLP's own weights read (after any norm)"),
        SiteKind("mlp_pre", "blocks.{layer}.mlp.hook_pre", _MLP, "MLP (gate) pre-activations"),
        SiteKind("mlp_pre_linear", "blocks.{layer}.mlp.hook_pre_linear", _MLP, "the linear half of a gated MLP"),
        SiteKind("mlp_post", "blocks.{layer}.mlp.hook_post", _MLP, "neurons: what W_out reads"),
        SiteKind(
            "router_logits",
            "blocks.{layer}.mlp.hook_router_logits",
            ("batch", "pos", "expert"),
            "what the router of a mixture of experts says of each expert, before its choice",
        ),
        SiteKind("logits", "hook_unembed", ("batch", "pos", "d_vocab"), "the unembedding's output"),
    )
}
"""Every kind of site, by its glossary name."""

SQUARE_KINDS = tuple(name for name, kind in SITE_KINDS.items() if kind.axes == _SQUARE)
"""Kinds with a query and a key axis."""

MLP_KINDS = ("resid_mid", "mlp_out", "mlp_in", "mlp_pre", "mlp_pre_linear", "mlp_post", "router_logits")
"""Kinds that a model without MLPs does not have."""


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model. `layer` is None only for the kinds outside the blocks; `head` narrows a per-head kind."""

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        kind = site_kind(self.kind)
        if kind.per_layer != (self.layer is not None):
            raise InputError(
                f"site kind {self.kind!r} {'needs a' if kind.per_layer else 'has no'} layer; got {self.layer}"
            )
        for what, number in (("layer", self.layer), ("head", self.head)):
            if number is not None and (type(number) is not int or not 0 <= number < 2**63):
                check_whole(f"{what} of a site", number, least=0)
        if self.head is not None and not kind.per_head:
            raise InputError(f"site kind {self.kind!r} has no head axis; got head={self.head}. Leave head out.")

    def __str__(self) -> str:
        place = self.kind if self.layer is None else f"{self.kind}.{self.layer}"
        return place if self.head is None else f"{place}.{self.head}"


def site_kind(name: str) -> SiteKind:
    """The kind called `name`; raises `UnknownNameError` with the nearest names otherwise."""
    if not isinstance(name, str) or name not in SITE_KINDS:
        raise UnknownNameError("site kind", name, SITE_KINDS)
    return SITE_KINDS[name]


def hook_name(site: Site) -> str:
    """TransformerBridge's name for the hook point of `site`."""
    return SITE_KINDS[site.kind].hook.format(layer=site.layer)


# Module names inside a bridge, for the rules of `relevance`, in the bridge's own spelling.
FINAL_NORM = "ln_final"
UNEMBED = "unembed"
UNEMBED_INPUT = "unembed.hook_in"
BLOCK_NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")
HEAD_NORMS = ("q_norm", "k_norm")


def block_module(layer: int, *path: str) -> str:
    """The bridge's dotted name of a module of block `layer`: ``block_module(3, "attn", "q_norm")``."""
    return ".".join((f"blocks.{layer}", *path))


_OTHER_NAMES = {
    "ln2.hook_normalized": "mlp_in", "hook_mlp_in": "resid_mid", "mlp.hook_out": "mlp_out", "attn.hook_out": "attn_out",
}  # fmt: skip
"""Names inside a block by which other hosts, older ones among them, call these places."""


def find_site(hook: str, head: int | None = None) -> Site:
    """The site that a hook's name spells: the inverse of `hook_name`, as published files need it.

    Raises `InputError` for a name that is no site.
    """
    inside_block = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if inside_block is None:
        found = [Site(kind.name) for kind in SITE_KINDS.values() if not kind.per_layer and kind.hook == hook]
    else:
        layer, name = int(inside_block[1]), inside_block[2]
        found = [
            Site(k.name, layer, head) for k in SITE_KINDS.values() if k.per_layer and k.hook.format(layer=layer) == hook
        ]
        found += [Site(_OTHER_NAMES[name], layer)] if name in _OTHER_NAMES else []
    if not found:
        raise InputError(f"{hook!r} is the hook of no site known here; the kinds of sites are {', '.join(SITE_KINDS)}")
    return found[0]
