import base64
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from mechwork.circuits.graph.circuit import Circuit
from mechwork.circuits.graph.space import EdgeSpace
from mechwork.errors import InputError, MetricError
from mechwork.render.graph.graph import edge_table, graph_svg, render_graph
from mechwork.render.graph.layout import HEIGHTS, WIDTHS
from mechwork.render.graph.payload import GraphOptions, graph_payload
from mechwork.render.graph.static import static_svg
from mechwork.render.graph.table import MAX_EDGES
from mechwork.render.page.cards import Fact
from tests.render import synthetic


def test_edges_are_those_of_the_circuit_strongest_first() -> None:
    circuit = synthetic.circuit()
    payload = graph_payload(circuit)
    names, edges = payload["nodes"]["name"], payload["edges"]
    marks = ["<q>", "<k>", "<v>", "", ""]
    drawn = [
        f"{names[s]}->{names[t]}{marks[k]}"
        for s, t, k in zip(edges["source"], edges["target"], edges["kind"], strict=True)
    ]
    assert sorted(drawn) == sorted(circuit.edges)
    assert set(names) == set(circuit.nodes)
    assert circuit.scores is not None
    wanted = [float(circuit.scores[circuit.space.edge_index(edge)]) for edge in drawn]
    assert edges["score"] == pytest.approx(wanted, rel=1e-5)
    assert max(map(abs, edges["score"])) > 0


def test_node_scores_are_sums_of_outgoing_edges() -> None:
    circuit = synthetic.circuit()
    payload = graph_payload(circuit)
    assert circuit.scores is not None
    sums = (circuit.scores * circuit.mask).sum(dim=1)
    for name, score in zip(payload["nodes"]["name"], payload["nodes"]["score"], strict=True):
        expected = 0.0 if name == "logits" else float(sums[circuit.space.writers.index(name)])
        assert score == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_same_circuit_gives_the_same_bytes() -> None:
    first, second = (json.dumps(graph_payload(synthetic.circuit(), scores=synthetic.scores())) for _ in range(2))
    assert first == second


def test_layers_run_upwards_and_nodes_do_not_overlap() -> None:
    for circuit in (synthetic.circuit(), synthetic.grouped_circuit(), synthetic.large_circuit(3000)):
        nodes = graph_payload(circuit)["nodes"]
        x, y, types, layers = (np.array(nodes[key]) for key in ("x", "y", "type", "layer"))
        width, height = WIDTHS[types], HEIGHTS[types]
        close_x = np.abs(x[:, None] - x[None, :]) < (width[:, None] + width[None, :]) / 2 + 4
        close_y = np.abs(y[:, None] - y[None, :]) < (height[:, None] + height[None, :]) / 2 + 4
        assert not (np.triu(close_x & close_y, 1)).any()
        order = np.argsort(layers, kind="stable")
        means = [y[layers == layer].mean() for layer in np.unique(layers[order])]
        assert means == sorted(means, reverse=True)


def test_every_edge_runs_upwards() -> None:
    for circuit in (synthetic.circuit(), synthetic.grouped_circuit()):
        payload = graph_payload(circuit)
        y = payload["nodes"]["y"]
        pairs = [*zip(payload["edges"]["source"], payload["edges"]["target"], strict=True), *payload["links"]]
        assert pairs
        assert all(y[s] > y[t] for s, t in pairs)


def test_grouped_key_value_readers_are_nodes_linked_to_their_heads() -> None:
    circuit = synthetic.grouped_circuit()
    payload = graph_payload(circuit)
    names, types = payload["nodes"]["name"], payload["nodes"]["type"]
    groups = [i for i, t in enumerate(types) if payload["types"][t] == "kv"]
    assert groups
    for source, target in payload["links"]:
        group, head = names[source], names[target]
        assert re.fullmatch(r"a\d+\.kv\d", group)
        assert group.split(".")[0] == head.split(".")[0]
        assert int(head.rpartition("h")[2]) // 4 == int(group.rpartition("v")[2])
    into_kv = {k for t, k in zip(payload["edges"]["target"], payload["edges"]["kind"], strict=True) if t in groups}
    assert into_kv <= {1, 2}


def test_bends_lead_edges_around_other_nodes() -> None:
    """A long edge in one column with nodes between its ends must not run through them."""
    space = EdgeSpace(n_layers=4, n_heads=1, n_kv_heads=1)
    circuit = Circuit.from_edges(
        space,
        ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->a2.h0<v>", "a2.h0->a3.h0<v>", "a3.h0->logits", "a0.h0->logits"],
    )
    payload = graph_payload(circuit)
    names = payload["nodes"]["name"]
    pairs = list(zip(payload["edges"]["source"], payload["edges"]["target"], strict=True))
    bend = dict(zip(pairs, payload["edges"]["bend"], strict=True))
    assert bend[names.index("a0.h0"), names.index("logits")] != 0
    assert bend[names.index("a0.h0"), names.index("a1.h0")] == 0


def test_scores_bring_errors_and_confidence() -> None:
    scores = synthetic.scores()
    edges = graph_payload(scores.circuit(40), scores=scores)["edges"]
    assert len(edges["error"]) == len(edges["confidence"]) == len(edges["score"])
    assert all(e > 0 for e in edges["error"])
    assert all(0 <= c <= 1 for c in edges["confidence"])
    assert max(edges["confidence"]) == 1


def test_two_circuits_are_laid_over_each_other() -> None:
    first, second = synthetic.scores().circuit(40), synthetic.scores(seed=9, rules="gradient").circuit(40)
    payload = graph_payload(first, GraphOptions(names=("relp", "gradient")), other=second)
    member = payload["edges"]["member"]
    assert payload["compare"] == ["relp", "gradient"]
    assert member.count(1) == (first - second).n_edges
    assert member.count(2) == (second - first).n_edges
    assert member.count(3) == (first & second).n_edges > 0
    other = payload["edges"]["other"]
    assert all((value != 0) == (m in (2, 3)) for value, m in zip(other, member, strict=True))
    with pytest.raises(InputError, match="its own graph"):
        graph_payload(first, scores=synthetic.scores(4, synthetic.grouped_circuit().space))


def test_circuits_of_models_of_different_shape_are_joined_by_name() -> None:
    first, second = synthetic.circuit(40), synthetic.grouped_circuit()
    payload = graph_payload(first, other=second)
    names, edges = payload["nodes"]["name"], payload["edges"]
    found: dict[int, set[str]] = {1: set(), 2: set(), 3: set()}
    for s, t, k, m in zip(edges["source"], edges["target"], edges["kind"], edges["member"], strict=True):
        kind = f"<{'qkv'[k]}>" if k < 3 else ""
        found[m].add(f"{names[s]}->{names[t]}{kind}")
    mine = set(first.edges)
    theirs = {re.sub(r"\.h(\d+)<([kv])>", r".kv\1<\2>", edge) for edge in second.edges}
    assert found == {1: mine - theirs, 2: theirs - mine, 3: mine & theirs}
    assert len(theirs) == second.n_edges > 0
    assert payload["space"] is None
    assert "two models" in payload["among"]
    layer = dict(zip(names, payload["nodes"]["layer"], strict=True))
    assert layer["logits"] == 6
    assert all(layer[name] == int(name[1]) for name in names if name[0] in "am")


def test_a_circuit_without_scores_and_an_empty_one_are_drawn() -> None:
    plain = Circuit.from_edges(synthetic.space(), ["input->a0.h0<q>", "a0.h0->logits"])
    payload = graph_payload(plain)
    assert payload["edges"]["score"] is None
    assert payload["nodes"]["score"] is None
    assert "score" not in edge_table(payload)
    empty = Circuit.from_edges(synthetic.space(), [])
    payload = graph_payload(empty)
    assert payload["nodes"]["name"] == ["input", "logits"]
    assert "<svg" in static_svg(payload)
    assert "0 of the model&#x27;s 1,108 edges" in render_graph(empty)


def test_scores_that_are_not_finite_are_refused_by_name() -> None:
    circuit = synthetic.circuit()
    assert circuit.scores is not None
    row, column = circuit.mask.nonzero()[3].tolist()
    values = circuit.scores.clone()
    values[row, column] = torch.nan
    with pytest.raises(MetricError, match=re.escape(circuit.space.edge_name(row, column))):
        graph_payload(replace(circuit, scores=values))


def test_a_hundred_thousand_edges_are_cut_and_the_page_says_so() -> None:
    started = time.process_time()
    payload = graph_payload(synthetic.large_circuit(100_000))
    assert len(payload["edges"]["source"]) == MAX_EDGES
    assert payload["cut"] == 100_000 - MAX_EDGES
    assert time.process_time() - started < 15


def test_roles_notes_and_facts_are_carried() -> None:
    options = GraphOptions(notes={"a4.h1": "my note"}, facts={"a4.h1": [Fact("effect", "+1.4")]})
    nodes = graph_payload(synthetic.circuit(), options)["nodes"]
    i = nodes["name"].index("a4.h1")
    assert nodes["role"][i] == "name mover"
    assert nodes["note"][i] == "my note"
    assert nodes["facts"][i] == [["effect", "+1.4", "measured"]]


def test_the_static_picture_is_well_formed_and_shows_every_node() -> None:
    from xml.etree import ElementTree

    payload = graph_payload(synthetic.circuit())
    assert graph_svg(synthetic.circuit()) == static_svg(
        graph_payload(synthetic.circuit(), GraphOptions(title="Circuit for ioi"))
    )
    root = ElementTree.fromstring(static_svg(payload))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    n, names = payload["shown"], payload["nodes"]["name"]
    drawn = {names[i] for side in ("source", "target") for i in payload["edges"][side][:n]}
    assert drawn <= texts
    paths = list(root.iter("{http://www.w3.org/2000/svg}path"))
    assert len(paths) == 2 * n + 2 * len(drawn)  # a line and its head, a ground and an outline


def test_the_page_has_a_fallback_and_no_addresses() -> None:
    page = render_graph(synthetic.circuit())
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == 1
    assert base64.b64decode(images[0]).startswith(b"<svg")
    assert "<noscript>" in page
    assert page.count("<tr>") > 10
    loaded = [
        value for tag, attributes in _tags(page) for name, value in attributes if name in ("src", "href") and tag != "a"
    ]
    assert all(value and value.startswith("data:") for value in loaded)
    assert len(page) < 300_000


def _tags(page: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    found: list[tuple[str, list[tuple[str, str | None]]]] = []

    class Collect(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, attrs))

    Collect().feed(page)
    return found


def test_hostile_roles_notes_and_titles_stay_text() -> None:
    circuit = replace(synthetic.circuit(), roles=dict(zip(synthetic.circuit().nodes, synthetic.HOSTILE, strict=False)))
    page = render_graph(circuit, GraphOptions(title=synthetic.HOSTILE[0], notes={"m0": synthetic.HOSTILE[1]}))
    tags = [tag for tag, _ in _tags(page)]
    assert tags.count("script") == 3
    assert not any(name.startswith("on") for _, attributes in _tags(page) for name, _ in attributes)
