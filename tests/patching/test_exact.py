"""Activation patching against one whole forward per cell, in float64, on every architecture family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.models.anatomy import read_anatomy
from mechwork.patching import Effects, attribute, patch
from mechwork.patching.sweep import Tricks
from mechwork.sites import SITE_KINDS
from mechwork.tasks.pairs import ABSENT
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model, rounding
from tests.reference import literal


def kinds_of(model: Any) -> list[str]:
    anatomy = read_anatomy(model)
    kinds = ["resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "resid_mid"]
    return [kind for kind in kinds if anatomy.has_site(kind)]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_equals_one_forward_per_cell(family_model64: Any, tiny_task: Task, direction: str) -> None:
    model, pairs = family_model64, tiny_task.pairs
    host, donor = (
        (pairs.corrupt_tokens, pairs.clean_tokens)
        if direction == "denoise"
        else (pairs.clean_tokens, pairs.corrupt_tokens)
    )
    cache = literal.cached(model, donor)
    kinds = kinds_of(model)
    effects = patch(model, tiny_task, kinds, direction=direction)
    with torch.no_grad():
        reference = tiny_task.metric(model(host), pairs)
    for kind in kinds:
        effect = effects[kind]
        assert float(effect.values.abs().max()) > 1e-3
        n_cells = effect.values.shape[1]
        for layer in range(3):
            for cell in {n_cells // 2, n_cells - 1}:
                place = {"head": cell} if SITE_KINDS[kind].per_head else {"pos": cell}
                if kind == "resid_mid":
                    patched = resid_mid_cell(model, host, cache[literal.hook(kind, layer)], layer, tiny_task, cell)
                else:
                    patched = literal.patch_cell(
                        model,
                        host,
                        cache[literal.hook(kind, layer)],
                        kind,
                        layer,
                        lambda x: tiny_task.metric(x, pairs),
                        **place,
                    )
                change = patched - reference if direction == "denoise" else reference - patched
                torch.testing.assert_close(effect.per_example[:, layer, cell], change, rtol=0, atol=rounding(model))


def resid_mid_cell(
    model: Any, host: torch.Tensor, value: torch.Tensor, layer: int, task: Task, pos: int
) -> torch.Tensor:
    """Both branches that read resid_mid: the MLP through its own input, and the stream through the block's output."""
    old: list[torch.Tensor] = []

    def branch(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        old[:] = [activation]
        new = activation.clone()
        new[:, pos] = value[:, pos]
        return new

    def stream(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        new = activation.clone()
        new[:, pos] += (value - old[0])[:, pos]
        return new

    mid = f"blocks.{layer}.{'mlp.hook_in' if 'ln2' not in model.blocks[layer].submodules else 'ln2.hook_in'}"
    hooks = [(mid, branch), (literal.hook("resid_post", layer), stream)]
    with torch.no_grad():
        return task.metric(model.run_with_hooks(host, fwd_hooks=hooks), task.pairs)


def test_leaves_the_model_as_it_was(family_model64: Any, tiny_task: Task) -> None:
    with borrowed(family_model64) as model:
        patch(model, tiny_task, ["resid_pre", "z"])
        attribute(model, tiny_task, ["resid_pre", "z"], ig_steps=2)


def test_leaves_the_model_as_it_was_after_an_exception(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    calls = []

    def failing(logits: torch.Tensor, pairs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return logits[:, -1, 0]

    task = tiny_task.with_metric(failing)
    with borrowed(tiny_gpt2_64) as model, pytest.raises(KeyboardInterrupt):
        patch(model, task, ["resid_pre"])
    with borrowed(tiny_gpt2_64) as model, pytest.raises(KeyboardInterrupt):
        attribute(model, task, ["resid_pre"])


def test_patching_the_stream_everywhere_gives_the_other_run(family_model64: Any, tiny_task: Task) -> None:
    effect = patch(family_model64, tiny_task, ["resid_pre"], positions="all")["resid_pre"]
    gap = effect.baseline.clean_per_example - effect.baseline.corrupt_per_example
    torch.testing.assert_close(effect.per_example, gap[:, None].expand(-1, 3), rtol=0, atol=1e-6)
    assert effect.normalized().values.tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_prompts_of_different_length_are_compared_by_span(tiny_gpt2_64: Any) -> None:
    """Padding changes nothing: each row's effects equal those of the row alone."""
    clean, corrupt = [[5, 6, 7, 8, 9], [5, 6, 7]], [[5, 6, 70, 8, 9], [5, 60, 7]]
    spans = [{"X": [2]}, {"X": [1]}]
    task = Task.from_tokens(clean, corrupt, [1, 2], [3, 4], spans=spans)
    effect = patch(tiny_gpt2_64, task, ["resid_pre"])["resid_pre"]
    assert effect.labels["pos"] == ("start", "X", "X+", "END")
    for row in range(2):
        alone = Task.from_tokens(
            clean[row : row + 1], corrupt[row : row + 1], [[1], [2]][row], [[3], [4]][row], spans=spans[row : row + 1]
        )
        single = patch(tiny_gpt2_64, alone, ["resid_pre"], positions="spans")["resid_pre"]
        for i, name in enumerate(single.labels["pos"]):
            j = effect.labels["pos"].index(name)
            torch.testing.assert_close(effect.per_example[row, :, j], single.per_example[0, :, i], rtol=0, atol=1e-9)


def test_pairs_of_unequal_length_align_by_span(tiny_gpt2_64: Any) -> None:
    task = Task.from_tokens(
        [[5, 6, 7, 8]],
        [[5, 6, 16, 7, 8]],
        [1],
        [2],
        spans=[{"A": [1], "B": [2]}],
        corrupt_spans=[{"A": [1, 2], "B": [3]}],
    )
    assert task.pairs.alignment()[0, :4].tolist() == [0, 2, 3, 4]
    assert task.pairs.corrupt_as_host().alignment()[0].tolist() == [0, ABSENT, 1, 2, 3]
    effect = patch(tiny_gpt2_64, task, ["resid_pre"])["resid_pre"]
    end = effect.labels["pos"].index("END")
    clean = literal.cached(tiny_gpt2_64, task.pairs.clean_tokens[:, :4])

    def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        new = activation.clone()
        new[:, 4] = clean["blocks.2.hook_resid_pre"][:, 3]
        return new

    with torch.no_grad():
        logits = tiny_gpt2_64.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=[("blocks.2.hook_resid_pre", put)])[
            :, -1
        ]
    expected = logits[0, 1] - logits[0, 2] - effect.baseline.corrupt_per_example[0]
    assert float(effect.per_example[0, 2, end]) == pytest.approx(float(expected), abs=1e-9)
    assert abs(float(expected)) > 1e-3


def test_saves_and_loads(tiny_gpt2: Any, tiny_task: Task, tmp_path: Any) -> None:
    effects = patch(tiny_gpt2, tiny_task, ["resid_pre", "z"])
    loaded = Effects.load(effects.save(tmp_path / "effects"))
    for kind in effects:
        torch.testing.assert_close(loaded[kind].per_example, effects[kind].per_example, rtol=0, atol=0)
        assert loaded[kind].labels == effects[kind].labels
        assert loaded[kind].provenance == effects[kind].provenance
    frame = loaded.to_dataframe()
    assert len(frame) == 3 * 10 + 3 * 4
    assert set(frame.columns) == {"kind", "layer", "pos", "head", "effect", "standard_error"}


def test_progress_reaches_the_total(tiny_gpt2: Any, tiny_task: Task) -> None:
    seen: list[tuple[int, int, str]] = []
    patch(tiny_gpt2, tiny_task, ["resid_pre", "z"], progress=lambda *state: seen.append(state))
    assert seen[-1][0] == seen[-1][1] == 3 * 10 + 3 * 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sites": ["resid_pree"]}, UnknownNameError, "nearest: resid_pre"),
        ({"sites": ["logits"]}, InputError, "Patchable"),
        ({"sites": []}, InputError, "list of places"),
        ({"sites": ["resid_pre"], "direction": "clean"}, InputError, "denoise"),
        ({"sites": ["resid_pre"], "positions": "first"}, InputError, "positions"),
        ({"sites": ["resid_pre"], "positions": "spans"}, InputError, "no spans"),
    ],
)
def test_bad_arguments_are_refused_before_any_forward(
    tiny_gpt2: Any, tiny_task: Task, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        patch(tiny_gpt2, tiny_task, **arguments)


def test_a_site_the_architecture_lacks() -> None:
    with pytest.raises(InputError, match="parallel"):
        patch(build_model("neox"), Task.from_tokens([[1, 2]], [[1, 3]], [4], [5]), ["resid_mid"])


def test_a_model_in_training_mode(tiny_task: Task) -> None:
    model = build_model("gpt2")
    model.train()
    with pytest.raises(InputError, match="eval"):
        patch(model, tiny_task, ["resid_pre"])


def test_tokens_of_another_model(tiny_gpt2: Any) -> None:
    task = Task.from_tokens([[1, 2000]], [[1, 3]], [4], [5])
    with pytest.raises(InputError, match="below 97"):
        patch(tiny_gpt2, task, ["resid_pre"])


def test_a_metric_that_is_nan_or_averaged(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(MetricError, match="finite"):
        patch(tiny_gpt2, tiny_task.with_metric(lambda logits, pairs: logits[:, -1, 0] * torch.nan), ["resid_pre"])
    with pytest.raises(MetricError, match="one value per pair"):
        patch(tiny_gpt2, tiny_task.with_metric(lambda logits, pairs: logits.mean()), ["resid_pre"])


def test_a_metric_without_gradient(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(MetricError, match="no gradient"):
        attribute(tiny_gpt2, tiny_task.with_metric(lambda logits, pairs: logits[:, -1, 0].detach()), ["resid_pre"])


def test_a_prompt_that_ends_before_the_patched_span_is_read_at_its_own_end(tiny_gpt2_64: Any) -> None:
    clean = [[5, 6, 7, 8], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]
    corrupt = [[5, 60, 7, 8], [5, 6, 7, 8, 9, 10, 11, 70, 13, 14]]
    spans = [{"A": [1]}, {"A": [1], "LATE": [7]}]
    task = Task.from_tokens(clean, corrupt, [1, 2], [3, 4], spans=spans)
    kinds = ["resid_pre", "mlp_out", "attn_out", "v"]
    fast = patch(tiny_gpt2_64, task, kinds, positions="spans")
    slow = patch(tiny_gpt2_64, task, kinds, positions="spans", tricks=Tricks(suffix=False, readout=False))
    late = fast["resid_pre"].labels["pos"].index("LATE")
    assert float(fast["resid_pre"].per_example[0, :, late].abs().max()) < 1e-9  # rounding of stepped columns
    assert float(fast["resid_pre"].per_example[1, 0, late].abs()) > 1e-3
    for kind in kinds:
        torch.testing.assert_close(fast[kind].per_example, slow[kind].per_example)
