"""Files of circuits: what is written is read again, in our own formats and in other tools'; mixed conventions are
refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.circuits import Circuit, EdgeSpace
from mechwork.circuits.graph.files import load_tensors, read_mib, save_tensors, write_mib
from mechwork.circuits.graph.graph_file import AttributionGraph, circuit_of, graph_of
from mechwork.circuits.graph.select import select_top
from mechwork.errors import ArtefactError, InputError, MetricError, UnknownNameError
from tests.families import build_task
from tests.reference import peers

SPACES = (EdgeSpace(2, 4, 4), EdgeSpace(2, 4, 2), EdgeSpace(3, 4, 4, parallel=True))
LABELS: dict[str, Any] = {
    "roles": {"a0.h1": "mover <b>"},
    "notes": {"m1": "looks at “S2”"},
    "supernodes": {"movers": ("a0.h1", "a1.h0"), "rest": ("m1",)},
}


def circuit_on(space: EdgeSpace) -> Circuit:
    values = torch.randn(space.mask.shape, generator=torch.Generator().manual_seed(0)) * space.mask
    mask = select_top(space, values, 60)
    return Circuit(space, mask, values, 40, provenance={"method": "test"}).pruned().labelled(**LABELS)


def same_labels(a: Circuit, b: Circuit) -> bool:
    fields = ("roles", "notes", "supernodes", "n_requested", "provenance")
    return all(getattr(a, name) == getattr(b, name) for name in fields)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_own_files(space: EdgeSpace, tmp_path: Path) -> None:
    circuit = circuit_on(space)
    loaded = Circuit.load(circuit.save(tmp_path / "c.json"))
    assert torch.equal(loaded.mask, circuit.mask)
    assert loaded.scores is not None
    assert circuit.scores is not None
    assert torch.equal(loaded.scores, circuit.scores * circuit.mask)
    assert same_labels(loaded, circuit)
    packed = load_tensors(save_tensors(circuit, tmp_path / "c"))
    assert packed.scores is not None
    assert torch.equal(packed.scores, circuit.scores)
    assert torch.equal(packed.mask, circuit.mask)
    assert same_labels(packed, circuit)


@pytest.mark.parametrize("convention", ["loss", "metric"])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_mib_files(space: EdgeSpace, convention: Any, tmp_path: Path) -> None:
    circuit = circuit_on(space)
    path = write_mib(circuit, tmp_path / "mib.json", d_model=32, convention=convention)
    loaded = read_mib(path)
    assert torch.equal(loaded.mask, circuit.mask)
    assert loaded.scores is not None
    assert circuit.scores is not None
    torch.testing.assert_close(loaded.scores, circuit.scores, rtol=1e-7, atol=0)
    assert same_labels(loaded, circuit)
    data = json.loads(path.read_text())
    edge, (i, j) = "input->a0.h3<k>", (0, space.readers.index(f"a0.h{3 * space.n_kv_heads // 4}<k>"))
    share = float(circuit.scores[i, j]) / (space.n_heads // space.n_kv_heads)
    assert data["edges"][edge]["score"] == pytest.approx(share if convention == "loss" else -share)
    assert data["cfg"] == {"n_layers": space.n_layers, "n_heads": 4, "parallel_attn_mlp": space.parallel, "d_model": 32}
    assert data["nodes"]["logits"] == {"in_graph": True}


def test_a_file_as_the_other_package_writes_it(tmp_path: Path) -> None:
    """All edges listed, no word on signs: the stored scores of the peers' own run, on the graph of their model."""
    arrays, names = peers.arrays("edges", "f32"), peers.names()
    space = EdgeSpace(4, 4, 4)
    edges = {
        space.edge_name(i, j): {"score": float(arrays["scores_EAP"][i, j]), "in_graph": (i + j) % 2 == 0}
        for i, j in space.mask.nonzero().tolist()
    }
    nodes = {name: {"in_graph": True, "score": 0.5} for name in (*names["src_nodes"], "logits")}
    cfg = {"n_layers": 4, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 64}
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges}))
    with pytest.raises(InputError, match="convention"):
        read_mib(path)
    circuit = read_mib(path, convention="metric")
    assert circuit.scores is not None
    assert float((circuit.scores + torch.from_numpy(arrays["scores_EAP"]) * space.mask).abs().max()) < 1e-7
    again = json.loads(write_mib(circuit, tmp_path / "again.json", d_model=64, convention="metric").read_text())
    assert again["nodes"]["m0"]["score"] == 0.5
    for name, edge in edges.items():
        if edge["score"] != 0 or edge["in_graph"]:
            assert again["edges"][name]["score"] == pytest.approx(edge["score"], rel=1e-7)
            assert again["edges"][name]["in_graph"] == edge["in_graph"]


def test_mib_files_that_are_wrong(tmp_path: Path) -> None:
    path = write_mib(circuit_on(SPACES[0]), tmp_path / "mib.json", d_model=32, convention="metric")
    with pytest.raises(InputError, match="says that its scores"):
        read_mib(path, convention="loss")
    data = json.loads(path.read_text())
    for edge in ("m1->m0", "zz->m0", "m0->zz"):
        path.write_text(json.dumps({**data, "edges": {edge: {"score": 1.0, "in_graph": True}}}))
        with pytest.raises(ArtefactError, match=f"has an edge '{edge}' that the graph"):
            read_mib(path)
    path.write_text(json.dumps({**data, "edges": {"m0->m1": {"score": float("nan"), "in_graph": True}}}))
    with pytest.raises(ArtefactError, match="finite"):
        read_mib(path)
    path.write_text("[]")
    with pytest.raises(ArtefactError, match="lacks cfg"):
        read_mib(path)
    with pytest.raises(InputError, match="convention is"):
        write_mib(circuit_on(SPACES[0]), path, d_model=32, convention="sign")


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_circuits_as_attribution_graphs(space: EdgeSpace, tmp_path: Path) -> None:
    circuit = circuit_on(space)
    graph = graph_of(circuit, build_task(), scan="tiny")
    path = graph.save(tmp_path / "graph.json")
    loaded = AttributionGraph.load(path)
    assert json.loads(loaded.save(tmp_path / "again.json").read_text()) == json.loads(path.read_text())
    back = circuit_of(loaded)
    assert torch.equal(back.mask, circuit.mask)
    assert back.scores is not None
    assert circuit.scores is not None
    torch.testing.assert_close(back.scores, circuit.scores * circuit.mask, rtol=1e-6, atol=0)
    assert same_labels(back, circuit)
    assert "a0.h1: mover <b>" in graph.labels.values()
    assert set(graph.supernodes) == {"movers", "rest"}


def test_a_feature_graph_keeps_every_field(tmp_path: Path) -> None:
    """A graph of transcoder features with fields of its own: nothing is lost, and it is no circuit of heads."""
    node = {"node_id": "3_41_7", "feature": 902, "layer": "3", "ctx_idx": 7, "feature_type": "cross layer transcoder",
            "clerp": "say a capital", "influence": 0.25, "vendor_field": [1, {"a": None}]}  # fmt: skip
    token = {"node_id": "E_5_0", "feature": 0, "layer": "E", "ctx_idx": 0, "feature_type": "embedding"}
    data = {
        "metadata": {"slug": "x", "scan": "gemma-2-2b", "prompt": "é", "prompt_tokens": ["é"], "node_threshold": 0.8},
        "qParams": {"pinnedIds": ["3_41_7"], "supernodes": [["Capital", "3_41_7"]], "linkType": "both", "clickedId": "",
        "sg_pos": ""},
        "nodes": [node, token],
        "links": [{"source": "E_5_0", "target": "3_41_7", "weight": -0.125, "extra": 1}],
        "features": ["kept"],
    }  # fmt: skip
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(data))
    graph = AttributionGraph.load(path)
    assert json.loads(graph.save(tmp_path / "again.json").read_text()) == data
    assert graph.labels == {"3_41_7": "say a capital"}
    assert graph.supernodes == {"Capital": ("3_41_7",)}
    with pytest.raises(ArtefactError, match="cross layer transcoder"):
        circuit_of(graph)
    path.write_text(json.dumps({**data, "links": [{"source": "gone", "target": "E_5_0", "weight": 1}]}))
    with pytest.raises(ArtefactError, match="gone"):
        AttributionGraph.load(path)
    path.write_text(json.dumps({**data, "links": [{"source": "E_5_0", "target": "3_41_7", "weight": "much"}]}))
    with pytest.raises((MetricError, ArtefactError)):
        AttributionGraph.load(path)


def test_labels_name_nodes_of_the_graph() -> None:
    circuit = circuit_on(SPACES[0])
    with pytest.raises(UnknownNameError, match="nearest: a0"):
        circuit.labelled(roles={"a0.h33": "x"})
    with pytest.raises(InputError, match="no scores"):
        graph_of(Circuit(SPACES[0], SPACES[0].mask), build_task())
