"""How a method ranks the edges of a known circuit: one number per edge, larger in absolute value = more important.

method | what ranks the edges:

- exact | the measured effect of every single edge: mean over pairs of its absolute value
- gradient, relp, eap-ig | estimates of `score_edges` (``"gradient"`` is EAP: gradients at the run that is patched)
- any other preset of `score_edges` | that preset
- acdc | how many of `THRESHOLDS` leave the edge in the circuit of `find_acdc` (Conmy et al. 2023 sweep the threshold,
  too)
- learned | probability that the edge's gate is open after `learn_circuit`, which is told the true number of edges
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError, UnknownNameError
from ...patching.result import Direction
from ...shapes import EdgeMatrix
from ..scoring.exact_edges import measure_edges
from ..scoring.methods import PRESETS
from ..scoring.score import score_edges
from ..search.acdc import find_acdc
from ..search.learned import learn_circuit
from .case import KnownCircuit

THRESHOLDS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0001)
"""What `find_acdc` is given, in units of the metric, by which the truth is stated too."""

SEARCHES = ("acdc", "learned")
_SAME = {"atp", "eap", "eap-ig", "relp", "random", "exact"}

ALL_METHODS = ("exact", "gradient", "relp", "eap-ig", *sorted(set(PRESETS) - _SAME), *SEARCHES)
"""Every method of the table, presets with two names once; ``random`` is always beside them."""


def available_methods(ablation: str = "corrupt") -> tuple[str, ...]:
    """Those of `ALL_METHODS` that exist under an ablation: information flow looks at the clean run beside the corrupt
    one.
    """
    return tuple(m for m in ALL_METHODS if ablation == "corrupt" or m != "information-flow")


def rank_edges(case: KnownCircuit, method: str, ablation: str = "corrupt") -> EdgeMatrix:
    """What `rank_pairs` gives, without the pairs."""
    return rank_pairs(case, method, ablation)[0]


def rank_pairs(
    case: KnownCircuit, method: str, ablation: str = "corrupt"
) -> tuple[EdgeMatrix, Float[Tensor, "batch edge"] | None]:
    """One number per edge, in the direction of patching in which the case states its truth (noise, for zero and mean).

    Beside it the numbers per pair whose mean it is (packed); None for searches, which have none.

    Raises `UnknownNameError` for a method outside `ALL_METHODS`, `InputError` for one that the ablation excludes or a
    search in a graph with experts.
    """
    if method not in ALL_METHODS:
        raise UnknownNameError("method", method, ALL_METHODS)
    direction: Direction = case.direction if ablation == "corrupt" else "noise"
    model, task, split = case.model, case.task, case.split_experts
    if split and method in SEARCHES:
        raise InputError(f"{method} knows MLPs as one node, and {case.name} has experts as nodes; leave {method} out")
    if method == "exact":
        effects = measure_edges(model, task, ablation=ablation, direction=direction, split_experts=split)
        return effects.magnitude, effects.per_example.abs()[:, effects.space.mask]
    if method == "acdc":
        kept = [find_acdc(model, task, threshold, measure="metric", ablation=ablation).mask for threshold in THRESHOLDS]
        return torch.stack(kept).double().sum(dim=0), None
    if method == "learned":
        found = learn_circuit(model, task, case.truth(ablation).n_edges, ablation=ablation).scores
        assert found is not None
        return found, None
    preset = "eap" if method == "gradient" else method
    scores = score_edges(
        model, task, preset=preset, direction=direction, ablation=ablation, keep="pairs", split_experts=split
    )
    return scores.values, scores.require_pairs()[:, scores.space.mask]
