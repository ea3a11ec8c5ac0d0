"""The table of operations that units name: a fixed list, so that a unit from elsewhere can run nothing else.

Each is a function ``build(model, work) -> Run`` in a room above this one, found by name when a worker needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..errors import UnknownNameError
from .unit import Run, Work

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATIONS = {
    "patch.block": "mechwork.patching.units:build",
    "patch.share": "mechwork.patching.subspace:build",
    "paths.block": "mechwork.patching.path_units:build",
    "attribute.batch": "mechwork.patching.attribution:build",
    "ablate.block": "mechwork.ablation.units:build",
    "study.block": "mechwork.ablation.units:build_study",
    "edges.batch": "mechwork.circuits.scoring.units:build",
    "edges.exact": "mechwork.circuits.scoring.exact_edges:build",
    "edges.attention": "mechwork.circuits.scoring.attention_edges:build",
    "neurons.batch": "mechwork.circuits.scoring.neurons:build",
    "text.states": "mechwork.lenses.units:build",
    "lens.rows": "mechwork.lenses.evaluate:build",
    "features.batch": "mechwork.features.evaluate:build",
    "circuits.measure": "mechwork.circuits.testing.units:build",
}
"""Name -> module and function."""


def build_operation(model: TransformerBridge, work: Work) -> Run:
    """What runs the units of `work`, rebuilt from its data alone."""
    if work.operation not in OPERATIONS:
        raise UnknownNameError("operation", work.operation, OPERATIONS)
    module, _, name = OPERATIONS[work.operation].partition(":")
    return getattr(importlib.import_module(module), name)(model, work)
