"""Pairs that differ in everything that pairs can differ in: a row's numbers are those of the row alone, however pairs
are cut into blocks; grouped heads are repeated heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation import AblationSpec, ablate, fit_ablation, study_copy_suppression, sweep_ablations
from mechwork.circuits import find_acdc
from mechwork.lenses import attribution
from mechwork.models.load import load_model
from mechwork.patching import execute, patch
from mechwork.patching.path import patch_paths
from mechwork.runs.record import record_run
from mechwork.tasks.task import Task
from tests.families import alone, build_hard_task, build_model, build_module, build_task, rounding

KINDS = ["resid_pre", "z", "mlp_out"]
HARD = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "uneven"])


def rows_of(effects: Any, row: int) -> dict[tuple[str, ...], float]:
    """One pair's effects by site kind and the labels of the place, for tasks whose places differ."""
    found = {}
    for kind, effect in effects.items():
        for index in torch.cartesian_prod(*(torch.arange(n) for n in effect.values.shape)).tolist():
            index = index if isinstance(index, list) else [index]
            names = [str(effect.labels[axis][i]) if axis in effect.labels else str(i) for axis, i in
                     zip(effect.axes, index, strict=True)]  # fmt: skip
            value = float(effect.per_example[(row, *index)])
            if value == value:
                found[kind, *names] = value
    return found


def assert_same_rows(whole: Any, single: Any, row: int, tolerance: float) -> None:
    """Everything that the pair alone has; it may lack spans that only other pairs have, where nothing changes."""
    mine, theirs = rows_of(whole, row), rows_of(single, 0)
    assert theirs
    assert max(abs(value) for value in theirs.values()) > 1e-3
    for place, value in theirs.items():
        assert mine[place] == pytest.approx(value, abs=tolerance), place
    for place in mine.keys() - theirs.keys():
        assert mine[place] == 0, place


@HARD
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_patched_row_is_the_row_alone_in_blocks_of_any_size(family: str, direction: str, aligned: bool) -> None:
    model, task = build_model(family), build_hard_task(n=4, aligned=aligned)
    whole = patch(model, task, KINDS, direction=direction, positions="spans")
    with pytest.raises(mw.errors.InputError) as refusal:
        patch(model, task, KINDS, direction=direction, positions="spans", memory_budget=1)
    least = int(str(refusal.value).split("one pair, ")[1].split(" bytes")[0].replace(",", ""))
    small = patch(model, task, KINDS, direction=direction, positions="spans", memory_budget=2 * least)
    assert small.provenance["sweep"]["pairs_per_block"] in range(1, len(task)), "the budget makes no blocks"
    clean, corrupt = (
        torch.stack(
            [task.metric(_padded(model, side[row, : int(n[row])], one.pairs), one.pairs)[0] for row, one in rows]
        )
        for side, n, rows in _sides(task)
    )
    for found in (whole, small):
        torch.testing.assert_close(found.baseline.clean_per_example, clean.detach(), rtol=0, atol=rounding(model))
        torch.testing.assert_close(found.baseline.corrupt_per_example, corrupt.detach(), rtol=0, atol=rounding(model))
        for row in (2, len(task) - 1):
            single = patch(model, alone(task, row), KINDS, direction=direction, positions="spans")
            assert_same_rows(found, single, row, 10 * rounding(model))


def _sides(task: Task) -> list[Any]:
    """Tokens, lengths and (row, the pair with that prompt as its clean one) of both sides."""
    pairs = task.pairs
    rows = [(row, alone(task, row)) for row in range(len(task))]
    others = [(row, Task("", one.pairs.corrupt_as_host()[[0]], one.metric)) for row, one in rows]
    return [(pairs.clean_tokens, pairs.lengths, rows), (pairs.corrupt_tokens, pairs.corrupt_lengths, others)]


def _padded(model: Any, tokens: torch.Tensor, pairs: Any) -> torch.Tensor:
    """The logits of one prompt run alone, in the pair's width; nothing can be read behind them."""
    logits = model(tokens[None])
    return torch.nn.functional.pad(logits, (0, 0, 0, pairs.clean_tokens.shape[1] - len(tokens)), value=torch.nan)


OPERATIONS: dict[str, Callable[[Any, Task], torch.Tensor]] = {
    "ablate zero": lambda m, t: ablate(m, t, AblationSpec(["a1.h2", "m0"], "zero")).per_example,
    "ablate zero at S": lambda m, t: ablate(m, t, AblationSpec(["a1.h2", "m0"], "zero", positions=["S"])).per_example,
    "ablate corrupt": lambda m, t: ablate(m, t, AblationSpec(["a0.h1", "m1"], "corrupt")).per_example,
    "ablate corrupt at V": lambda m, t: ablate(m, t, AblationSpec(["m0"], "corrupt", positions=["V"])).per_example,
    "attribute_logits": lambda m, t: mw.attribute_logits(m, t).total,
    "attribute_logits at S": lambda m, t: mw.attribute_logits(m, t, position="S").total,
    "logits": lambda m, t: t.pairs.final(record_run(m, t.pairs, []).logits)[:, 7],
}


@HARD
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_row_is_the_row_alone(family: str, name: str, aligned: bool) -> None:
    model, task, run = build_model(family), build_hard_task(aligned=aligned), OPERATIONS[name]
    whole = run(model, task)
    assert float(whole.abs().min()) > 0
    single = torch.cat([run(model, alone(task, row)) for row in range(len(task))])
    torch.testing.assert_close(whole, single, rtol=0, atol=100 * rounding(model))


@pytest.mark.parametrize("kind", ["mean", "mean_by_position", "mean_by_span"])
def test_a_fitted_ablation_does_the_same_to_a_row_alone(kind: str) -> None:
    model, task = build_model("llama"), build_hard_task(n=45)  # a mean is over eight prompts at least
    fitted = fit_ablation(model, AblationSpec(["a1.h2", "m0", "resid_pre.1@x"], kind, directions={"x": _unit()}), task)
    whole = ablate(model, task, fitted).per_example
    single = torch.cat([ablate(model, alone(task, row), fitted).per_example for row in range(6)])
    torch.testing.assert_close(whole[:6], single, rtol=0, atol=1e-4)
    assert float(whole.abs().min()) > 1e-6


def _unit() -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("kind", ["mean_by_position", "resample", "corrupt", "noise"])
def test_swept_ablations_in_blocks_are_the_ablations(kind: str) -> None:
    """What is put in depends on the rows of the block."""
    model = build_model("gpt2")
    task = build_hard_task(n=45 if kind == "mean_by_position" else 10)
    with pytest.raises(mw.errors.InputError) as refusal:
        sweep_ablations(model, task, ["heads", "mlps"], kind=kind, memory_budget=1)
    least = int(str(refusal.value).split("one pair, ")[1].split(" bytes")[0].replace(",", ""))
    small = sweep_ablations(model, task, ["heads", "mlps"], kind=kind, memory_budget=3 * least)
    assert small.provenance["sweep"]["pairs_per_block"] in range(1, len(task))
    whole = AblationSpec([f"a{i}.h{j}" for i in range(3) for j in range(4)] + ["m0", "m1", "m2"], kind)
    for text, found in (("a1.h2", small["z"].per_example[:, 1, 2]), ("m2", small["mlp_out"].per_example[:, 2])):
        one = ablate(model, task, whole.only(text)).per_example
        torch.testing.assert_close(found, one, rtol=0, atol=1e-8)
        assert float(one.abs().max()) > 1e-4


@HARD
def test_the_total_is_the_tasks_metric_and_spans_are_read_at_their_last_token(aligned: bool) -> None:
    """Several answers count by their mean; a span of several tokens at its last one."""
    model, task = build_model("gpt2"), build_hard_task(aligned=aligned)
    pairs = task.pairs
    with torch.no_grad():
        logits = model(pairs.clean_tokens)
    expected = task.metric(logits, pairs)
    torch.testing.assert_close(mw.attribute_logits(model, task).total, expected.double(), rtol=0, atol=1e-9)
    found = mw.attribute_logits(model, task, position="S").total
    for row in range(len(task)):
        at = int(pairs.spans["S"][row].nonzero().max())
        right = [float(logits[row, at, a]) for a in pairs.correct[row].tolist() if a >= 0]
        wrong = [float(logits[row, at, a]) for a in pairs.incorrect[row].tolist() if a >= 0]
        assert float(found[row]) == pytest.approx(sum(right) / len(right) - sum(wrong) / len(wrong), abs=1e-9)


def test_in_how_many_chunks_cells_run_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell is in exactly one chunk, also where chunks end before the memory does."""
    model, task, plain, cut = build_model("gpt2"), build_task(n=3), execute._chunks, []

    def chunks(*given: Any) -> Any:
        cut.append([chunk.cells for chunk in plain(*given)])
        assert sorted(map(id, itertools.chain(*cut[-1]))) == sorted(id(cell) for _, cell in given[2])
        return plain(*given)

    monkeypatch.setattr(execute, "_chunks", chunks)
    whole = patch(model, task, KINDS)
    monkeypatch.setattr(execute, "LEAST_TOKENS", {"cpu": 1, "cuda": 1})
    small = patch(model, task, KINDS)
    assert len(cut[1]) > len(cut[0]) > 1
    for kind in KINDS:
        torch.testing.assert_close(small[kind].per_example, whole[kind].per_example, rtol=0, atol=1e-9)


def test_paths_logits_and_self_repair_do_not_depend_on_how_pairs_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechwork.ablation import repair, run

    model, task = build_model("gpt2"), build_hard_task(n=10)  # two of every length
    names = ["a0.h1", "m0", "input"], ["a1.h0<q>", "a2.h1<v>", "logits"]
    whole = {
        "paths": patch_paths(model, task, *names)["path"].per_example,
        "logits": mw.attribute_logits(model, task).per_example,
        "repair": repair.study_self_repair(model, task, ["a0.h1", "a1.h2"], kind="resample").gains,
        "ablate": ablate(model, task, AblationSpec(["a1.h2"], "resample")).per_example,
    }
    monkeypatch.setattr(attribution, "rows_that_fit", lambda *_, **__: 2)
    for module in (repair, run):
        monkeypatch.setattr(module, "prompts_that_fit", lambda *_, **__: 2)
    with pytest.raises(mw.errors.InputError) as refusal:
        patch_paths(model, task, *names, memory_budget=1)
    least = int(str(refusal.value).split("one pair, ")[1].split(" bytes")[0].replace(",", ""))
    cut = {
        "paths": patch_paths(model, task, *names, memory_budget=2 * least)["path"].per_example,
        "logits": mw.attribute_logits(model, task).per_example,
        "repair": repair.study_self_repair(model, task, ["a0.h1", "a1.h2"], kind="resample").gains,
        "ablate": ablate(model, task, AblationSpec(["a1.h2"], "resample")).per_example,
    }
    for name, values in whole.items():
        torch.testing.assert_close(cut[name], values, rtol=0, atol=1e-8)
        assert float(values.abs().max()) > 1e-3


# ---- grouped heads ---------------------------------------------------------------------------------------------------


def grouped_and_repeated() -> tuple[Any, Any]:
    """A model with two key/value heads for four query heads, and the one in which each stands twice."""
    import copy

    import transformers as hf

    module: Any = build_module("llama")
    config = copy.deepcopy(module.config)
    config.num_key_value_heads = 4
    weights = dict(module.state_dict())
    for name in list(weights):
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    other = hf.LlamaForCausalLM(config).eval()
    other.load_state_dict(weights)
    return load_model(module, dtype=torch.float64), load_model(other, dtype=torch.float64)


def test_grouped_heads_are_repeated_heads() -> None:
    """Every number about query heads is that of the model whose key/value heads stand once per query head."""
    one, two = grouped_and_repeated()
    task = build_hard_task(n=8)
    for kind in ("z", "q"):
        for run in (patch, mw.attribute):
            found, expected = (run(m, task, [kind])[kind].per_example for m in (one, two))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            assert float(expected.abs().max()) > 1e-3
    names = [f"a{layer}.h{head}" for layer in (0, 2) for head in range(4)]
    rows = [study_copy_suppression(m, task, names, tokens=torch.arange(40)).rows for m in (one, two)]
    for a, b in zip(*rows, strict=True):
        assert a.head == b.head
        for field in ("direct_effect", "ov_percentile", "ov_among_lowest", "qk_percentile", "share_explained"):
            assert getattr(a, field) == pytest.approx(getattr(b, field), abs=1e-4), (a.head, field)
    heads = [mw.attribute_logits(m, task, sources=True).sources for m in (one, two)]
    torch.testing.assert_close(*heads, rtol=0, atol=1e-5)
    grouped, repeated = (patch(m, task, ["v"])["v"].per_example for m in (one, two))
    assert grouped.shape[-1] == 2
    assert repeated.shape[-1] == 4
    edges = [mw.score_edges(m, task) for m in (one, two)]
    q = [[e.values[:, i] for i, name in enumerate(e.space.readers) if name.endswith("<q>")] for e in edges]
    for a, b in zip(*q, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# ---- what refuses ----------------------------------------------------------------------------------------------------


def test_what_needs_equal_lengths_refuses_pairs_whose_prompts_differ() -> None:
    model, task = build_model("gpt2"), build_hard_task(aligned=False)
    for call in (
        lambda: find_acdc(model, task, 0.5),
        lambda: patch(model, task, ["pattern"]),
    ):
        with pytest.raises(mw.errors.InputError, match="length"):
            call()


def test_a_corrupt_prompt_longer_than_every_clean_one_is_whole() -> None:
    task = build_hard_task(aligned=False)
    pairs = task.pairs
    assert int(pairs.corrupt_lengths.max()) > int(pairs.lengths.max()), "the fixture has no longer corrupt prompt"
    assert pairs.clean_tokens.shape == pairs.corrupt_tokens.shape
    assert pairs.corrupt_tokens.shape[1] == int(pairs.corrupt_lengths.max())
    long = [5, 6, 7, 8, 9]
    made = Task.from_tokens([[1, 2]], [long], [3], [4], spans=[{"X": [0]}], corrupt_spans=[{"X": [0]}])
    assert made.pairs.prompt(0, corrupt=True) == long
    assert made.pairs[[0]].prompt(0, corrupt=True) == long
