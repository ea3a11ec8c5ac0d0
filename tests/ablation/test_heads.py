"""The head study against hand-written hooks, and its direct effects against the logits they claim to explain."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import study_heads
from mechwork.ablation.heads import ROLES, HeadRow
from mechwork.errors import InputError
from mechwork.tasks.task import Task
from tests.families import borrowed, build_task
from tests.reference import literal


def test_effects_equal_mean_ablation_by_hand(family: str, family_model64: Any) -> None:
    """Two spans of different means, so that a mean over the wrong axis would show."""
    tolerance = 1e-6 if family == "gptj" else 1e-9  # its attention computes in float32 inside, whatever the dtype
    task = build_task(n=4, spans=[{"A": [3, 4]}] * 4)
    pairs = task.pairs
    cache = literal.cached(family_model64, pairs.clean_tokens)
    with borrowed(family_model64) as model:
        study = study_heads(model, task)
    assert len(study.rows) == 12
    assert [abs(row.effect) for row in study.rows] == sorted((abs(row.effect) for row in study.rows), reverse=True)
    rows = {row.head: row for row in study.rows}
    with torch.no_grad():
        plain = task.metric(family_model64(pairs.clean_tokens), pairs)
    for layer, head in ((0, 1), (2, 3)):
        z = cache[literal.hook("z", layer)]
        mean = z.clone()
        for group in ([0, 1, 2], [3, 4], [5, 6, 7, 8], [9]):
            for pos in group:
                mean[:, pos, head] = torch.stack([z[b, p, head] for b in range(4) for p in group]).mean(dim=0)
        drop = plain - literal.patch_cell(
            family_model64, pairs.clean_tokens, mean, "z", layer, lambda x: task.metric(x, pairs), head=head
        )
        assert rows[f"a{layer}.h{head}"].effect == pytest.approx(float(drop.mean()), abs=tolerance)
        assert rows[f"a{layer}.h{head}"].standard_error == pytest.approx(float(drop.std() / 2), abs=tolerance)


def test_direct_effects_of_the_last_layer_are_linear_in_what_is_written(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    """Freezing the final scale, taking a last-layer head's write away changes the metric by its direct effect (MLP
    aside).
    """
    study = study_heads(tiny_gpt2_64, tiny_task, ["a2.h0"])
    pairs = tiny_task.pairs
    cache = literal.cached(tiny_gpt2_64, pairs.clean_tokens)
    z = cache[literal.hook("z", 2)][:, :, 0]
    write = (z - z.mean(dim=(0, 1)))[:, -1] @ tiny_gpt2_64.blocks[2].attn.W_O[0]
    final = cache["blocks.2.hook_resid_post"][:, -1]
    centred = final - final.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    gain = tiny_gpt2_64.ln_final.weight
    logits = ((write - write.mean(-1, keepdim=True)) / scale * gain) @ tiny_gpt2_64.W_U
    rows = torch.arange(len(pairs))
    expected = (logits[rows, pairs.correct[:, 0]] - logits[rows, pairs.incorrect[:, 0]]).mean()
    assert study.rows[0].direct_effect == pytest.approx(float(expected), abs=1e-9)
    assert abs(float(expected)) > 1e-4


def test_no_direct_effect_under_a_soft_cap_or_a_curved_metric(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    curved = study_heads(tiny_gpt2_64, tiny_task.with_metric("log_probability"), ["a0.h0"])
    assert curved.rows[0].direct_effect is None
    assert "-" in str(curved)


@pytest.mark.parametrize(
    ("attention", "effect", "direct", "role"),
    [
        ({"END→IO": 0.6}, 1.0, 0.9, "name mover"),
        ({"END→IO": 0.6}, -1.0, -0.9, "negative name mover"),
        ({"END→S2": 0.6}, 1.0, 0.9, "answer mover (from S2)"),
        ({"END→S2+": 0.6}, 1.0, 0.9, "answer mover (from S2+)"),
        ({"S2+→S2": 0.6}, 1.0, 0.0, "mover from S2"),
        ({"END→S2": 0.6}, 1.0, 0.01, "S-inhibition"),
        ({"S2→S1": 0.6}, 1.0, 0.0, "duplicate token"),
        ({"END→IO": 0.6}, 1.0, 0.1, ""),
        ({"END→IO": 0.4, "END→S1": 0.5}, 1.0, 0.9, ""),
        ({"END→IO": 0.1}, 1.0, 0.9, ""),
    ],
)
def test_roles_follow_from_measurements(attention: dict[str, float], effect: float, direct: float, role: str) -> None:
    row = HeadRow("a0.h0", effect, 0.1, direct, attention)
    assert next((name for name, rule in ROLES.items() if rule(row, 1.0)), "") == role


def test_unknown_heads(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="heads are written"):
        study_heads(tiny_gpt2_64, tiny_task, ["a7.h0"])


def test_where_heads_look_is_the_mean_pattern_between_spans(tiny_gpt2_64: Any) -> None:
    task = build_task(spans=[{"S1": [2], "S2": [5]}] * 3)
    pattern = literal.cached(tiny_gpt2_64, task.pairs.clean_tokens)["blocks.1.attn.hook_pattern"][:, 2].mean(dim=0)
    (row,) = study_heads(tiny_gpt2_64, task, ["a1.h2"]).rows
    expected = {
        "END→S1": pattern[9, 2], "END→S2": pattern[9, 5], "END→S2+": pattern[9, 6:9].sum(), "S2→S1": pattern[5, 2],
        "S2+→S2": pattern[6:9, 5].mean(),
    }  # fmt: skip
    assert {name: share for name, share in row.attention.items() if name in expected} == pytest.approx(
        {name: float(share) for name, share in expected.items()}
    )
