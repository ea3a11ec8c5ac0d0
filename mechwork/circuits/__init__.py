"""Circuits: the computational graph as tables, scores of its edges, circuits as values, and their evaluation.

Owns `EdgeSpace`, `EdgeScores`, `Circuit`, `FaithfulnessCurve`. Imports `patching` and below; never plotly.

    scores = score_edges(model, task.train, rules="relp")
    circuit = scores.circuit(n_edges=80)
    curve = evaluate(model, task.test, scores)
"""

from . import ground_truth as ground_truth
from .circuit import Circuit as Circuit
from .curves import CircuitEvaluation as CircuitEvaluation
from .curves import FaithfulnessCurve as FaithfulnessCurve
from .evaluate import evaluate as evaluate
from .exact_edges import EdgeEffects as EdgeEffects
from .exact_edges import measure_edges as measure_edges
from .score import score_edges as score_edges
from .scores import EdgeScores as EdgeScores
from .space import EdgeSpace as EdgeSpace
