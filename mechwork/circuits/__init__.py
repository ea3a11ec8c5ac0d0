"""Circuits: the computational graph as tables, scores of its edges, circuits as values, and their evaluation.

Owns the graph (`EdgeSpace`), scores (edges, nodes, neurons, positions), searches, `Circuit`, and every test of one. Imports
`patching` and below; never plotly.

    scores = score_edges(model, task.train, preset="eap-ig")     # or rules=..., ig_steps=..., path=..., ablation=...
    circuit = scores.circuit(n_edges=80)                         # or find_acdc(...), learn_circuit(...)
    curve = evaluate(model, task.test, scores)                   # faithfulness, CPR, CMD beside random circuits
    with circuit.run(model, task):                               # the model behaves as the circuit
        logits = model(tokens)
"""

from . import ground_truth as ground_truth
from .acdc import find_acdc as find_acdc
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
from .exact_edges import EdgeEffects as EdgeEffects
from .exact_edges import measure_edges as measure_edges
from .files import load_tensors as load_tensors
from .files import read_mib as read_mib
from .files import save_tensors as save_tensors
from .files import write_mib as write_mib
from .graph_file import AttributionGraph as AttributionGraph
from .graph_file import circuit_of as circuit_of
from .graph_file import graph_of as graph_of
from .leaderboard import Leaderboard as Leaderboard
from .leaderboard import run_leaderboard as run_leaderboard
from .learned import learn_circuit as learn_circuit
from .nodes import NeuronScores as NeuronScores
from .nodes import NodeScores as NodeScores
from .nodes import score_neurons as score_neurons
from .nodes import score_nodes as score_nodes
from .positions import AttentionEdges as AttentionEdges
from .positions import PositionScores as PositionScores
from .positions import score_attention_edges as score_attention_edges
from .positions import score_positions as score_positions
from .reuse import CircuitReuse as CircuitReuse
from .reuse import study_reuse as study_reuse
from .score import score_edges as score_edges
from .scores import EdgeScores as EdgeScores
from .shipped import circuit_names as circuit_names
from .shipped import load_circuit as load_circuit
from .space import EdgeSpace as EdgeSpace
from .stability import Stability as Stability
from .stability import compare_selections as compare_selections
from .verify import Verification as Verification
from .verify import verify_edges as verify_edges
