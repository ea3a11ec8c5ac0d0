"""Features: sparse autoencoders and transcoders as a code of a model's activations, and what can be done with one.

Owns coders (`SparseCoder`, four activations), sets of them with their files, importers of published layouts, a trainer,
writes of features, scores and circuits of features, and evaluations. Imports `lenses` (text and fingerprints),
`circuits` (faithfulness) and below; knows nothing of drawing.

    features = load_features(model)                                   # shipped with gpt2-6l; or a folder, or published
    files scores = score_features(model, task.train, features, rules="relp")
    curves = evaluate_feature_circuits(model, task.test, features, {"relp": scores})
    with intervene_features(model, [FeatureWrite(features["resid_post.3"], Entries(Zero(), (17,)))]):
        logits = model(tokens)
"""

from .activations import Activation as Activation
from .activations import GatedRelu as GatedRelu
from .activations import JumpRelu as JumpRelu
from .activations import Relu as Relu
from .activations import TopK as TopK
from .card import export_features as export_features
from .circuit import as_feature_circuit as as_feature_circuit
from .circuit import measure_feature_circuits as measure_feature_circuits
from .circuit import record_ablated as record_ablated
from .coder import Coder as Coder
from .coder import SparseCoder as SparseCoder
from .concept_trees import ConceptTree as ConceptTree
from .concept_trees import ConceptTrees as ConceptTrees
from .concept_trees import fit_concept_trees as fit_concept_trees
from .concepts import Separability as Separability
from .concepts import concept_of_answer as concept_of_answer
from .concepts import measure_separability as measure_separability
from .concepts import record_concept as record_concept
from .curves import FeatureCurves as FeatureCurves
from .curves import evaluate_feature_circuits as evaluate_feature_circuits
from .effects import FeatureEffects as FeatureEffects
from .effects import patch_features as patch_features
from .evaluate import FeatureEvaluation as FeatureEvaluation
from .evaluate import evaluate_features as evaluate_features
from .feature_set import FeatureSet as FeatureSet
from .layouts import LAYOUTS as LAYOUTS
from .layouts import import_features as import_features
from .reasoning import Implication as Implication
from .reasoning import Proposition as Proposition
from .reasoning import Reasoner as Reasoner
from .reasoning import Reasoning as Reasoning
from .reasoning import fit_propositions as fit_propositions
from .recipe import FeatureRecipe as FeatureRecipe
from .record import Coded as Coded
from .record import record_features as record_features
from .score import score_features as score_features
from .scores import FeatureScores as FeatureScores
from .scores import NodeTable as NodeTable
from .shipped import feature_names as feature_names
from .shipped import load_features as load_features
from .signed_shift import FeatureTrace as FeatureTrace
from .signed_shift import ShiftFit as ShiftFit
from .signed_shift import SignedShift as SignedShift
from .signed_shift import fit_signed_shift as fit_signed_shift
from .signed_shift import trace_feature as trace_feature
from .suppress import Attenuate as Attenuate
from .suppress import AttenuateByPosterior as AttenuateByPosterior
from .suppress import SuppressionStudy as SuppressionStudy
from .suppress import fit_posterior as fit_posterior
from .suppress import study_suppression as study_suppression
from .train import FeatureProgress as FeatureProgress
from .train import FeatureTraining as FeatureTraining
from .train import train_features as train_features
from .writes import FeatureWrite as FeatureWrite
from .writes import intervene_features as intervene_features
