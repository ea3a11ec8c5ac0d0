"""Progress is told again while blocks run, changes nothing, and can stop a pass in its middle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork import ablation
from mechwork.models import pulse

WORK = {
    "score_edges": lambda model, task, **given: mw.score_edges(model, task, preset="eap-ig", **given).values,
    "evaluate": lambda model, task, **given: (
        mw.evaluate(model, task, mw.score_edges(model, task, preset="eap").circuit(20), **given).faithfulness
    ),
    "patch": lambda model, task, **given: mw.patch(model, task, ["mlp_out", "z"], **given)["z"].values,
    "attribute": lambda model, task, **given: mw.attribute(model, task, ["resid_pre"], **given)["resid_pre"].values,
    "interactions": lambda model, task, **given: (
        ablation.study_interactions(model, task, ["a0.h0", "a1.h1"], kind="zero", **given).per_example
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_every_block_beats_and_numbers_stay(
    name: str, tiny_gpt2: Any, tiny_task: mw.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SECONDS", 0.0)
    said: list[tuple[int, int]] = []
    wanted = WORK[name](tiny_gpt2, tiny_task)
    found = WORK[name](tiny_gpt2, tiny_task, progress=lambda done, total, what: said.append((done, total)))
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted))
    assert len(said) > 2 * tiny_gpt2.cfg.n_layers
    assert all(0 <= done <= total for done, total in said)
    assert [done for done, _ in said] == sorted(done for done, _ in said)


@pytest.mark.parametrize("after", [2, 9, 17])
def test_what_the_callback_raises_ends_the_pass_and_leaves_the_model_as_it_was(
    after: int, tiny_gpt2: Any, tiny_task: mw.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SECONDS", 0.0)
    n_heard = 0

    def stop(*_: Any) -> None:
        nonlocal n_heard
        n_heard += 1
        if n_heard == after:
            raise KeyboardInterrupt

    before = WORK["score_edges"](tiny_gpt2, tiny_task)
    with pytest.raises(KeyboardInterrupt):
        WORK["score_edges"](tiny_gpt2, tiny_task, progress=stop)
    assert n_heard == after, "a pass in the middle goes on to its end"
    assert not any(block._forward_hooks for block in tiny_gpt2.blocks)
    assert torch.equal(WORK["score_edges"](tiny_gpt2, tiny_task), before)
