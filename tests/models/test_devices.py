"""Models over two devices: no operation mixes them, and the numbers are those of one device.

The devices are tags (see `devices`): this needs no GPU, and says nothing about speed or about accelerate itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation import study_heads
from mechwork.ablation.sweep import sweep_ablations
from mechwork.tasks.task import Task
from tests.execute.work import find_numbers
from tests.families import build_model
from tests.models.devices import CPU, FIRST, SECOND, MixedError, TwoDevices, spread

CALLS: dict[str, Callable[[Any, Task], Any]] = {
    "patch": lambda m, t: mw.patch(m, t, ["resid_pre", "z", "mlp_out", "attn_out", "k"]),
    "attribute": lambda m, t: mw.attribute(m, t, ["resid_pre", "z", "mlp_out"], ig_steps=2),
    "edges": lambda m, t: mw.score_edges(m, t, preset="eap-ig"),
    "relevance": lambda m, t: mw.score_edges(m, t, preset="relp", ablation="zero"),
    "curve": lambda m, t: mw.evaluate(
        m, t, mw.score_edges(m, t, preset="relp"), fractions=(0.1, 0.5), n_random=1, across_tasks=True
    ),
    "ablations": lambda m, t: sweep_ablations(m, t, ["heads"], kind="zero"),
    "study": study_heads,
}


def test_the_tags_notice_a_mixture() -> None:
    with TwoDevices() as mode:
        a, b = torch.ones(3), torch.ones(3)
        mode.tag(a, FIRST)
        mode.tag(b, SECOND)
        for mix in (lambda: a + b, lambda: torch.cat([a, b]), lambda: a.mul_(b), lambda: torch.where(a > 0, b, b)):
            with pytest.raises(MixedError):
                mix()
        assert (a + b.to(a.device)).device == FIRST
        assert a[:2].device == FIRST
        assert torch.zeros(3, device=b.device).device == SECOND
        assert a.cpu().device == CPU
        assert mode.moves == 2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_mixes_two_devices(family: str, name: str, tiny_task: Task) -> None:
    model = build_model(family)
    wanted = find_numbers(CALLS[name](model, tiny_task))
    with spread(model) as mode:
        found = CALLS[name](model, tiny_task)
    assert mode.moves > 0
    numbers = find_numbers(found)
    assert numbers.keys() == wanted.keys()
    for at, values in wanted.items():
        assert torch.equal(numbers[at].nan_to_num(7e7), values.nan_to_num(7e7)), at
