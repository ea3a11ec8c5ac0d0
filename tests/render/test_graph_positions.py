"""Graphs over tokens and spans: every node in its column, every edge with its score; files of attribution graphs."""

import re

import numpy as np
import pytest
import torch

from mechwork.circuits import AttributionGraph, compare_circuits, graph_of
from mechwork.errors import InputError
from mechwork.render import render_positions
from mechwork.render.graph.levels import graph_levels
from mechwork.render.graph.pages import _attribution_payload, positions_payload
from mechwork.render.graph.positions import attribution_table, positions_table
from mechwork.render.graph.static import static_svg
from tests.render import synthetic


def test_every_edge_stands_at_its_position_with_its_score() -> None:
    scores, moves = synthetic.by_position()
    table = positions_table(scores, moves, 1000)
    found = {
        (table.names[s], table.names[t], k): v
        for s, t, k, v in zip(table.source, table.target, table.kind.tolist(), table.score.tolist(), strict=True)
    }
    assert len(found) == int((scores.values != 0).sum()) + 2
    for span, edge, value in scores.top(1000):
        if value:
            source, target = edge.split("->")
            kind = "qkv".index(target[-2]) if target.endswith(">") else 4 if target == "logits" else 3
            assert found[f"{source}@{span}", f"{target.split('<')[0]}@{span}", kind] == pytest.approx(value)
    assert found["a2.h0@S2", "a2.h0@END", 2] == pytest.approx(0.8)
    assert found["a0.h1@IO", "a0.h1@END", 1] == pytest.approx(-0.3)
    assert len(positions_table(scores, moves, 5).score) == 5
    with pytest.raises(InputError, match="same positions"):
        positions_table(scores, synthetic.by_position(("a", "b"))[1])


def test_nodes_stand_in_the_column_of_their_place_and_the_band_of_their_layer() -> None:
    payload = positions_payload(*synthetic.by_position(), 300, "")
    nodes, places = payload["nodes"], payload["places"]
    assert [place["label"] for place in places] == ["IO", "S1", "S2", "END"]
    for x, place in zip(nodes["x"], nodes["place"], strict=True):
        assert places[place]["left"] < x < places[place]["right"]
    bands = {band["layer"]: band for band in payload["layers"]}
    for y, layer, label in zip(nodes["y"], nodes["layer"], nodes["label"], strict=True):
        if label not in ("input", "logits"):
            assert bands[layer]["top"] <= y <= bands[layer]["bottom"]
    cells = list(zip(nodes["layer"], nodes["place"], nodes["x"], nodes["y"], strict=True))
    assert len(set(cells)) == len(cells)
    assert positions_payload(*synthetic.by_position(), 300, "") == payload
    svg = static_svg(payload)
    assert all(f">{label}</text>" in svg for label in ("IO", "S1", "S2", "END"))
    assert "data-mw-graph" in render_positions(*synthetic.by_position())


def test_edges_within_a_layer_are_arches_between_sides() -> None:
    payload = positions_payload(*synthetic.by_position(), 300, "")
    paths = re.findall(
        r'<path d="M([\d.-]+) ([\d.-]+)C[\d. -]+ ([\d.-]+) ([\d.-]+)" fill="none"', static_svg(payload, 300)
    )
    level = [(float(a), float(c)) for a, b, c, d in paths if b == d]
    assert len(level) == 2
    assert all(left < right for left, right in level)


def test_an_attribution_graph_keeps_tokens_labels_pins_and_groups() -> None:
    circuit = synthetic.circuit()
    names = [name for name in circuit.nodes if name.startswith("a")][:2]
    graph = graph_of(circuit.labelled(supernodes={"pair": names}), synthetic.task())
    table, labels = attribution_table(graph)
    assert len(table.names) == len(circuit.nodes)
    assert len(table.score) == circuit.n_edges
    assert table.place_labels == tuple(t.strip() for t in synthetic.TOKENS)
    assert set(table.places.tolist()) == {len(synthetic.TOKENS) - 1}
    assert sorted(table.labels) == sorted(circuit.nodes)
    assert circuit.scores is not None
    assert np.abs(table.score).max() == pytest.approx(float(circuit.scores.abs().max()), rel=1e-6)
    payload = _attribution_payload(graph)
    assert [group["name"] for group in payload["supernodes"]] == ["pair"]
    assert len(payload["pins"]) == len(circuit.roles) > 0
    assert any("name mover" in label for label in labels)


def test_features_and_errors_of_other_tools_are_drawn() -> None:
    def node(name: str, layer: str, kind: str, place: int, clerp: str = "") -> dict:
        return {"node_id": name, "layer": layer, "feature_type": kind, "ctx_idx": place, "clerp": clerp, "feature": 7}

    nodes = [
        node("e", "E", "embedding", 0), node("f", "3", "cross layer "
                                                       "transcoder", 1, "</script> a long label of a feature"),
        node("x", "4", "mlp reconstruction error", 1), node("l", "27", "logit", 2, "Output \"Paris\" (p=0.4)"),
    ]  # fmt: skip
    links = [
        {"source": a, "target": b, "weight": w} for a, b, w in (("e", "f", 1.0), ("f", "l", -2.0), ("x", "l", 0.5))
    ]
    graph = AttributionGraph({"slug": "s", "prompt_tokens": ["The", " capital"]}, {}, nodes, links)
    table, _ = attribution_table(graph)
    payload = _attribution_payload(graph)
    assert [payload["types"][t] for t in table.types] == ["input", "feature", "error", "logits"]
    assert table.n_layers == 5
    assert table.place_labels == ("The", "capital", "2")
    assert payload["edges"]["score"] == [-2.0, 1.0, 0.5]
    assert "</script> a" not in graph.to_html().split("</head>")[1].split("<script>")[0]
    empty = AttributionGraph({}, {}, [], [])
    assert "data-mw-graph" in empty.to_html()
    assert "<p>" in empty._repr_html_()


def test_a_comparison_is_drawn_as_two_circuits_over_each_other() -> None:
    a, b = synthetic.scores().circuit(40), synthetic.scores(seed=9).circuit(40)
    page = compare_circuits({"relp": a, "gradient": b}).to_html()
    assert '"compare":["relp","gradient"]' in page
    assert "relp / gradient" in page
    assert torch.equal(a.mask, synthetic.scores().circuit(40).mask)


def test_few_edges_stand_in_the_rows_of_their_layers_and_in_their_columns() -> None:
    n = 5
    table = positions_table(*synthetic.by_position(), 40)
    for level in graph_levels(table, n):
        drawn = np.unique(np.concatenate([table.source[: level["edges"]], table.target[: level["edges"]]])).tolist()
        assert [i for i, x in enumerate(level["x"]) if x is not None] == drawn
        inner = {layer for i in drawn if 0 <= (layer := int(table.layers[i])) < table.n_layers}
        assert [band["layer"] for band in level["layers"]] == sorted(inner)
        assert len(level["bends"]) == level["edges"]
        for i in drawn:
            column = level["places"][int(table.places[i])]
            assert column["left"] < level["x"][i] < column["right"]
            if 0 <= (layer := int(table.layers[i])) < table.n_layers:
                band = next(band for band in level["layers"] if band["layer"] == layer)
                assert band["top"] < level["y"][i] < band["bottom"]
