"""Modules of a Hugging Face model, by whose paths published features say where they belong, as sites."""

from __future__ import annotations

import re

from ..sites import Site

MODULES = (
    (r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)", "resid_post"),
    (r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.mlp", "mlp_out"),
    (r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(?:attn|self_attn|attention)", "attn_out"),
    (r"(?:.*\.)?(?:embed_tokens|embed_in|wte)", "embed"),
)
"""A module whose output is coded, and the site that is."""


def site_of_module(path: str, *, transcodes: bool) -> tuple[Site, Site] | None:
    """Sites read and written of a coder on a module's output (or, for a transcoder, from an MLP's input to its output);
    None if not known.
    """
    for pattern, kind in MODULES:
        found = re.fullmatch(pattern, path)
        if found is None:
            continue
        layer = int(found[1]) if found.groups() else None
        if not transcodes:
            return Site(kind, layer), Site(kind, layer)
        return (Site("mlp_in", layer), Site("mlp_out", layer)) if kind == "mlp_out" else None
    return None
