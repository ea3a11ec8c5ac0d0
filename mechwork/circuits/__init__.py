"""Circuits: the computational graph as tables, scores of its edges, circuits as values, and their evaluation.

Owns the graph (`EdgeSpace`), scores (edges, nodes, neurons, positions), searches, `Circuit`, and every test of one.
Imports `patching` and below; never plotly.

    scores = score_edges(model, task.train, preset="eap-ig")     # or rules=..., ig_steps=..., path=..., ablation=...
    circuit = scores.circuit(n_edges=80)                         # or find_acdc(...), learn_circuit(...)
    curve = evaluate(model, task.test, scores)                   # faithfulness, CPR, CMD beside random circuits
    with circuit.run(model, task):                               # the model behaves as the circuit
        logits = model(tokens)
"""

from . import ground_truth as ground_truth
from .graph.circuit import Circuit as Circuit
from .graph.compare import CircuitComparison as CircuitComparison
from .graph.compare import compare_circuits as compare_circuits
from .graph.files import load_tensors as load_tensors
from .graph.files import read_mib as read_mib
from .graph.files import save_tensors as save_tensors
from .graph.files import write_mib as write_mib
from .graph.graph_file import AttributionGraph as AttributionGraph
from .graph.graph_file import circuit_of as circuit_of
from .graph.graph_file import graph_of as graph_of
from .graph.shipped import circuit_names as circuit_names
from .graph.shipped import load_circuit as load_circuit
from .graph.space import EdgeSpace as EdgeSpace
from .scoring.attention_edges import AttentionEdges as AttentionEdges
from .scoring.attention_edges import score_attention_edges as score_attention_edges
from .scoring.bootstrapped import sure_first as sure_first
from .scoring.ensemble import ensemble as ensemble
from .scoring.exact_edges import EdgeEffects as EdgeEffects
from .scoring.exact_edges import measure_edges as measure_edges
from .scoring.neurons import NeuronScores as NeuronScores
from .scoring.neurons import score_neurons as score_neurons
from .scoring.nodes import NodeScores as NodeScores
from .scoring.nodes import score_nodes as score_nodes
from .scoring.positions import PositionScores as PositionScores
from .scoring.positions import score_positions as score_positions
from .scoring.query_key import QueryKeyAttribution as QueryKeyAttribution
from .scoring.query_key import attribute_attention as attribute_attention
from .scoring.score import score_edges as score_edges
from .scoring.scores import EdgeScores as EdgeScores
from .scoring.stability import Stability as Stability
from .scoring.stability import compare_selections as compare_selections
from .scoring.verify import Verification as Verification
from .scoring.verify import verify_edges as verify_edges
from .search.acdc import find_acdc as find_acdc
from .search.learned import learn_circuit as learn_circuit
from .testing.backups import BackupCompletion as BackupCompletion
from .testing.backups import complete_with_backups as complete_with_backups
from .testing.card import StabilityCard as StabilityCard
from .testing.card import study_stability as study_stability
from .testing.completeness import Completeness as Completeness
from .testing.completeness import Minimality as Minimality
from .testing.completeness import measure_completeness as measure_completeness
from .testing.completeness import measure_minimality as measure_minimality
from .testing.curves import CircuitEvaluation as CircuitEvaluation
from .testing.curves import FaithfulnessCurve as FaithfulnessCurve
from .testing.evaluate import evaluate as evaluate
from .testing.leaderboard import Leaderboard as Leaderboard
from .testing.leaderboard import run_leaderboard as run_leaderboard
from .testing.mechanisms import Mechanisms as Mechanisms
from .testing.mechanisms import study_mechanisms as study_mechanisms
from .testing.neuron_edges import NeuronEdges as NeuronEdges
from .testing.neuron_edges import score_neuron_edges as score_neuron_edges
from .testing.neurons import NeuronStudy as NeuronStudy
from .testing.neurons import study_neurons as study_neurons
from .testing.null_task import null_task as null_task
from .testing.power import PowerCurves as PowerCurves
from .testing.power import study_power as study_power
from .testing.referee import CircuitReview as CircuitReview
from .testing.referee import referee as referee
from .testing.reuse import CircuitReuse as CircuitReuse
from .testing.reuse import study_reuse as study_reuse
from .testing.rivals import Rivals as Rivals
from .testing.rivals import find_rivals as find_rivals
from .testing.small import EdgeStudy as EdgeStudy
from .testing.small import study_edges as study_edges
from .testing.spans import SpanCircuit as SpanCircuit
from .testing.spans import SpanEvaluation as SpanEvaluation
from .testing.spans import evaluate_spans as evaluate_spans
from .testing.spans import find_span_circuit as find_span_circuit
