"""What results say of numbers given by hand: no model runs, every answer is worked out beside it."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation.expert_rates import ExpertChange, ExpertContrast, _by_lot
from mechwork.ablation.telemetry import LargeActivation, _largest, _Part
from mechwork.circuits import Circuit, EdgeScores, EdgeSpace
from mechwork.circuits.scoring.ensemble import ensemble
from mechwork.circuits.scoring.nodes import NodeScores
from mechwork.circuits.scoring.positions import PositionScores
from mechwork.circuits.scoring.query_key import QueryKeyAttribution
from mechwork.circuits.scoring.sample import Streamed
from mechwork.circuits.testing.curves import CircuitEvaluation, FaithfulnessCurve
from mechwork.circuits.testing.mechanisms import MechanismRow, Mechanisms
from mechwork.circuits.testing.referee import N_LEAST, _why_not
from mechwork.circuits.testing.rivals import RivalRow, Rivals
from mechwork.errors import InputError, MetricError, UnknownNameError, UnsupportedModelError
from mechwork.interventions.routing import check_router, choose_experts
from mechwork.lenses.value_clusters import ValueClusters
from mechwork.patching.grids import _neuron_sets
from mechwork.patching.kept import Kept
from mechwork.patching.result import Effect, agreement_of
from mechwork.patching.screen import ScreenedEffects
from mechwork.patching.study import _mean
from mechwork.relevance.install import _leave, _stacks
from mechwork.relevance.linear import _ratio
from mechwork.runs.record import Baseline
from mechwork.sites import Site
from mechwork.tasks import find_task
from mechwork.tasks.answers import _following
from mechwork.tasks.marks import SHIFT, is_marked, marks_of, plain_tokens
from mechwork.tasks.metrics import Metric
from mechwork.tasks.rows import _named

SPACE = EdgeSpace(n_layers=1, n_heads=2, n_kv_heads=1)
BASELINE = Baseline(torch.tensor([5.0, 7.0]), torch.tensor([1.0, 2.0]))


def effect_of(rows: Any, direction: Any = "denoise", *, estimated: bool = False) -> Effect:
    """Effects ``[pair, layer]`` at the stream."""
    values = torch.tensor(rows)
    labels = {"layer": tuple(str(i) for i in range(values.shape[1]))}
    return Effect(
        "resid_pre", values, ("layer",), labels, BASELINE, direction, estimated, "logit_difference", {"task": "by hand"}
    )


def test_the_patched_metric_starts_where_the_patch_did() -> None:
    rows = [[1.0, -2.0], [3.0, 0.0]]  # means 2 and -1; the corrupt metric is 1.5, the clean one 6
    assert effect_of(rows).metric.tolist() == [3.5, 0.5]
    assert effect_of(rows, "noise").metric.tolist() == [4.0, 7.0]
    assert effect_of(rows).normalized().values.tolist() == pytest.approx([2 / 4.5, -1 / 4.5])
    with pytest.raises(InputError, match="no patched metric"):
        _ = effect_of(rows, estimated=True).metric


def test_agreement_is_of_two_lists() -> None:
    one, two = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 4.0, 3.0])
    found = agreement_of("x", one, two)
    assert (found.n_places, found.spearman) == (3, pytest.approx(0.5))
    assert found.relative_error == pytest.approx(18**0.5 / 5)
    nothing = torch.zeros(3)
    assert agreement_of("x", nothing, nothing).relative_error == 0
    assert _mean([1.0, float("nan"), 5.0], 0)[0] == 3
    low, high = _mean([1.0, float("nan"), 5.0], 0)[1]
    assert (low, high) == (1, 5)
    assert all(bound != bound for bound in _mean([4.0], 0)[1]), "one number has no interval: NaN"


def test_a_screen_agrees_on_what_was_measured() -> None:
    nan = float("nan")
    estimate, exact = effect_of([[1.0, 2.0, 3.0, 9.0]] * 2, estimated=True), effect_of([[2.0, 4.0, 2.0, nan]] * 2)
    masks = [{"resid_pre": torch.tensor(row)} for row in ([True, True, False, False], [False, False, True, False])]
    found = ScreenedEffects(mw.Effects({"resid_pre": estimate}), mw.Effects({"resid_pre": exact}), *masks)
    assert found.agreement().relative_error == pytest.approx(0.5)
    assert found.agreement("control").relative_error == pytest.approx(0.5)
    assert (found.agreement().n_places, found.agreement("control").n_places) == (2, 1)
    assert (found.missed().threshold, found.missed().n_above, found.missed().n_unmeasured) == (2, 0, 1)
    assert (found.missed(1.0).n_above, found.missed(1.0).n_control) == (1, 1)
    assert found.strongest(1) == [("resid_pre.1", 4.0, 2.0)]
    with pytest.raises(InputError, match="'verified' or of 'control'"):
        found.agreement("top")


def edges(seed: int, n: int = 2) -> EdgeScores:
    values = torch.randn(n, *SPACE.mask.shape, generator=torch.Generator().manual_seed(seed)) * SPACE.mask
    return EdgeScores(
        SPACE, values, "denoise", "gradient", 1, "logit_difference", BASELINE, {"model": {"weights_sha256": "a"}}
    )


def streamed(scores: EdgeScores) -> EdgeScores:
    """The same, of which only moments are left."""
    rows = scores.require_pairs()[:, SPACE.mask]
    kept = Streamed(len(rows), rows.mean(dim=0), rows.var(dim=0), rows.new_empty(0, rows.shape[1]))
    return EdgeScores(
        SPACE, None, "denoise", "gradient", 1, "logit_difference", BASELINE, scores.provenance, streamed=kept
    )


def test_edges_nodes_and_positions_are_listed_by_size() -> None:
    scores = edges(0, 5)
    rows = scores.require_pairs()
    expected = ((rows - rows.mean(dim=0)).pow(2).sum(dim=0) / 4).sqrt() / 5**0.5
    torch.testing.assert_close(scores.standard_error(), expected)
    torch.testing.assert_close(streamed(scores).standard_error(), expected)
    torch.testing.assert_close(streamed(scores).values, scores.values)
    nodes = NodeScores(SPACE, torch.tensor([[1.0, -4.0, 2.0, 2.0]] * 2), "eap", "m", BASELINE, {})
    assert nodes.top(3) == [("a0.h0", -4.0), ("a0.h1", 2.0), ("m0", 2.0)]
    packed = torch.zeros(2, SPACE.n_edges)
    packed[0, 3], packed[1, 1], packed[1, 0] = 2.0, -3.0, 2.0
    held = Streamed(2, packed.flatten(), packed.flatten(), packed.new_empty(0, packed.numel()))
    placed = PositionScores(SPACE, ("A", "B"), held, "denoise", "gradient", "m", BASELINE, {})
    names = [SPACE.edge_name(i, j) for i, j in SPACE.mask.nonzero().tolist()]
    assert placed.top(3) == [("B", names[1], -3.0), ("A", names[3], 2.0), ("B", names[0], 2.0)]
    parts = QueryKeyAttribution("a0.h0", 1, 0, ("x", "y"), ("input", "bias"), torch.tensor([[1.0, 2.0], [-3.0, 2.0]]),
                                2.5, {})  # fmt: skip
    assert parts.top(3) == [("bias", "input", -3.0), ("input", "bias", 2.0), ("bias", "bias", 2.0)]
    assert parts.remainder == 0.5
    assert (parts.by_query.tolist(), parts.by_key.tolist()) == ([3, -1], [-2, 4])


def test_scores_know_their_task_and_how_stable_they_are() -> None:
    scores = replace(edges(0), provenance={"task": {"name": "ioi"}})
    scores.require_task("ioi", "logit_difference")
    replace(scores, provenance={}).require_task("any", "logit_difference")  # old scores know no task
    for name, metric in (("capitals", "logit_difference"), ("ioi", "probability")):
        with pytest.raises(InputError, match="belong to task 'ioi'"):
            scores.require_task(name, metric)
    with pytest.raises(InputError, match="no resamples"):
        streamed(scores).resampled_means(5, 0)
    row = -torch.arange(1.0, SPACE.n_edges + 1)  # the same in every pair, and negative: the last are the strongest
    values = torch.zeros(4, *SPACE.mask.shape)
    values[:, SPACE.mask] = row
    steady = replace(scores, per_example=values)
    assert steady.stability(3, n_resamples=5).jaccards == (1,) * 5
    halves = replace(scores, per_example=values * torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None, None] + values / 2,
                     templates=("a", "a", "b", "b"))  # fmt: skip
    assert halves.stability(3, over="templates").jaccards == (1, 1)


def test_the_area_between_random_circuits_and_the_model() -> None:
    """Faithfulness of one random circuit 0.5 at an edge fraction of 0, 2 at 1: |1 - it| is 0.5 and 1."""
    size, pair = torch.zeros(2, 1), torch.ones(1)
    curve = FaithfulnessCurve((0.0, 1.0), (0, 5), (0, 5), size, size, torch.tensor([[[0.5], [2.0]]]), 0 * pair, pair,
                              "corrupt", "m", {})  # fmt: skip
    assert curve.random_cmd == pytest.approx(0.75)
    assert curve.random_cpr == pytest.approx(1.25)


def test_an_ensemble_weighs_each_score_by_its_size() -> None:
    one, two = edges(0), edges(1)
    sizes = [s.values[SPACE.mask].pow(2).mean().sqrt() for s in (one, two)]
    expected = (one.values / sizes[0] + two.values / sizes[1]) / 2
    torch.testing.assert_close(ensemble([one, two]).values, expected)
    assert ensemble([one, two]).per_example is not None
    mixed = ensemble([one, streamed(two)])
    torch.testing.assert_close(mixed.values, expected)
    assert mixed.per_example is None
    assert ensemble([one, two], "rank").per_example is None
    with pytest.raises(InputError, match="'median'"):
        inspect.unwrap(ensemble)([one, two], "median")


def test_verdicts_on_circuits() -> None:
    circuit = Circuit(SPACE, SPACE.mask)
    per_pair = [torch.tensor(row) for row in ([2.0, 4.0], [1.0, 1.0], [5.0, 7.0])]
    mine, empty, model = per_pair
    found = CircuitEvaluation(circuit, mine, empty, model, (), 1.0, 1.0, "corrupt", "m", {})
    assert (found.metric, found.empty, found.faithfulness) == (3, 1, pytest.approx(0.4))
    few = Circuit(SPACE, SPACE.mask & (torch.arange(SPACE.n_readers) < 2))
    assert _why_not(few, N_LEAST) == ""
    assert "no power" in _why_not(few, N_LEAST - 1)
    assert "whole model" in _why_not(circuit, N_LEAST)
    assert "empty" in _why_not(Circuit(SPACE, SPACE.mask & False), N_LEAST)

    def rival(name: str, value: float, ablation: str = "corrupt") -> RivalRow:
        return RivalRow(name, ablation, "all", 8, value, value, value)

    values: dict[str, float] = {"given": 0.95, "near": 0.9, "beyond": 1.06, "edge": 0.84}
    rows = (*(rival(name, value) for name, value in values.items()), rival("edge", 0.95, "mean"))
    overlaps: dict[str, float] = dict.fromkeys(["near", "beyond", "edge"], 0.5)
    rivals = Rivals(dict.fromkeys(values, circuit), overlaps, overlaps, rows, {})
    assert rivals.equal() == ("near", "beyond")
    assert rivals.equal(0.2) == ("near", "beyond", "edge")
    assert rivals.faithfulness("edge", "mean") == 0.95
    for names, nodes in (
        (["input->a0.h0<q>", "input->a0.h0<k>"], ("input", "a0.h0")),  # h1 shares the keys, and is not in it otherwise
        (["input->a0.h0<k>", "m0->logits"], ("input", "a0.h0", "a0.h1", "m0", "logits")),
    ):
        mask = torch.zeros_like(SPACE.mask)
        for name in names:
            mask[SPACE.edge_index(name)] = True
        assert Circuit(SPACE, mask).nodes == nodes
    for verdict, faithfulness, hides in (("several", 0.95, True), ("several", 0.8, False), ("one", 1.0, False)):
        row = MechanismRow("mixture", "all", 8, 3, faithfulness, 0.0, 1.0)
        assert Mechanisms(verdict, "", {}, (row,), torch.zeros(2).long(), (), {}, {}).hides == hides


def test_clusters_name_tokens_and_write_their_neurons() -> None:
    found = ValueClusters(((((0, 3)), (1, 2), (0, 4)), ((1, 5),)), (("a", "b"), ("c", "a")), ((7, 8), (9, 7)),
                          (0.5, 0.6), 0.1, 16)  # fmt: skip
    assert [found.find(token) for token in (7, 8, 9)] == [0, 0, 1]
    with pytest.raises(InputError, match="no cluster"):
        found.find(6)
    writes = found.write(0, 2.5)
    assert [write.site for write in writes] == [Site("mlp_post", 0), Site("mlp_post", 1)]
    put: list[Any] = [write.replacement for write in writes]
    assert [one.index for one in put] == [(3, 4), (2,)]
    assert put[0].inner.value == 2.5
    for wrong in (-1, 2):
        with pytest.raises(InputError, match="clusters are 0 to 1"):
            found.write(wrong, 0.0)


def test_experts_by_lot_are_as_many_others_of_each_layer() -> None:
    chosen, generator = [(0, 1), (2, 0), (0, 3), (3, 0), (3, 1), (3, 2)], torch.Generator().manual_seed(0)
    drawn = [_by_lot(chosen, 4, generator) for _ in range(20)]
    for lot in drawn:
        assert not set(lot) & set(chosen)
        assert [layer for layer, _ in lot] == [0, 0, 2, 3], "layer 3 has one other expert"
    assert {expert for lot in drawn for layer, expert in lot if layer == 2} == {1, 2, 3}
    table, changes = torch.tensor([[0.5, 0.25]]), (ExpertChange("suppress", ("m0.e0",), -2.0, (1.0, 2.0, -1.5)),)
    found = ExpertContrast(table, table.flip(1), table, changes, 1.0, "m")
    assert found.contrast.tolist() == [[0.25, -0.25]]
    assert changes[0].share_beaten == pytest.approx(2 / 3)


def test_the_largest_entries_of_all_batches_are_one_per_place() -> None:
    """Prompts are counted through: prompt 1 of the second batch, after three of the first, is prompt 4."""

    def part(n: int, *values: tuple[int, int, float]) -> _Part:
        rows = [LargeActivation(0, prompt, position, 7, value, 2.0) for prompt, position, value in values]
        nothing = torch.zeros(1)
        return _Part(n, nothing, nothing, nothing, nothing, nothing, [rows])

    parts = [part(3, (0, 2, 5.0), (2, 0, -9.0)), part(2, (1, 2, -6.0), (0, 1, 1.0)), part(1, (0, 3, 2.0))]
    found = [(one.prompt, one.position, one.value) for one in _largest(parts, 0, 3)]
    assert found == [(2, 0, -9.0), (4, 2, -6.0), (5, 3, 2.0)]


def test_rules_leave_their_stack_in_any_order_and_twice() -> None:
    one, two, key = object(), object(), -1
    _stacks[key] = [one, two]
    for _ in range(2):
        _leave(key, one)
        assert _stacks[key] == [two]
    _leave(key, two)
    assert key not in _stacks
    _leave(key, two)


def test_shares_of_nothing_are_nothing() -> None:
    assert _ratio(torch.tensor([2.0, 3.0, 0.0]), torch.tensor([0.0, 1.0, 4.0])).tolist() == [0, 3, 0]


def test_a_router_is_read_where_choice_and_weights_are_those_of_its_logits() -> None:
    gate, logits = SimpleNamespace(top_k=2), torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    weights, index = choose_experts(gate, logits)
    assert index.tolist() == [[1, 2], [0, 2]]
    assert weights[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    check_router(gate, logits, weights, index)
    for wrong in ((2 * weights, index), (weights, index.flip(1))):
        with pytest.raises(UnsupportedModelError, match="softmax and top k"):
            check_router(gate, logits, *wrong)


def test_tokens_spans_and_answers_of_tasks() -> None:
    plain = torch.tensor([[1, 2]])
    marked = torch.tensor([[1, (5 << SHIFT) | 2]])
    assert (is_marked(plain), is_marked(marked), is_marked(plain[:, :0])) == (False, True, False)
    assert (plain_tokens(marked).tolist(), marks_of(marked).tolist()) == ([[1, 2]], [[0, 5]])
    given = {"A": [0]}
    assert _following(given, 3, 2, end_is_last=True) == {"A": [0], "END": [4], "ANSWER": [3]}
    assert _following(given, 3, 2, end_is_last=False) == {"A": [0], "END": [2], "ANSWER": [3, 4]}
    assert _following({"END": [2]}, 3, 0, end_is_last=True) == {"END": [2]}
    mw.Task.from_tokens([[1], [2]], [[3], [4]], [5, 6], [6, 5])
    with pytest.raises(InputError, match="answer"):
        mw.Task.from_tokens([[1], [2]], [[3], [4]], [5, 6], [7, 6])  # one pair of two
    uneven: Any = {"metric": "sequence_difference", "spans": [{"A": [0]}]}
    asked = [[1, 2]], [[1, 2, 3]], [[[4, 5]]], [[[6, 7]]]
    assert len(mw.Task.from_tokens(*asked, **uneven, corrupt_spans=[{"A": [0]}])) == 2  # one per answer
    with pytest.raises(InputError, match="same number of tokens"):
        mw.Task.from_tokens(*asked, **uneven)
    with pytest.raises(InputError, match="object, name to text"):
        _named([1], "spans", 3, "some text")
    task = mw.Task.from_tokens([[1]] * 4, [[2]] * 4, [5] * 4, [6] * 4)
    for splits, n in ((("train", "size", "test", "size"), 2), (("train", "test", "train", "train"), 3)):
        assert len(replace(task, splits=splits).sizing) == n
    one_bad = Metric("one bad", lambda logits, pairs: torch.tensor([1.0, math.nan, 1.0, 1.0]))
    with pytest.raises(MetricError, match="for pair 1"):
        replace(task, metric=one_bad).measure(torch.zeros(4, 1, 9))


def test_what_has_a_name_is_found_and_the_rest_refused(tmp_path: Path) -> None:
    assert find_task("ioi") is mw.tasks.ioi
    with pytest.raises(UnknownNameError, match="ioi"):
        find_task("ioo")
    kept = Kept(tmp_path, "a b/c", "k")
    assert kept.file == tmp_path / "a_b_c.json"
    kept.write({"x": 0.1})
    assert kept.read() == {"x": 0.1}
    assert Kept(None, "a", "k").read() is None
    for layers, heads, groups in ((0, 2, 1), (1, 0, 1), (1, 2, 0), (1, 3, 2)):
        with pytest.raises(InputError, match="whole groups"):
            EdgeSpace(layers, heads, groups)
    anatomy = SimpleNamespace(n_layers=3)
    sets = inspect.unwrap(_neuron_sets)
    assert sets(anatomy, 16, {0: [0, (15, 0)], 2: [5]}) == ((0, (0,)), (0, (15, 0)), (2, (5,)))
    for wrong in ({3: [0]}, {-1: [0]}, {0: [16]}, {0: [-1]}, {0: [()]}, {}):
        with pytest.raises(InputError):
            sets(anatomy, 16, wrong)
    bad = torch.full((4,), torch.nan)
    with pytest.raises(InputError, match="finite vector"):
        mw.AblationSpec(["resid_pre.1@x"], "zero", directions={"x": bad})
