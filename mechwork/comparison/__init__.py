"""Comparison of two models of one anatomy: a base and a tuned one, two steps of a training.

Owns where they come apart (`find_divergence`, with noise of the same size in the weights as its null), activations of
one patched into the other (`patch_across`), and their directions and lenses side by side. Imports `lenses`, `edits` and
below.

    early, late = load_model("attn-only-2l@500"), load_model("attn-only-2l")
    print(find_divergence(early, late, task.test))
    print(patch_across(early, late, task.test, ["z"]).best())
"""

from .across import AcrossModels as AcrossModels
from .across import AcrossRow as AcrossRow
from .across import patch_across as patch_across
from .beliefs import BeliefDrift as BeliefDrift
from .beliefs import BeliefRow as BeliefRow
from .beliefs import KnownFact as KnownFact
from .beliefs import track_beliefs as track_beliefs
from .by_shape import CourseOfShape as CourseOfShape
from .by_shape import ShapeRelation as ShapeRelation
from .by_shape import ShapeStudy as ShapeStudy
from .by_shape import relate_to_shape as relate_to_shape
from .concept_shift import ConceptShift as ConceptShift
from .concept_shift import fit_concept_shift as fit_concept_shift
from .divergence import Divergence as Divergence
from .divergence import DivergenceRow as DivergenceRow
from .divergence import find_divergence as find_divergence
from .growth import GrowthFit as GrowthFit
from .growth import fit_growth as fit_growth
from .likeness import DirectionLikeness as DirectionLikeness
from .likeness import LensLikeness as LensLikeness
from .likeness import compare_directions as compare_directions
from .likeness import compare_lenses as compare_lenses
from .match import check_same as check_same
from .noise import weight_distances as weight_distances
from .noise import with_noise as with_noise
from .over_training import DivergenceOverTraining as DivergenceOverTraining
from .over_training import SeparationOverTraining as SeparationOverTraining
from .over_training import divergence_over_training as divergence_over_training
from .over_training import separation_over_training as separation_over_training
from .trainings import TrainedRow as TrainedRow
from .trainings import TrainingComparison as TrainingComparison
from .trainings import compare_trainings as compare_trainings
