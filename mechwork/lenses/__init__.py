"""Decoders: what a state, a head, a neuron or a direction says in the model's own vocabulary.

Owns the readout, lenses (as they are, trained, imported), tables and trajectories, direct logit attribution, and what
weights say. Imports `patching` and below.

    table = read_lens(model, "The war lasted from the year 1732 to the year 17", load_lens(model))
    table.show()
"""

from .archive import read_archive as read_archive
from .attribution import attribute_logits as attribute_logits
from .card import export_lens as export_lens
from .causal import CausalBasis as CausalBasis
from .causal import StimulusResponse as StimulusResponse
from .causal import align_stimulus_response as align_stimulus_response
from .causal import extract_causal_basis as extract_causal_basis
from .contributions import LogitAttribution as LogitAttribution
from .directions import DirectionReading as DirectionReading
from .directions import find_neurons as find_neurons
from .directions import read_directions as read_directions
from .directions import read_neurons as read_neurons
from .directions import read_singular as read_singular
from .directions import singular_directions as singular_directions
from .directions import token_effects as token_effects
from .directions import value_vectors as value_vectors
from .displacement import Displacement as Displacement
from .displacement import study_displacement as study_displacement
from .entropy_neurons import EntropyNeurons as EntropyNeurons
from .entropy_neurons import find_entropy_neurons as find_entropy_neurons
from .evaluate import LensEvaluation as LensEvaluation
from .evaluate import evaluate_lens as evaluate_lens
from .generators import DecoderComparison as DecoderComparison
from .generators import FutureLens as FutureLens
from .generators import LensDecoder as LensDecoder
from .generators import Patchscope as Patchscope
from .generators import StateDecoder as StateDecoder
from .generators import compare_decoders as compare_decoders
from .generators import fit_future_lens as fit_future_lens
from .generators import identity_prompt as identity_prompt
from .heads import HeadCircuits as HeadCircuits
from .heads import read_head as read_head
from .heads import token_states as token_states
from .jacobian import JacobianLens as JacobianLens
from .lens import LOGIT_LENS as LOGIT_LENS
from .lens import Lens as Lens
from .lens import LogitLens as LogitLens
from .prompts import Prompts as Prompts
from .prompts import as_prompts as as_prompts
from .published import import_lens as import_lens
from .readout import Reading as Reading
from .readout import Readout as Readout
from .recipe import LensRecipe as LensRecipe
from .steerable import SteerableTable as SteerableTable
from .steerable import compare_steering_and_decoding as compare_steering_and_decoding
from .steerable import join_tables as join_tables
from .table import LensTable as LensTable
from .table import read_lens as read_lens
from .text import TextStream as TextStream
from .text import open_text as open_text
from .train import LensTraining as LensTraining
from .train import train_lens as train_lens
from .trajectory import Trajectory as Trajectory
from .trajectory import TrajectoryComparison as TrajectoryComparison
from .trajectory import compare_trajectories as compare_trajectories
from .trajectory import trajectory as trajectory
from .transfer_table import Explained as Explained
from .transfer_table import LensDelta as LensDelta
from .transfer_table import TransferRow as TransferRow
from .transfer_table import VectorTransfer as VectorTransfer
from .translators import BiasOnly as BiasOnly
from .translators import Diagonal as Diagonal
from .translators import Form as Form
from .translators import Full as Full
from .translators import LowRank as LowRank
from .tuned import TunedLens as TunedLens
from .tuned import load_lens as load_lens
from .value_clusters import ValueClusters as ValueClusters
from .value_clusters import cluster_values as cluster_values
from .vector_transfer import study_vector_transfer as study_vector_transfer
