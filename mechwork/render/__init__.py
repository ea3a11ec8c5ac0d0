"""Drawings of results: heat maps, curves, attention, tables of heads, the interactive circuit graph, and the report.

Owns every page, figure, script and style. Imports result classes of `features`, `circuits`, `lenses`, `patching`,
`ablation`, `runs` and `tasks`; it never runs a model. plotly and circuitsvis are imported by the functions that need
them, so that importing mechwork stays light. Importing this package registers the drawings, which gives every result
`show()` and its form in Jupyter; a file in `panels` is found by being there.

    report("ioi.html", task, exact, approx, scores, circuit, curve)      # one offline file
    Path("graph.html").write_text(render_graph(circuit), encoding="utf-8")
    heatmap_figure(exact["resid_pre"]).update_layout(width=500)           # a plotly figure, to be changed at will
"""

from ..folders import import_all as _import_all
from . import panels as _panels
from .findings import reports as reports
from .graph.figure import StaticFigure as StaticFigure
from .graph.figure import figure as figure
from .graph.graph import graph_svg as graph_svg
from .graph.graph import render_graph as render_graph
from .graph.pages import render_circuit as render_circuit
from .graph.pages import render_positions as render_positions
from .graph.payload import GraphOptions as GraphOptions
from .page.cards import Excerpts as Excerpts
from .page.cards import Fact as Fact
from .page.cards import Pattern as Pattern
from .page.cards import Picture as Picture
from .page.cards import TokenList as TokenList
from .panels.ablation import cumulative_figure as cumulative_figure
from .panels.ablation import formation_figure as formation_figure
from .panels.ablation import impairment_figure as impairment_figure
from .panels.ablation import interactions_figure as interactions_figure
from .panels.ablation import repair_figure as repair_figure
from .panels.ablation_tables import render_roles as render_roles
from .panels.agreement import agreement_figure as agreement_figure
from .panels.agreement import render_agreement as render_agreement
from .panels.attention import render_attention as render_attention
from .panels.circuit_tables import render_leaderboard as render_leaderboard
from .panels.comparison import across_figure as across_figure
from .panels.comparison import divergence_figure as divergence_figure
from .panels.comparison import render_across as render_across
from .panels.comparison import render_divergence as render_divergence
from .panels.component_section import render_components as render_components
from .panels.curve import curve_figure as curve_figure
from .panels.curve import render_curve as render_curve
from .panels.curve import render_evaluation as render_evaluation
from .panels.discovery import render_check as render_check
from .panels.discovery import render_discovery as render_discovery
from .panels.explain import render_explanation as render_explanation
from .panels.features import feature_curves_figure as feature_curves_figure
from .panels.features import reconstruction_figure as reconstruction_figure
from .panels.features import render_feature_curves as render_feature_curves
from .panels.features import render_feature_effects as render_feature_effects
from .panels.features import render_feature_scores as render_feature_scores
from .panels.features import render_features as render_features
from .panels.features import render_separability as render_separability
from .panels.features import render_suppression as render_suppression
from .panels.features import separability_figure as separability_figure
from .panels.features import suppression_figure as suppression_figure
from .panels.heads import render_heads as render_heads
from .panels.heatmap import heatmap_figure as heatmap_figure
from .panels.heatmap import render_heatmap as render_heatmap
from .panels.lens import bits_figure as bits_figure
from .panels.lens import lens_fragment as lens_fragment
from .panels.lens import render_comparison as render_comparison
from .panels.lens import render_evaluated_lens as render_evaluated_lens
from .panels.lens import render_lens as render_lens
from .panels.lens import render_trajectory as render_trajectory
from .panels.lens import trajectory_figure as trajectory_figure
from .panels.lens import transfer_figure as transfer_figure
from .panels.lens_report import lens_cards as lens_cards
from .panels.lens_report import share_cards as share_cards
from .panels.lens_tables import attribution_figure as attribution_figure
from .panels.lens_tables import render_attribution as render_attribution
from .panels.lens_tables import render_decoders as render_decoders
from .panels.lens_tables import render_directions as render_directions
from .panels.lens_tables import render_head as render_head
from .panels.mechanisms import render_mechanisms as render_mechanisms
from .panels.power import power_figure as power_figure
from .panels.power import render_power as render_power
from .panels.query_key import query_key_figure as query_key_figure
from .panels.query_key import render_query_key as render_query_key
from .panels.referee import render_review as render_review
from .panels.stability_card import render_stability_card as render_stability_card
from .panels.stability_card import stability_card_figure as stability_card_figure
from .panels.steerable import render_steerable as render_steerable
from .panels.steering import render_steering as render_steering
from .panels.steering import steering_figure as steering_figure
from .panels.tokens import render_tokens as render_tokens
from .panels.truth import render_edge_effects as render_edge_effects
from .panels.truth import render_truth as render_truth
from .panels.verified import illusion_figure as illusion_figure
from .panels.verified import render_illusion as render_illusion
from .panels.verified import render_screened as render_screened
from .report import render_report as render_report
from .report import report as report

_import_all(_panels.__name__, _panels.__path__)
