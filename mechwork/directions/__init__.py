"""Directions: what to write, fitted from examples, and what writing it does beside what was wanted.

Owns labelled examples, directions (difference of means, principal difference, probes) with their boundaries and files,
what else is fitted to be written (transport maps, single dimensions, curves, controllers, which heads look where), and
the study of steering: success against side effects. Imports `interventions` and below.

    she = task.train[rows where the answer is " she"]
    direction = fit_direction(model, Examples.of_task(she), Site("resid_post", 2))
    study = study_steering(model, she_held_out, direction, others=[ioi, agreement])
"""

from .attention_heads import HeadGain as HeadGain
from .attention_heads import rank_attention_heads as rank_attention_heads
from .axes import SignalAxes as SignalAxes
from .axes import fit_axes as fit_axes
from .bases import BASES as BASES
from .bases import ActivationBasis as ActivationBasis
from .bases import fit_basis as fit_basis
from .behaviour import BehaviourRow as BehaviourRow
from .behaviour import BehaviourStudy as BehaviourStudy
from .behaviour import study_behaviour as study_behaviour
from .classes import ClassFit as ClassFit
from .classes import ClassProbe as ClassProbe
from .classes import ClassStudy as ClassStudy
from .classes import FlipStudy as FlipStudy
from .classes import fit_classes as fit_classes
from .classes import study_classes as study_classes
from .classes import study_flips as study_flips
from .clusters import ClusteredVectors as ClusteredVectors
from .clusters import fit_clusters as fit_clusters
from .controller import Controller as Controller
from .controller import train_controller as train_controller
from .demonstrations import Demonstrations as Demonstrations
from .dimensions import dimension_write as dimension_write
from .dimensions import separating_dimensions as separating_dimensions
from .direction import Direction as Direction
from .examples import Examples as Examples
from .examples import record_examples as record_examples
from .examples import record_positions as record_positions
from .fit import FITS as FITS
from .fit import Separation as Separation
from .fit import fit_direction as fit_direction
from .fit import fit_directions as fit_directions
from .fit import fit_probe as fit_probe
from .fit import measure_separation as measure_separation
from .function_vector import FunctionVector as FunctionVector
from .function_vector import FunctionVectorTest as FunctionVectorTest
from .function_vector import check_function_vector as check_function_vector
from .function_vector import fit_function_vector as fit_function_vector
from .graph_manifold import GraphFit as GraphFit
from .graph_manifold import fit_graph as fit_graph
from .input_gate import ForgettingRow as ForgettingRow
from .input_gate import ForgettingStudy as ForgettingStudy
from .input_gate import InputGate as InputGate
from .input_gate import fit_input_gate as fit_input_gate
from .input_gate import study_forgetting as study_forgetting
from .joint_transport import JointTransport as JointTransport
from .joint_transport import fit_joint_transport as fit_joint_transport
from .joint_transport import wasserstein as wasserstein
from .labelled import Labelled as Labelled
from .languages import LANGUAGES as LANGUAGES
from .languages import language_task as language_task
from .languages import parallel_prompts as parallel_prompts
from .manifold import CurveFit as CurveFit
from .manifold import fit_curve as fit_curve
from .momentum import DimensionRanking as DimensionRanking
from .momentum import rank_dimensions as rank_dimensions
from .online import OnlineProbe as OnlineProbe
from .online import train_online as train_online
from .probes import KINDS as KINDS
from .probes import Probe as Probe
from .probes import ProbeStudy as ProbeStudy
from .probes import best_threshold as best_threshold
from .probes import study_probes as study_probes
from .probes import sweep_sparse_probe as sweep_sparse_probe
from .probes import threshold_at as threshold_at
from .probes import train_probe as train_probe
from .ridge import RidgeFit as RidgeFit
from .ridge import fit_ridge as fit_ridge
from .select import CRITERIA as CRITERIA
from .select import LayerChoice as LayerChoice
from .select import choose_layer as choose_layer
from .separability import SeparabilityRow as SeparabilityRow
from .separability import SeparabilityStudy as SeparabilityStudy
from .separability import study_separability as study_separability
from .shift import Cascade as Cascade
from .shift import ShiftStudy as ShiftStudy
from .shift import lengthen as lengthen
from .shift import study_cascade as study_cascade
from .shift import study_shift as study_shift
from .spectrum import SpectrumRow as SpectrumRow
from .spectrum import SpectrumStudy as SpectrumStudy
from .spectrum import study_spectrum as study_spectrum
from .stability import DirectionStability as DirectionStability
from .stability import study_stability as study_stability
from .stability import templates_of as templates_of
from .steer import METHODS as METHODS
from .steer import AsFar as AsFar
from .steer import rotation_plane as rotation_plane
from .steer import steering_write as steering_write
from .steer import transport_write as transport_write
from .study import STRENGTHS as STRENGTHS
from .study import SteeringRow as SteeringRow
from .study import SteeringStudy as SteeringStudy
from .study import study_steering as study_steering
from .transfer import MAPS as MAPS
from .transfer import StreamMap as StreamMap
from .transfer import fit_stream_map as fit_stream_map
