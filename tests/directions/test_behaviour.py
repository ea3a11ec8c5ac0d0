"""Closed curves, graphs and behaviours: a circle planted in a model, splines against scipy, ways against all ways."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from scipy.interpolate import CubicSpline
from torch import Tensor

from mechwork.directions import BehaviourStudy, CurveFit, GraphFit, Labelled, fit_curve, fit_graph, study_behaviour
from mechwork.directions.behaviour import make_ways
from mechwork.directions.graph_manifold import neighbour_ratio, shortest_way, to_segments, walk
from mechwork.errors import InputError, UnknownNameError
from mechwork.interventions import Curve, Slide, Write, intervene, load_writes, save_writes
from mechwork.models.load import load_model
from mechwork.sites import Site

SITE, DAYS = Site("resid_post", 0), 7
NAMES = [f"day {i}" for i in range(DAYS)]
RING = [(NAMES[i], NAMES[(i + 1) % DAYS]) for i in range(DAYS)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def closed(n: int = 7, seed: int = 0) -> Curve:
    """A closed curve in five dimensions through knots that are not equally far apart."""
    knots = torch.arange(n, dtype=torch.float64) + 0.3 * torch.rand(n, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(draw(5, 3, seed=1)).Q.T
    angle = 2 * math.pi * knots / n
    points = torch.stack([angle.cos(), angle.sin(), 0.1 * draw(n)], dim=1) * 3
    return Curve(knots, points, basis, draw(5, seed=2), period=float(n))


@pytest.mark.parametrize("n", [3, 7])
def test_a_closed_curve_is_scipys_periodic_spline(n: int, tmp_path: Any) -> None:
    curve = closed(n)
    ends, points = (part.numpy() for part in curve._ends)
    spline = CubicSpline(ends, points, bc_type="periodic")
    t = np.linspace(ends[0], ends[-1], 101)
    np.testing.assert_allclose(curve.coordinates(torch.from_numpy(t)).numpy(), spline(t), rtol=0, atol=1e-10)
    far = torch.tensor([2.3, 2.3 + n, 2.3 - 2 * n], dtype=torch.float64)
    torch.testing.assert_close(curve.at(far), curve.at(far[:1]).expand(3, -1))
    if n == 7:
        at = torch.linspace(float(ends[0]), float(ends[-1]) - 0.01, 40, dtype=torch.float64)
        aside = curve.at(at) + 0.0
        torch.testing.assert_close(curve.position(aside), at, rtol=0, atol=1e-4)
        assert float(curve.distance(aside).max()) < 1e-4
        moved = Slide(curve, by=6.0)(aside)  # six on is one back
        torch.testing.assert_close(moved, curve.at(at - 1.0), rtol=0, atol=1e-3)
        kept: Any = load_writes(save_writes(tmp_path / "ring", [Write(SITE, Slide(curve, by=1.0))]))[0]
        assert kept.replacement.curve.period == 7


def test_ways_through_a_graph_are_the_best_of_all_ways() -> None:
    """Every simple way between every two of six nodes, by number of edges and then by length."""
    points = draw(6, 3)
    edges = [(0, 1), (1, 2), (2, 3), (3, 0), (1, 4), (4, 3)]
    beside = {frozenset(edge) for edge in edges}
    for a, b in itertools.permutations(range(5), 2):
        every = [
            (a, *middle, b)
            for k in range(4)
            for middle in itertools.permutations([i for i in range(6) if i not in (a, b)], k)
        ]
        ways = [way for way in every if all(frozenset(step) in beside for step in itertools.pairwise(way))]

        def cost(way: tuple[int, ...]) -> tuple[int, float]:
            return len(way), sum(float((points[i] - points[j]).norm()) for i, j in itertools.pairwise(way))

        assert shortest_way(points, edges, a, b) == min(ways, key=cost)
    with pytest.raises(InputError, match="no edges lead"):
        shortest_way(points, edges, 0, 5)


def test_walks_and_distances_by_dense_sampling() -> None:
    corners = draw(4, 3)
    places = walk(corners, 301)
    torch.testing.assert_close(places[[0, -1]], corners[[0, -1]])
    steps = places.diff(dim=0).norm(dim=1)
    assert float(steps.max()) == pytest.approx(float(corners.diff(dim=0).norm(dim=1).sum()) / 300, rel=1e-9)
    x, share = draw(20, 3, seed=4), torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    pieces = torch.cat([a + share * (b - a) for a, b in itertools.pairwise(corners)])
    found = to_segments(x, corners[:-1], corners[1:])
    torch.testing.assert_close(found, torch.cdist(x, pieces).amin(dim=1), rtol=0, atol=1e-6)
    ratio, lot, p = neighbour_ratio(walk(draw(2, 3), 8), [(i, i + 1) for i in range(7)], 0)
    assert ratio < 0.4 < lot
    assert p < 0.01
    assert math.isnan(neighbour_ratio(draw(2, 3), [(0, 1)], 0)[0])


def test_controls_are_as_long_and_detours_arrive() -> None:
    angle = torch.linspace(0, 2.0, 9, dtype=torch.float64)
    plane = torch.linalg.qr(draw(12, 2)).Q.T
    path = 3 * torch.stack([angle.cos(), angle.sin()], dim=1) @ plane + draw(12, seed=1)
    ways = make_ways(path, 2, torch.Generator().manual_seed(0))
    assert list(ways) == ["shape", "straight", "detour 0", "random 0", "detour 1", "random 1"]
    steps = path.diff(dim=0).norm(dim=1)
    for name, shifts in ways.items():
        assert float(shifts[0].norm()) < 1e-9
        if name != "straight":
            torch.testing.assert_close(shifts.diff(dim=0).norm(dim=1), steps)
        if not name.startswith("random"):
            torch.testing.assert_close(shifts[-1], path[-1] - path[0])
    assert float((ways["straight"].diff(dim=0).norm(dim=1)).sum()) < 0.9 * float(steps.sum())
    for one in ("detour 0", "random 0"):
        assert float((ways[one] - ways["shape"]).norm()) > 1


def planted() -> tuple[Any, Labelled]:
    """Seven tokens on a circle, which is all that the model does: the next token is the one it is nearest to."""
    torch.manual_seed(0)
    module: Any = hf.GPT2LMHeadModel(
        hf.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=20, n_inner=16)
    ).eval()
    block = module.transformer.h[0]
    plain = torch.cat([torch.ones(16, 1), torch.randn(16, 3)], dim=1)
    up, e1, e2 = torch.linalg.qr(plain).Q.T[1:]
    with torch.no_grad():
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.zero_()
            part.bias.zero_()
        module.transformer.wpe.weight.normal_(std=0.02)
        module.transformer.wte.weight.normal_(std=0.02)
        for day in range(DAYS):
            angle = 2 * math.pi * day / DAYS
            module.transformer.wte.weight[day] = 2 * up + 2 * (math.cos(angle) * e1 + math.sin(angle) * e2)
    model = load_model(module, dtype=torch.float64)
    prompts = [[7 + (3 * i + k) % 13 for k in range(1 + i % 4)] + [day] for day in range(DAYS) for i in range(6)]
    return model, Labelled.of_tokens(prompts, [NAMES[prompt[-1]] for prompt in prompts])


def test_a_planted_circle_is_followed_and_the_straight_line_leaves_it(tmp_path: Any) -> None:
    model, data = planted()
    ring = fit_curve(
        model, data.tokens, data.where, data.targets.double() + 14, SITE, n_components=2, period=7.0, n_knots=None
    )
    assert ring.correlation > 0.99
    assert "closed curve through 7" in str(ring)
    graph = fit_graph(model, data, RING, SITE)
    assert graph.way(NAMES[1], NAMES[5]) == (NAMES[1], NAMES[0], NAMES[6], NAMES[5])
    assert graph.neighbours < 0.7 < graph.by_lot
    assert graph.p < 0.05
    assert graph.distance < graph.mean_distance + 1e-9
    half = graph.write(NAMES[0], NAMES[2], 0.5)
    torch.testing.assert_close(half.vector, graph.means[1] - graph.means[0], rtol=0, atol=0.02)
    ways = [(NAMES[i], NAMES[(i + 3) % DAYS]) for i in range(DAYS)]
    for shape, most in ((ring, 0.1), (graph, 0.8)):
        found = study_behaviour(model, data, shape, list(range(DAYS)), ways, n_random=2)
        assert found.natural < 0.03
        assert found.mean("shape", "visited") == 1
        assert found.mean("shape") < most * min(found.mean(name) for name in ("straight", "detour", "random"))
        assert found.mean("shape", "reached") > 0.8 > 0.3 > found.mean("random", "reached")
        assert found.mean("shape", "length") == pytest.approx(found.mean("detour", "length"))
        assert found.neighbours < 0.9
    text = str(BehaviourStudy.load(found.save(tmp_path / "ways")))
    assert "detour" in text
    assert isinstance(CurveFit.load(ring.save(tmp_path / "ring")).curve.period, float)
    assert GraphFit.load(graph.save(tmp_path / "graph")).way(NAMES[0], NAMES[1]) == (NAMES[0], NAMES[1])


@pytest.mark.parametrize("how", ["graph", "curve"])
def test_rows_are_those_of_a_loop(how: str) -> None:
    """Off, energy, visited, reached of the straight way, a prompt and a step at a time, the manifold as many places."""
    model, data = planted()
    shape = fit_graph(model, data, RING, SITE)
    ring: Any = shape if how == "graph" else fit_curve(
        model, data.tokens, data.where, data.targets.double(), SITE, n_components=2, period=7.0
    )  # fmt: skip
    found = study_behaviour(model, data, ring, list(range(DAYS)), [(NAMES[0], NAMES[3])], n_steps=5, n_random=1)
    row = next(row for row in found.rows if row.way == "straight")
    fitted, tested = data.split_rows(seed=0)

    def behaviour(index: int, shift: Tensor | None = None) -> np.ndarray:
        prompt = data.tokens[index][: int(data.where[index].int().argmax()) + 1]

        def put(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[0, -1] += 0 if shift is None else shift
            return x

        with torch.no_grad():
            logits = model.run_with_hooks(prompt[None], fwd_hooks=[("blocks.0.hook_resid_post", put)])
        p = logits[0, -1].softmax(dim=-1).numpy()
        return np.append(p[:DAYS], 1 - p[:DAYS].sum())

    roots = [
        np.mean([np.sqrt(behaviour(int(i))) for i in fitted if int(data.targets[i]) == day], axis=0)
        for day in range(DAYS)
    ]

    roots = [root / np.linalg.norm(root) for root in roots]

    share = np.linspace(0, 1, 4001)[:, None]
    places = []
    for day in range(DAYS):
        x, y = roots[day], roots[(day + 1) % DAYS]
        full = np.arccos(x @ y)
        places.append((np.sin((1 - share) * full) * x + np.sin(share * full) * y) / np.sin(full))
    if how == "curve":
        spline = CubicSpline(np.arange(8), np.stack([*roots, roots[0]]), bc_type="periodic")
        places = [spline(np.linspace(0, 7, 7 * 32 * 40 + 1)).clip(min=0)]
    manifold = np.concatenate(places)
    manifold = manifold / np.linalg.norm(manifold, axis=1, keepdims=True)

    def off(p: np.ndarray) -> float:
        return float(np.linalg.norm(np.sqrt(p) - manifold, axis=1).min()) / math.sqrt(2)

    own = [int(i) for i in tested if int(data.targets[i]) == 0]
    ends = ring.path(0, 3, 2) if how == "curve" else ring.means[[0, 3]].double()
    whole = ends[1] - ends[0]
    said = [[behaviour(i, whole * step / 4) for i in own] for step in range(5)]
    each = [float(np.mean([off(p) for p in step])) for step in said]
    means = [np.mean(step, axis=0) for step in said]
    energy = 4 * sum(float(((np.sqrt(a) - np.sqrt(b)) ** 2).sum()) / 2 for a, b in itertools.pairwise(means))
    close = 1e-6 if how == "graph" else 1e-4  # ours is made of 32 arcs a piece
    assert row.off == pytest.approx(np.mean(each), abs=close)
    assert row.worst == pytest.approx(max(each), abs=close)
    assert row.energy == pytest.approx(energy, abs=1e-9)
    assert row.reached == pytest.approx(means[-1][3], abs=1e-9)
    assert row.visited == len({1, 2} & {int(p[:DAYS].argmax()) for p in means}) / 2
    assert found.natural == pytest.approx(np.mean([off(behaviour(int(i))) for i in tested]), abs=close)
    with intervene(model, [Write(SITE, shape.write(NAMES[0], NAMES[3]))]):
        assert int(model(torch.tensor([[8, 0]]))[0, -1].argmax()) == 3


def test_contracts() -> None:
    model, data = planted()
    ring = fit_graph(model, data, RING, SITE)
    numbers = Labelled.of_tokens([[7, 0], [7, 1], [8, 2], [9, 3]], [0.0, 1.0, 2.0, 3.0])
    tokens, ways = list(range(DAYS)), [(NAMES[0], NAMES[1])]
    open_one = fit_curve(model, data.tokens, data.where, (data.targets > 3).double(), SITE, n_components=2)
    wide = Labelled.of_tokens(data.tokens[:, :2].tolist(), [NAMES[int(i)] for i in data.targets], everywhere=True)
    first = torch.zeros_like(data.where)
    first[:, 0] = True
    cases: list[tuple[str, Any]] = [
        ("numbers, not classes", lambda: fit_graph(model, numbers, [("a", "b")], SITE)),
        ("pairs of names", lambda: fit_graph(model, data, [], SITE)),
        ("given once", lambda: fit_graph(model, data, [*RING, (NAMES[1], NAMES[0])], SITE)),
        ("two different", lambda: fit_graph(model, data, [(NAMES[1], NAMES[1])], SITE)),
        ("above 0 and at most 1", lambda: ring.write(NAMES[0], NAMES[1], 0.0)),
        ("are numbers", lambda: study_behaviour(model, numbers, ring, tokens, ways)),
        ("tokens of its own", lambda: study_behaviour(model, data, ring, [0] * DAYS, ways)),
        ("same classes", lambda: study_behaviour(model, data, open_one, tokens, ways)),
        ("one position each and read at one", lambda: study_behaviour(model, wide, ring, tokens, ways)),
        ("read before", lambda: study_behaviour(model, data, ring, tokens, ways, read=first)),
        ("three steps", lambda: study_behaviour(model, data, ring, tokens, ways, n_steps=2)),
        ("from one class to another", lambda: study_behaviour(model, data, ring, tokens, [(NAMES[0], NAMES[0])])),
        ("period is a finite", lambda: fit_curve(
            model, data.tokens, data.where, data.targets.double(), SITE, period=0.0)),
        ("a closed one three", lambda: fit_curve(
            model, data.tokens, data.where, data.targets.double() % 2, SITE, n_components=2, period=2.0)),
        ("closed curve has three", lambda: Curve(torch.arange(3.0), draw(3, 2), torch.eye(2), draw(2), period=2.0)),
    ]  # fmt: skip
    for words, call in cases:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(UnknownNameError, match="class"):
        ring.way("day 0", "day 9")
