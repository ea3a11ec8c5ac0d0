"""An expert's write as a place to patch, against a mixture written as a loop over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.errors import InputError
from mechwork.patching import Tricks, attribute, patch
from mechwork.render.panels.heatmap import heatmap_figure
from mechwork.tasks.task import Task
from tests.families import borrowed, build_hard_task, build_model, build_task
from tests.gate import fewer
from tests.reference.experts import mixture_by_hand, router_by_hand

EXPERTS = fewer(["mixtral", "olmoe", "qwen3_moe"], ["mixtral", "olmoe"])
PLACES = ("m1.e0@3", "m1.e2@9", "m1.e1@9")
FLOAT32 = 1e-5
"""The router's softmax is taken in float32, whatever the model's dtype."""


def writes_by_hand(model: Any, tokens: Tensor, layer: int, expert: int) -> Tensor:
    """What an expert adds to its block's output, by the loop."""
    seen: list[Tensor] = []
    model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.mlp.hook_in", lambda x, hook: seen.append(x))])
    block = model.blocks[layer].mlp.original_component
    return mixture_by_hand(block, seen[0], router_by_hand(block, seen[0]), only=expert)


def patched_by_hand(model: Any, host: Tensor, donor: Tensor, layer: int, expert: int, positions: slice) -> Tensor:
    """Logits of the host's run with the donor's write of one expert."""
    change = writes_by_hand(model, donor, layer, expert) - writes_by_hand(model, host, layer, expert)

    def put(out: Tensor, hook: Any) -> Tensor:
        new = out.clone()
        new[:, positions] += change[:, positions]
        return new

    return model.run_with_hooks(host, fwd_hooks=[(f"blocks.{layer}.hook_mlp_out", put)])


@pytest.mark.parametrize("family", EXPERTS)
def test_patching_puts_the_other_runs_write_in(family: str) -> None:
    model, task = build_model(family), build_task()
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))  # the host puts hooks on in its first forward
    pairs = task.pairs
    clean, corrupt = pairs.clean_tokens, pairs.corrupt_tokens
    with borrowed(model):
        every = patch(model, task, ["expert_out"], positions="each")["expert_out"]
        named = patch(model, task, list(PLACES))["expert_out"]
        whole = patch(model, task, list(PLACES), tricks=Tricks(False, False, False))["expert_out"]
        noise = patch(model, task, ["expert_out"], direction="noise", positions="all")["expert_out"]
    assert every.axes == ("layer", "pos", "expert")
    assert noise.axes == ("layer", "expert")
    torch.testing.assert_close(named.per_example, whole.per_example, rtol=0, atol=FLOAT32, equal_nan=True)
    with torch.no_grad():
        plain = {side: task.metric(model(tokens), pairs) for side, tokens in (("clean", clean), ("corrupt", corrupt))}
        for place in PLACES:
            expert, at = int(place[4]), int(place[6:])
            logits = patched_by_hand(model, corrupt, clean, 1, expert, slice(at, at + 1))
            expected = task.metric(logits, pairs) - plain["corrupt"]
            torch.testing.assert_close(every.per_example[:, 1, at, expert], expected, rtol=0, atol=FLOAT32)
            row = [label.split(" ")[0] for label in named.labels["pos"]].index(str(at))
            mine = named.per_example[:, 0, row, named.labels["expert"].index(str(expert))]
            torch.testing.assert_close(mine, expected, rtol=0, atol=FLOAT32)
        for expert in range(4):
            logits = patched_by_hand(model, clean, corrupt, 0, expert, slice(None))
            expected = plain["clean"] - task.metric(logits, pairs)
            torch.testing.assert_close(noise.per_example[:, 0, expert], expected, rtol=0, atol=FLOAT32)
    assert float(every.values.abs().max()) > 1e-3
    assert noise.top(1)[0][0] in {f"m{layer}.e{expert}" for layer in range(3) for expert in range(4)}
    assert "@" in every.top(1)[0][0]


def test_pairs_of_unequal_length_go_by_span() -> None:
    model, task = build_model("mixtral"), build_hard_task(n=3, aligned=False)
    found = patch(model, task, ["expert_out"], positions="spans")
    whole = patch(model, task, ["expert_out"], positions="spans", tricks=Tricks(False, False, False))["expert_out"]
    torch.testing.assert_close(found["expert_out"].per_example, whole.per_example, rtol=0, atol=FLOAT32)
    assert float(found["expert_out"].values.abs().max()) > 1e-4


def test_refused_where_there_are_none_and_drawn_where_there_are(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="has no experts"):
        patch(tiny_gpt2_64, tiny_task, ["expert_out"])
    with pytest.raises(InputError, match="has no experts"):
        patch(tiny_gpt2_64, tiny_task, ["m1.e0"])
    model, task = build_model("mixtral"), build_task()
    with pytest.raises(InputError, match="experts are patched, not estimated"):
        attribute(model, task, ["m1.e0"])
    with pytest.raises(InputError, match="expert 0, 1, 2, 3; got 4"):
        patch(model, task, ["m1.e4"])
    found = patch(model, task, ["m1.e0", "m2.e3", "z"], positions="all")
    assert found["expert_out"].axes == ("layer", "expert")
    assert int(found["expert_out"].values.isnan().sum()) == 2
    assert "m1.e0" in found["expert_out"]._repr_html_()
    alone, spans = (_cells(patch(model, task, ["expert_out"], positions=how)["expert_out"]) for how in ("all", "each"))
    assert {"m2.e3"} <= {node for _, _, node in alone} == {place for place, _, _ in alone}
    assert {node for _, _, node in spans} == {node for _, _, node in alone}


def _cells(effect: Any) -> list[list[str]]:
    """What every cell of the drawing says: place, effect, the node that it selects."""
    traces: Any = heatmap_figure(effect).data
    return [cell for trace in traces for row in trace.customdata for cell in row]
