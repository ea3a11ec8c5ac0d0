"""Circuits: the computational graph as tables, scores of its edges, circuits as values, and their evaluation.

Owns `EdgeSpace`, `EdgeScores`, `Circuit`, `FaithfulnessCurve`. Imports `patching` and below; never plotly.

    scores = score_edges(model, task.train, rules="relp")
    circuit = scores.circuit(n_edges=80)
    curve = evaluate(model, task.test, scores)
"""

from .circuit import Circuit as Circuit
from .compare import CircuitComparison as CircuitComparison
from .compare import compare_circuits as compare_circuits
from .completeness import Completeness as Completeness
from .completeness import Minimality as Minimality
from .completeness import measure_completeness as measure_completeness
from .completeness import measure_minimality as measure_minimality
from .curves import CircuitEvaluation as CircuitEvaluation
from .curves import FaithfulnessCurve as FaithfulnessCurve
from .ensemble import ensemble as ensemble
from .evaluate import evaluate as evaluate
from .nodes import NeuronScores as NeuronScores
from .nodes import NodeScores as NodeScores
from .nodes import score_neurons as score_neurons
from .nodes import score_nodes as score_nodes
from .score import score_edges as score_edges
from .scores import EdgeScores as EdgeScores
from .space import EdgeSpace as EdgeSpace
from .stability import Stability as Stability
from .stability import compare_selections as compare_selections
