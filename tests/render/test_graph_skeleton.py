"""The graph at first sight: its strongest connected edges, every node named and free, no edge through a
foreign node.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mechwork.circuits.graph.circuit import Circuit, prune
from mechwork.circuits.graph.space import EdgeSpace
from mechwork.errors import InputError
from mechwork.render import GraphOptions, figure
from mechwork.render.graph.payload import graph_payload
from mechwork.render.graph.skeleton import default_size, interpolate, strengths
from mechwork.render.graph.static import curve_of
from mechwork.render.graph.table import circuit_table
from tests.render import synthetic

SPACES = {
    "6 layers x 4 heads": EdgeSpace(n_layers=6, n_heads=4, n_kv_heads=4),
    "12 layers x 8 heads": EdgeSpace(n_layers=12, n_heads=8, n_kv_heads=8),
    "30 layers x 9 heads": EdgeSpace(n_layers=30, n_heads=9, n_kv_heads=3),
    "parallel": EdgeSpace(n_layers=4, n_heads=8, n_kv_heads=2, parallel=True),
}


def drawn(graph: EdgeSpace, n_edges: int, seed: int = 5) -> Circuit:
    generator = torch.Generator().manual_seed(seed)
    heavy = (
        torch.randn(graph.n_writers, 1, generator=generator).mul(1.6).exp()
        * torch.randn(1, graph.n_readers, generator=generator).mul(1.6).exp()
    )
    heavy[0] *= 30  # as in real circuits, the input and the logits take part in most paths
    heavy[:, -1] *= 30
    values = torch.randn(graph.n_writers, graph.n_readers, generator=generator) * heavy * graph.mask
    order = values.abs().flatten().argsort(descending=True)[: min(n_edges, graph.n_edges)]
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order] = True
    return Circuit(graph, prune(graph, mask.reshape(values.shape)), values, provenance=synthetic.provenance())


def points(payload: dict, place: dict, e: int, bend: int | None = None) -> np.ndarray:
    """Many points along an edge, by de Casteljau over every piece of its curve."""
    flat = np.array(curve_of(payload, place, e, bend)).reshape(-1, 2)
    t = np.linspace(0, 1, 60)[:, None]
    pieces = []
    for k in range(0, len(flat) - 1, 3):
        p = flat[k : k + 4]
        while len(p) > 1:
            p = p[:-1][:, None] * (1 - t) + p[1:][:, None] * t if p.ndim == 2 else p[:-1] * (1 - t) + p[1:] * t
        pieces.append(p[0])
    return np.concatenate(pieces)


def boxes(payload: dict, place: dict) -> dict[int, tuple[float, float, float, float]]:
    types = payload["nodes"]["type"]
    return {
        i: (x, y, payload["widths"][types[i]] / 2, payload["heights"][types[i]] / 2)
        for i, (x, y) in enumerate(zip(place["x"], place["y"], strict=True))
        if x is not None
    }


@pytest.mark.parametrize("n_edges", [600, 7000])
@pytest.mark.parametrize("name", SPACES)
def test_no_edge_runs_through_a_foreign_node_and_no_node_over_another(name: str, n_edges: int) -> None:
    payload = graph_payload(drawn(SPACES[name], n_edges))
    edges = payload["edges"]
    assert payload["levels"]
    for level in payload["levels"][:2]:
        found = boxes(payload, level)
        n = level["edges"]
        for (ax, ay, aw, ah), (bx, by, bw, bh) in ((a, b) for i, a in found.items() for j, b in found.items() if i < j):
            assert abs(ax - bx) >= aw + bw + 4 or abs(ay - by) >= ah + bh + 4
        for e, bend in [*((e, None) for e in range(n)), *level["ghosts"]]:
            line = points(payload, level, e, bend)
            for i, (x, y, w, h) in found.items():
                if i in (edges["source"][e], edges["target"][e]):
                    continue
                inside = (np.abs(line[:, 0] - x) < w) & (np.abs(line[:, 1] - y) < h)
                assert not inside.any(), f"edge {e} runs through {payload['nodes']['name'][i]}"
        for i in found:
            assert len(payload["nodes"]["label"][i]) <= 12  # a name is written in full in its node


@pytest.mark.parametrize("name", SPACES)
def test_layers_run_upwards_and_the_first_view_is_small(name: str) -> None:
    payload = graph_payload(drawn(SPACES[name], 600))
    level = payload["levels"][0]
    edges = payload["edges"]
    assert payload["shown"] <= 25
    for s, t in zip(edges["source"][: payload["shown"]], edges["target"][: payload["shown"]], strict=True):
        assert level["y"][s] > level["y"][t]
    width, height = level["size"]
    assert height <= 14 * 118
    assert 0.6 < width / height < 4.5


def test_a_prefix_is_the_pruned_circuit_of_its_threshold() -> None:
    circuit = drawn(SPACES["6 layers x 4 heads"], 200)
    table = circuit_table(circuit)
    assert (np.diff(table.strength) <= 0).all()
    scores = circuit.scores
    assert scores is not None
    checked = 0
    for k in range(1, len(table.strength)):
        if table.strength[k - 1] == table.strength[k]:
            continue
        kept = prune(circuit.space, circuit.mask & (scores.abs().double() >= table.strength[k - 1]))
        ours = {(int(a), int(b)) for a, b in table.cells[:k]}  # type: ignore[index]
        assert ours == {(a, b) for a, b in kept.nonzero().tolist()}
        checked += 1
    assert checked > 10


def test_strengths_of_a_graph_solved_by_hand() -> None:
    # input 0 -> 1 (3) -> 3 (5); 0 -> 2 (4) -> 3 (1); 1 -> 2 (2): the best path through each edge, its weakest part
    source, target = np.array([0, 1, 0, 2, 1]), np.array([1, 3, 2, 3, 2])
    found = strengths(4, source, target, np.array([3.0, 5.0, 4.0, 1.0, 2.0]), np.array([0]), np.array([3]))
    assert found.tolist() == [3.0, 3.0, 1.0, 1.0, 1.0]
    assert default_size(np.array([0] * 5)) == 5
    assert default_size(np.array([0] * 14 + [1] * 6 + [2] * 40)) == 20


def test_faithfulness_is_read_between_measured_sizes_and_never_beyond() -> None:
    measured = [[0.0, 0.0], [10.0, 0.2], [50.0, 0.8]]
    assert interpolate(measured, 30) == pytest.approx(0.5)
    assert interpolate(measured, 51) is None
    assert interpolate([], 5) is None
    payload = graph_payload(synthetic.circuit(), GraphOptions(curve=synthetic.curve()))
    curve = synthetic.curve()
    assert payload["faithfulness"][-1] == [
        float(curve.n_kept[-1]),
        pytest.approx(float(curve.faithfulness[-1]), abs=1e-4),
    ]


def test_the_slide_says_what_it_shows(tmp_path) -> None:
    circuit, task = synthetic.circuit(), synthetic.task()
    made = figure(
        circuit, *synthetic.everything()[:3], synthetic.curve(), synthetic.evaluation(), task=task, n_edges=12
    )
    assert made._repr_svg_() == made.svg
    assert made.svg.count("<g><title>") <= 12
    evaluation = synthetic.evaluation()
    for wanted in (
        "Mary",
        "store",
        f"faithfulness {evaluation.faithfulness:.2f}",
        "random circuits of its size 0.01",
        "a4.h1",
    ):
        assert wanted in made.svg or wanted in made.caption
    assert made.save(tmp_path / "slide.svg").read_text(encoding="utf-8") == made.svg
    with pytest.raises(InputError, match="at least one edge"):
        figure(circuit, n_edges=0)
    with pytest.raises(InputError, match=r"\.svg or \.png"):
        made.save(tmp_path / "slide.gif")


@pytest.mark.parametrize("n", [0, 1])
def test_circuits_of_no_edge_and_of_one_are_drawn(n: int) -> None:
    whole = synthetic.circuit()
    edges = ["input->logits"][:n]
    circuit = replace(Circuit.from_edges(whole.space, edges), roles={"a0.h0": "</svg><script>"})
    assert "logits" in figure(circuit).svg
    assert "<script" not in figure(circuit).svg
