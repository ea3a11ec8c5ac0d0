import subprocess
import sys
from dataclasses import replace

import plotly.io as pio
import pytest
import torch

from mechwork.display import page
from mechwork.errors import InputError
from mechwork.patching.result import Effects
from mechwork.render import agreement_figure, curve_figure, heatmap_figure, render_agreement, render_heatmap
from mechwork.render.panels.agreement import agreement_table
from mechwork.render.panels.curve import curve_table, evaluation_table
from tests.render import synthetic


def test_a_heat_map_says_what_it_shows() -> None:
    figure = heatmap_figure(synthetic.effects()["resid_pre"]).to_dict()
    assert "measured" in figure["layout"]["title"]["text"]
    assert "denoising effect on logit difference" in figure["layout"]["title"]["text"]
    estimated = heatmap_figure(synthetic.effects(estimated=True, direction="noise")["z"]).to_dict()
    assert "ESTIMATED" in estimated["layout"]["title"]["text"]
    assert "noising" in estimated["layout"]["title"]["text"]


def test_colours_are_symmetric_around_zero_with_blue_positive() -> None:
    effect = synthetic.effects()["attn_out"]
    axis = heatmap_figure(effect).to_dict()["layout"]["coloraxis"]
    assert axis["cmax"] == -axis["cmin"] == pytest.approx(float(effect.values.abs().max()))
    assert axis["cmid"] == 0
    assert axis["colorscale"][-1][1] == "#00436a"
    assert heatmap_figure(effect, limit=9.0).to_dict()["layout"]["coloraxis"]["cmax"] == 9.0


def test_values_stand_where_they_belong_and_equal_tokens_stay_apart() -> None:
    effect = synthetic.effects()["resid_pre"]
    figure = heatmap_figure(effect).to_dict()
    trace, axis = figure["data"][0], figure["layout"]["xaxis"]
    torch.testing.assert_close(torch.tensor(trace["z"]), effect.values)
    assert list(trace["x"]) == list(range(15))
    assert list(axis["tickvals"]) == list(range(15))
    assert [text.split(" ")[1] for text in axis["ticktext"]].count("to") == 2
    assert trace["customdata"][4][14][0] == "14 to, layer 4"


def test_heads_by_position_are_one_panel_per_head() -> None:
    effect = synthetic.effects()["resid_pre"]
    per_example = effect.per_example[..., None] * torch.arange(1.0, 7.0)
    heads = tuple(str(i) for i in range(6))
    effect = replace(
        effect,
        kind="z",
        per_example=per_example,
        axes=("layer", "pos", "head"),
        labels={**effect.labels, "head": heads},
    )
    figure = heatmap_figure(effect).to_dict()
    assert len(figure["data"]) == 6
    torch.testing.assert_close(torch.tensor(figure["data"][5]["z"]), effect.values[:, :, 5])
    assert figure["data"][5]["customdata"][2][3][2] == "a2.h5"
    assert [note["text"] for note in figure["layout"]["annotations"]] == [f"head {i}" for i in range(6)]


def test_cells_of_heads_and_mlps_name_their_node() -> None:
    effects = synthetic.effects()
    assert heatmap_figure(effects["z"]).to_dict()["data"][0]["customdata"][4][1][2] == "a4.h1"
    assert heatmap_figure(effects["resid_pre"]).to_dict()["data"][0]["customdata"][4][1][2] == ""
    mlp = replace(effects["attn_out"], kind="mlp_out")
    assert heatmap_figure(mlp).to_dict()["data"][0]["customdata"][4][1][2] == "m4"


def test_effects_by_layer_alone_are_bars_and_other_axes_are_refused() -> None:
    effect = synthetic.effects()["resid_pre"]
    by_layer = replace(effect, per_example=effect.per_example.sum(dim=2), axes=("layer",))
    assert heatmap_figure(by_layer).to_dict()["data"][0]["type"] == "bar"
    odd = replace(
        effect,
        per_example=effect.per_example[..., None],
        axes=("layer", "pos", "neuron"),
        labels={**effect.labels, "neuron": ("0",)},
    )
    with pytest.raises(InputError, match="one or two axes"):
        heatmap_figure(odd)
    with pytest.raises(InputError, match="no effects"):
        render_heatmap(Effects({}))


def test_a_single_pair_and_all_zero_effects_are_drawn() -> None:
    effect = synthetic.effects()["z"]
    single = replace(effect, per_example=effect.per_example[:1] * 0)
    figure = heatmap_figure(single).to_dict()
    assert figure["layout"]["coloraxis"]["cmax"] == 1.0
    assert "SE" not in figure["data"][0]["customdata"][0][0][1]


def test_hostile_tokens_never_become_markup_or_templates() -> None:
    effect = synthetic.effects(texts=synthetic.HOSTILE)["resid_pre"]
    figure = heatmap_figure(effect).to_dict()
    texts = [
        *figure["layout"]["xaxis"]["ticktext"],
        *(cell[0] for row in figure["data"][0]["customdata"] for cell in row),
    ]
    assert not any("<" in text or "%{" in text or "\n" in text for text in texts)
    assert all(len(text) < 100 for text in texts)


def test_the_global_renderer_and_template_are_left_alone() -> None:
    before = (pio.renderers.default, pio.templates.default)
    render_heatmap(synthetic.effects())
    assert (pio.renderers.default, pio.templates.default) == before


def test_the_curve_shows_interval_controls_and_areas() -> None:
    curve = synthetic.curve()
    figure = curve_figure(curve, chosen=synthetic.evaluation()).to_dict()
    names = [trace["name"] for trace in figure["data"]]
    assert any("CMD" in name for name in names)
    assert any("CPR" in name for name in names)
    assert any("random" in name for name in names)
    assert any("interval" in name for name in names)
    notes = {note["text"] for note in figure["layout"]["annotations"]}
    assert {"empty circuit", "whole model"} <= notes
    torch.testing.assert_close(torch.tensor(figure["data"][1]["y"], dtype=torch.float64), curve.faithfulness)
    assert figure["data"][-1]["x"][0] == pytest.approx(synthetic.circuit().fraction)


def test_tables_put_the_circuit_beside_its_controls() -> None:
    text = evaluation_table([synthetic.evaluation()])
    for wanted in ("whole model", "random circuits, mean of 3", "empty circuit", "0.930"):
        assert wanted in text
    assert "1,108" in curve_table(synthetic.curve())


def test_agreement_is_drawn_against_the_diagonal() -> None:
    truth, estimate = synthetic.effects(), synthetic.effects(estimated=True)
    figure = agreement_figure(estimate, truth).to_dict()
    points = [trace for trace in figure["data"] if trace["mode"] == "markers"]
    assert len(points) == 3
    torch.testing.assert_close(torch.tensor(points[2]["x"]), truth["z"].values.flatten())
    assert points[2]["customdata"][4 * 4 + 1][3] == "a4.h1"
    assert "Pearson" in agreement_table([("relp", estimate, truth)])
    with pytest.raises(InputError, match="measured"):
        render_agreement(truth, estimate)


def test_every_result_has_a_page_and_a_frame_for_notebooks() -> None:
    for result in (
        synthetic.effects(),
        synthetic.effects()["z"],
        synthetic.curve(),
        synthetic.evaluation(),
        synthetic.circuit(),
        synthetic.scores(),
        synthetic.patterns(),
        synthetic.study(),
    ):
        html = page(result)
        assert html.startswith("<!doctype html>")
        assert "Content-Security-Policy" in html
    assert "srcdoc" in synthetic.circuit()._repr_html_()


def test_importing_the_drawings_imports_neither_plotly_nor_circuitsvis() -> None:
    code = (
        "import sys, mechwork.render.report; sys.exit(any(name in sys.modules for name in ('circuitsvis', "
        "'plotly.graph_objects')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
