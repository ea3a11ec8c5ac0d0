"""The sweep engine: every trick, site and direction against one whole forward per cell and against TransformerLens."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformer_lens import patching as tl_patching

from mechwork.errors import InputError, MetricError
from mechwork.models.anatomy import read_anatomy
from mechwork.models.load import load_model
from mechwork.patching import Sweep, Tricks, patch
from mechwork.patching.exact import plan_sweep
from mechwork.patching.execute import can_step
from mechwork.patching.path import patch_paths
from mechwork.sites import SQUARE_KINDS
from mechwork.tasks.metrics import Metric
from mechwork.tasks.task import Task
from tests.families import (
    CHOSEN,
    UNLIKE,
    borrowed,
    build_model,
    build_module,
    build_task,
    crossed,
    kv_head,
    rounding,
)
from tests.reference.sweep import measure_cell

NONE = Tricks(suffix=False, readout=False, unchanged=False)
HEADS = ["z", "q", "k", "v", "pattern", "attn_scores", "result"]
THREE = ("gpt2", "llama", "gemma2")


def heads_of(model: Any) -> list[str]:
    """Per-head kinds; where attention runs inside the wrapped module its scores and pattern cannot be written."""
    return HEADS if read_anatomy(model).open_attention else [kind for kind in HEADS if kind not in SQUARE_KINDS]


def fitting(model: Any, tricks: Tricks) -> Tricks:
    """The tricks, or whole forwards for a model that cannot be stepped through (OPT)."""
    return tricks if can_step(model, build_task(1)) else NONE


def kinds_of(model: Any) -> list[str]:
    kinds = ["resid_pre", "resid_post", "attn_out", "mlp_out", "embed", *heads_of(model)]
    kinds += [] if model.cfg.parallel_attn_mlp else ["resid_mid"]
    return kinds if model.cfg.num_experts else [*kinds, "mlp_post"]


WITHOUT = [(Tricks(readout=False), "denoise"), (Tricks(suffix=False), "denoise"), (NONE, "noise")]


@pytest.mark.parametrize(
    ("family", "tricks", "direction"),
    [(family, Tricks(), direction) for family in CHOSEN for direction in ("denoise", "noise")]
    + [(family, *case) for family in THREE if family in CHOSEN for case in WITHOUT],
    ids=str,
)
def test_every_site_equals_one_forward_per_cell(
    family_model64: Any, family: str, tiny_task: Task, tricks: Tricks, direction: str
) -> None:
    """By position; a few cells of each kind, the ends among them. Fewer tricks on three families, all of them on every
    one.
    """
    model = family_model64
    kinds = kinds_of(model)
    with borrowed(model):
        effects = patch(model, tiny_task, kinds, direction=direction, positions="each", tricks=fitting(model, tricks))
    for kind in kinds:
        effect = effects[kind]
        assert float(effect.values.abs().max()) > 1e-3
        for layer, pos, head in ((1, 0, 0), (1, 6, 1), (2, 9, 0), *([(0, 4, 1), (2, 3, 1)] if family in THREE else [])):
            place: dict[str, Any] = {"layer": layer, "pos": pos, "head": kv_head(model, head) if kind in "kv" else head}
            expected = measure_cell(model, tiny_task, kind, direction, **place)
            index = tuple(place[axis] for axis in effect.axes)
            torch.testing.assert_close(
                effect.per_example[(slice(None), *index)], expected, rtol=0, atol=rounding(model)
            )


@pytest.mark.parametrize("tricks", [Tricks(), NONE], ids=str)
def test_all_positions_and_neurons_equal_one_forward_per_cell(
    family_model64: Any, tiny_task: Task, tricks: Tricks
) -> None:
    model = family_model64
    kinds, tricks = heads_of(model), fitting(model, tricks)
    effects = patch(model, tiny_task, kinds, tricks=tricks)
    for kind in kinds:
        assert effects[kind].axes == ("layer", "head")
        for layer, head in ((0, kv_head(model, 1) if kind in "kv" else 1), (2, 0)):
            expected = measure_cell(model, tiny_task, kind, "denoise", layer=layer, head=head)
            torch.testing.assert_close(
                effects[kind].per_example[:, layer, head], expected, rtol=0, atol=rounding(model)
            )
    if model.cfg.num_experts:
        return
    effect = patch(model, tiny_task, ["mlp_post"], neurons={1: [3, (4, 5)], 2: [7]}, tricks=tricks)["mlp_post"]
    assert effect.axes == ("neuron",)
    assert effect.labels["neuron"] == ("m1.n3", "m1.n4+5", "m2.n7")
    for i, (layer, neurons) in enumerate([(1, [3]), (1, [4, 5]), (2, [7])]):
        expected = measure_cell(model, tiny_task, "mlp_post", "denoise", layer=layer, neurons=neurons)
        assert float(expected.abs().max()) > 1e-6 or model.cfg.architecture == "OPTForCausalLM"  # relu: dead neurons
        torch.testing.assert_close(effect.per_example[:, i], expected, rtol=0, atol=rounding(model))
    by_pos = patch(model, tiny_task, ["mlp_post"], neurons={1: [3]}, positions="each", tricks=tricks)["mlp_post"]
    assert by_pos.axes == ("neuron", "pos")


def model_of_order_one(family: str) -> Any:
    """Float32, every site matters, and logits of order one, so that an absolute 1e-6 means something."""
    module = build_module(family)
    with torch.no_grad():
        module.get_output_embeddings().weight.mul_(0.1)
    return load_model(module)


BY_POSITION = {
    "resid_pre": tl_patching.get_act_patch_resid_pre,
    "attn_out": tl_patching.get_act_patch_attn_out,
    "mlp_out": tl_patching.get_act_patch_mlp_out,
}
ALL_POSITIONS = {
    "z": tl_patching.get_act_patch_attn_head_out_all_pos,
    "q": tl_patching.get_act_patch_attn_head_q_all_pos,
    "pattern": tl_patching.get_act_patch_attn_head_pattern_all_pos,
}


@pytest.mark.filterwarnings("ignore")
def test_equals_transformer_lens(family: str) -> None:
    """Bit for bit without suffix and readout, to 1e-6 with them, in float32."""
    model, task = model_of_order_one(family), build_task()
    theirs = {**BY_POSITION, **ALL_POSITIONS}
    if not read_anatomy(model).open_attention:  # theirs changes nothing there, and says nothing
        del theirs["pattern"]
    bitwise = patch(model, task, list(theirs), tricks=Tricks(suffix=False, readout=False))
    fast = patch(model, task, list(theirs))
    with torch.no_grad():
        cache = model.run_with_cache(task.pairs.clean_tokens)[1]
        scale = float(model(task.pairs.corrupt_tokens).abs().max())
    for kind, theirs_of in theirs.items():
        found: Any = theirs_of(
            model, task.pairs.corrupt_tokens, cache, lambda logits: task.metric(logits, task.pairs), reduce="none"
        )
        effect = found.values.movedim(-1, 0) - bitwise.baseline.corrupt_per_example[:, None, None]
        assert float(effect.abs().max()) > 1e-3
        assert torch.equal(bitwise[kind].per_example, effect), kind
        torch.testing.assert_close(fast[kind].per_example, effect, rtol=0, atol=1e-6 * max(1.0, scale))


@pytest.mark.parametrize(("family", "tricks"), crossed([Tricks(), NONE], [Tricks()]), ids=str)
def test_spans_of_prompts_of_different_length(family_model64: Any, family: str, tricks: Tricks) -> None:
    """Every row's effects are those of the row alone, whatever the others' lengths. Both directions in families that
    differ most.
    """
    model = family_model64
    directions = ("denoise", "noise") if family in UNLIKE and tricks == Tricks() else ("denoise",)
    tricks = fitting(model, tricks)
    clean, corrupt = [[5, 6, 7, 8, 9, 11], [5, 6, 7]], [[5, 6, 70, 8, 9, 11], [5, 60, 7]]
    spans = [{"X": [2], "Y": [4]}, {"X": [1]}]
    task = Task.from_tokens(clean, corrupt, [[1, 20], [2]], [[3], [4]], spans=spans)
    kinds = [kind for kind in kinds_of(model) if kind not in ("pattern", "attn_scores")]
    for direction in directions:
        effects = patch(model, task, kinds, positions="spans", tricks=tricks, direction=direction)
        for row in range(2):
            alone = Task.from_tokens(
                clean[row : row + 1],
                corrupt[row : row + 1],
                [[[1, 20]], [[2]]][row],
                [[3], [4]][row],
                spans=spans[row : row + 1],
            )
            single = patch(model, alone, kinds, positions="spans", tricks=NONE, direction=direction)
            for kind in kinds:
                names = effects[kind].labels["pos"]
                axis = effects[kind].axes.index("pos") + 1
                for i, name in enumerate(single[kind].labels["pos"]):
                    mine = effects[kind].per_example[row].select(axis - 1, names.index(name))
                    torch.testing.assert_close(
                        mine, single[kind].per_example[0].select(axis - 1, i), rtol=0, atol=rounding(model)
                    )


def test_metrics_of_all_kinds_at_once(family_model64: Any, tiny_task: Task) -> None:
    def everywhere(logits: torch.Tensor, pairs: Any) -> torch.Tensor:
        return logits.logsumexp(dim=-1).sum(dim=-1)

    model = family_model64
    names = ["logit_difference", "kl_divergence", "log_probability", everywhere]
    together = patch(model, tiny_task, ["resid_pre", "z"], metrics=names)
    assert together.metrics == ("logit_difference", "kl_divergence", "log_probability", "everywhere")
    for name, metric in zip(together.metrics, names, strict=True):
        alone = patch(model, tiny_task.with_metric(metric, model), ["resid_pre", "z"], tricks=NONE)
        for kind in alone:
            assert float(alone[kind].values.abs().max()) > 1e-9  # probabilities of extreme logits hardly move
            torch.testing.assert_close(
                together.under(name)[kind].per_example, alone[kind].per_example, rtol=0, atol=rounding(model)
            )
    frame = together.to_dataframe()
    assert set(frame["metric"]) == set(together.metrics)
    two = patch(model, tiny_task, ["resid_pre"], metrics=names[:3])
    torch.testing.assert_close(
        two.under("kl_divergence")["resid_pre"].per_example,
        together.under("kl_divergence")["resid_pre"].per_example,
        rtol=0,
        atol=rounding(model),
    )


def test_a_metric_that_reads_more_than_it_says_is_refused(tiny_gpt2: Any, tiny_task: Task) -> None:
    def probability(logits: torch.Tensor, pairs: Any) -> torch.Tensor:
        return pairs.final(logits).softmax(dim=-1)[:, 0]

    lying = Metric("lying", probability, reads_final=True, reads_answers=True)
    with pytest.raises(MetricError, match="finite"):
        patch(tiny_gpt2, tiny_task.with_metric(lying), ["resid_pre"])
    with pytest.raises(InputError, match="reads_final"):
        Metric("impossible", probability, reads_answers=True)


def test_unchanged_cells_do_not_run(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    """Positions before the first difference, and last-layer writes at positions nobody reads, are exactly zero."""
    first = int((tiny_task.pairs.clean_tokens != tiny_task.pairs.corrupt_tokens).any(dim=0).nonzero()[0])
    effects = patch(tiny_gpt2_64, tiny_task, ["resid_pre", "mlp_out"])
    assert not effects["resid_pre"].values[:, :first].any()
    assert not effects["mlp_out"].values[2, :-1].any()
    assert float(effects["mlp_out"].values[2, -1].abs()) > 1e-3
    everything = patch(tiny_gpt2_64, tiny_task, ["resid_pre", "mlp_out"], tricks=Tricks(unchanged=False))
    for kind in effects:
        torch.testing.assert_close(effects[kind].per_example, everything[kind].per_example, rtol=0, atol=1e-9)


def test_a_budget_changes_chunks_not_numbers(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    model = tiny_gpt2_64
    whole = patch(model, tiny_task, ["resid_pre", "z"], positions="each")
    with pytest.raises(InputError, match="memory_budget must hold") as refusal:
        patch(model, tiny_task, ["resid_pre", "z"], memory_budget=1000)
    least = int(str(refusal.value).split("one pair, ")[1].split(" bytes")[0].replace(",", ""))
    small = patch(model, tiny_task, ["resid_pre", "z"], positions="each", memory_budget=least)
    assert small.provenance["sweep"]["pairs_per_block"] == 1
    for kind in whole:
        torch.testing.assert_close(small[kind].per_example, whole[kind].per_example, rtol=0, atol=rounding(model))
    with pytest.raises(InputError, match="number of bytes"):
        patch(model, tiny_task, ["resid_pre"], memory_budget=-1)


def test_a_model_that_cannot_be_stepped_runs_whole_forwards(
    tiny_gpt2_64: Any, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechwork.runs.frame import Frame

    expected = patch(tiny_gpt2_64, tiny_task, ["z"])
    step = Frame.step
    monkeypatch.setattr(Frame, "step", lambda self, *args: 1.01 * step(self, *args))  # a residual that is scaled
    effects = patch(tiny_gpt2_64, tiny_task, ["z"])
    assert effects.provenance["sweep"]["tricks"] == {"suffix": False, "readout": False, "unchanged": True}
    torch.testing.assert_close(effects["z"].per_example, expected["z"].per_example, rtol=0, atol=1e-9)


def test_the_plan_is_data(tiny_gpt2: Any, tiny_task: Task) -> None:
    job = plan_sweep(tiny_gpt2, tiny_task, ["resid_pre", "z", "mlp_post"], neurons={0: [1]})
    sweep = job.sweep
    assert hash(sweep) == hash(plan_sweep(tiny_gpt2, tiny_task, ["resid_pre", "z", "mlp_post"], neurons={0: [1]}).sweep)
    assert json.loads(json.dumps(sweep.to_json()))["grids"][0]["kind"] == "resid_pre"
    assert len(sweep.cells) == 30 + 12 + 1
    assert isinstance(sweep, Sweep)
    assert replace(sweep, direction="noise").fingerprint() != sweep.fingerprint()
    with pytest.raises(InputError, match="axes of"):
        replace(sweep.grids[0], n_places=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": ["logits"]}, "cannot be patched"),
        ({"sites": ["z", "z"]}, "once"),
        ({"sites": ["z"], "neurons": {0: [1]}}, "add it to sites"),
        ({"sites": ["mlp_post"], "neurons": {0: [10_000]}}, "0 to 127"),
        ({"sites": ["mlp_post"], "neurons": {9: [1]}}, "0 to 2"),
        ({"sites": ["mlp_post"], "neurons": {}}, "got none"),
        ({"sites": ["z"], "metrics": []}, "is a list"),
        ({"sites": ["z"], "metrics": ["logit_difference", "logit_difference"]}, "different names"),
    ],
)
def test_bad_arguments(tiny_gpt2: Any, tiny_task: Task, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        patch(tiny_gpt2, tiny_task, **arguments)


def test_patterns_need_prompts_of_equal_length(tiny_gpt2: Any) -> None:
    task = Task.from_tokens(
        [[5, 6, 7, 8]], [[5, 6, 16, 7, 8]], [1], [2], spans=[{"A": [1]}], corrupt_spans=[{"A": [1, 2]}]
    )
    with pytest.raises(InputError, match="equal length"):
        patch(tiny_gpt2, task, ["pattern"])
    assert float(patch(tiny_gpt2, task, ["z"])["z"].values.abs().max()) > 0


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_cells_behind_the_end_of_a_shorter_prompt_do_nothing_to_it(tiny_gpt2_64: Any, direction: str) -> None:
    """The first column that changes lies behind the second prompt's end, which was read from another column once."""
    model = tiny_gpt2_64
    clean, corrupt = [[5, 6, 7, 8, 9, 11], [5, 6, 7]], [[5, 6, 7, 8, 90, 11], [5, 60, 7]]
    task = Task.from_tokens(clean, corrupt, [1, 2], [3, 4], spans=[{"Y": [4]}, {"X": [1]}])
    kinds = ["resid_pre", "z", "mlp_out"]
    fast, slow = (
        patch(model, task, kinds, positions="spans", direction=direction, tricks=tricks) for tricks in (Tricks(), NONE)
    )
    for kind in kinds:
        torch.testing.assert_close(fast[kind].per_example, slow[kind].per_example, rtol=0, atol=1e-9)
        place = fast[kind].labels["pos"].index("Y")
        behind = fast[kind].per_example.select(fast[kind].axes.index("pos") + 1, place)
        assert float(behind[1].abs().max()) < 1e-12
        assert float(behind[0].abs().max()) > 1e-3
    late = Task.from_tokens(
        [[5, 6, 7, 8, 9, 11], [5, 6, 7]], [[5, 6, 7, 8, 90, 11], [5, 6, 70]], [1, 2], [3, 4], spans=[{}, {}]
    )
    for row in range(2):
        whole, one = (
            patch_paths(model, t, ["input", "m0"], ["m1", "logits"], direction=direction)["path"].per_example
            for t in (late, late[[row]])
        )
        torch.testing.assert_close(whole[row], one[0], rtol=0, atol=1e-9)


def test_answers_are_read_with_the_bias_of_the_unembedding(tiny_task: Task) -> None:
    model = build_model("gptj")
    assert float(model.b_U.std()) > 0.1
    fast, whole = (patch(model, tiny_task, ["resid_pre"], tricks=tricks)["resid_pre"] for tricks in (Tricks(), NONE))
    torch.testing.assert_close(fast.per_example, whole.per_example, rtol=0, atol=rounding(model))
    assert float(whole.values.abs().max()) > 1e-3
