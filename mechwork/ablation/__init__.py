"""Ablation: what breaks when a component's information is taken away, what repairs itself, and what each head does.

Owns `AblationSpec` (what is ablated, as a value) and the studies built on it. Imports `patching` (whose exact engine
runs the sweeps), `interventions`, `runs` and below.

    spec = AblationSpec(["a1.h3", "m2"], kind="mean")
    print(ablate(model, task, spec))
    with fit_ablation(model, spec, task).applied(model):
        model.generate(tokens)
"""

from .clamp import Clamp as Clamp
from .clamp import record_clamp as record_clamp
from .cumulative import CumulativeAblation as CumulativeAblation
from .cumulative import study_cumulative as study_cumulative
from .expert_effects import ExpertEffects as ExpertEffects
from .expert_effects import sweep_experts as sweep_experts
from .expert_rates import ExpertContrast as ExpertContrast
from .expert_rates import contrast_experts as contrast_experts
from .expert_rates import record_routers as record_routers
from .fitted import Ablation as Ablation
from .fitted import fit_ablation as fit_ablation
from .formation import Formation as Formation
from .formation import FormationRow as FormationRow
from .formation import study_formation as study_formation
from .heads import HeadRow as HeadRow
from .heads import HeadStudy as HeadStudy
from .heads import study_heads as study_heads
from .impairment import Impairment as Impairment
from .impairment import SetImpairment as SetImpairment
from .impairment import study_impairment as study_impairment
from .interactions import Interactions as Interactions
from .interactions import KnockOutIn as KnockOutIn
from .interactions import study_interactions as study_interactions
from .interactions import study_knock_out_in as study_knock_out_in
from .mask_graphs import MaskCentre as MaskCentre
from .mask_graphs import MaskRow as MaskRow
from .mask_graphs import MaskStudy as MaskStudy
from .mask_graphs import study_masks as study_masks
from .removal import Removal as Removal
from .removal import RemovalRow as RemovalRow
from .removal import remove_top_heads as remove_top_heads
from .repair import Backup as Backup
from .repair import SelfRepair as SelfRepair
from .repair import study_self_repair as study_self_repair
from .repair_by_prediction import PredictionRepair as PredictionRepair
from .repair_by_prediction import explain_self_repair as explain_self_repair
from .repeated import RepeatedTokens as RepeatedTokens
from .repeated import repeated_tokens as repeated_tokens
from .rewiring import Rewiring as Rewiring
from .rewiring import rewire_experts as rewire_experts
from .roles import RoleTable as RoleTable
from .roles import measure_roles as measure_roles
from .rollout import PositionBias as PositionBias
from .rollout import study_position_bias as study_position_bias
from .run import AblationResult as AblationResult
from .run import ablate as ablate
from .sets import SetMetrics as SetMetrics
from .sets import run_sets as run_sets
from .span_roles import measure_span_roles as measure_span_roles
from .sparsity import ModelSparsity as ModelSparsity
from .sparsity import measure_sparsity as measure_sparsity
from .spec import AblationSpec as AblationSpec
from .suppression import CopySuppression as CopySuppression
from .suppression import SuppressionRow as SuppressionRow
from .suppression import study_copy_suppression as study_copy_suppression
from .suppression_weights import weigh_suppressors as weigh_suppressors
from .sweep import sweep_ablations as sweep_ablations
from .targets import Target as Target
from .targets import all_heads as all_heads
from .targets import all_mlps as all_mlps
from .targets import outside as outside
from .targets import parse_target as parse_target
from .telemetry import LargeActivation as LargeActivation
from .telemetry import Telemetry as Telemetry
from .telemetry import record_telemetry as record_telemetry
from .telemetry_training import SparsityOverTraining as SparsityOverTraining
from .telemetry_training import TelemetryOverTraining as TelemetryOverTraining
from .telemetry_training import sparsity_over_training as sparsity_over_training
from .telemetry_training import telemetry_over_training as telemetry_over_training
from .text_suppression import TextSuppression as TextSuppression
from .text_suppression import study_text_suppression as study_text_suppression
