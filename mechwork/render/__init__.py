"""Drawings of results: heat maps, curves, attention, tables of heads, the interactive circuit graph, and the report.

Owns every page, figure, script and style. Imports result classes of `features`, `circuits`, `lenses`, `patching`, `ablation`, `runs` and
`tasks`; it never runs a model. plotly and circuitsvis are imported by the functions that need them, so that importing
mechwork stays light. Importing this package registers the drawings, which gives every result `show()` and its form in
Jupyter.

    report("ioi.html", task, exact, approx, scores, circuit, curve)      # one offline file
    Path("graph.html").write_text(render_graph(circuit), encoding="utf-8")
    heatmap_figure(exact["resid_pre"]).update_layout(width=500)           # a plotly figure, to be changed at will
"""

from .ablation import cumulative_figure as cumulative_figure
from .ablation import formation_figure as formation_figure
from .ablation import impairment_figure as impairment_figure
from .ablation import interactions_figure as interactions_figure
from .ablation import repair_figure as repair_figure
from .ablation_tables import render_roles as render_roles
from .agreement import agreement_figure as agreement_figure
from .agreement import render_agreement as render_agreement
from .attention import render_attention as render_attention
from .cards import Excerpts as Excerpts
from .cards import Fact as Fact
from .cards import Pattern as Pattern
from .cards import Picture as Picture
from .cards import TokenList as TokenList
from .circuit_tables import render_leaderboard as render_leaderboard
from .comparison import across_figure as across_figure
from .comparison import divergence_figure as divergence_figure
from .comparison import render_across as render_across
from .comparison import render_divergence as render_divergence
from .component_section import render_components as render_components
from .curve import curve_figure as curve_figure
from .curve import render_curve as render_curve
from .curve import render_evaluation as render_evaluation
from .features import feature_curves_figure as feature_curves_figure
from .features import reconstruction_figure as reconstruction_figure
from .features import render_feature_curves as render_feature_curves
from .features import render_feature_effects as render_feature_effects
from .features import render_feature_scores as render_feature_scores
from .features import render_features as render_features
from .features import render_separability as render_separability
from .features import render_suppression as render_suppression
from .features import separability_figure as separability_figure
from .features import suppression_figure as suppression_figure
from .findings import reports as reports
from .graph import graph_svg as graph_svg
from .graph import render_graph as render_graph
from .graph_pages import render_circuit as render_circuit
from .graph_pages import render_positions as render_positions
from .graph_payload import GraphOptions as GraphOptions
from .heads import render_heads as render_heads
from .heatmap import heatmap_figure as heatmap_figure
from .heatmap import render_heatmap as render_heatmap
from .lens import bits_figure as bits_figure
from .lens import lens_fragment as lens_fragment
from .lens import render_comparison as render_comparison
from .lens import render_evaluated_lens as render_evaluated_lens
from .lens import render_lens as render_lens
from .lens import render_trajectory as render_trajectory
from .lens import trajectory_figure as trajectory_figure
from .lens import transfer_figure as transfer_figure
from .lens_report import lens_cards as lens_cards
from .lens_report import share_cards as share_cards
from .lens_tables import attribution_figure as attribution_figure
from .lens_tables import render_attribution as render_attribution
from .lens_tables import render_decoders as render_decoders
from .lens_tables import render_directions as render_directions
from .lens_tables import render_head as render_head
from .report import render_report as render_report
from .report import report as report
from .steerable import render_steerable as render_steerable
from .steering import render_steering as render_steering
from .steering import steering_figure as steering_figure
from .tokens import render_tokens as render_tokens
from .truth import render_edge_effects as render_edge_effects
from .truth import render_truth as render_truth
from .verified import illusion_figure as illusion_figure
from .verified import render_illusion as render_illusion
from .verified import render_screened as render_screened
