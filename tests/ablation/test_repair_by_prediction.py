"""Repair by what is predicted, against whole runs with the query exchanged by hand; a planted copy suppressor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.ablation import explain_self_repair, study_self_repair
from mechwork.circuits.ground_truth.weights import SHARP, BlockWeights, Blueprint, HeadWeights, NamedStream
from mechwork.errors import InputError
from mechwork.models.anatomy import final_norm
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model, build_task
from tests.gate import fewer

FAMILIES = fewer(["gpt2", "llama", "neox", "qwen3"], ["gpt2", "llama"])


def gains_by_hand(model: Any, task: Task, layer: int, head: int) -> Tensor:
    """``[head, batch]``: every later head's rise when its query at the last token reads the answer as the run without
    the head predicts it; whole forwards, all heads one by one.
    """
    tokens, answers = task.pairs.clean_tokens, task.pairs.correct[:, 0]
    wrong, norm = task.pairs.incorrect[:, 0], final_norm(model)
    centred = model.W_U - model.W_U.mean(dim=1, keepdim=True)
    towards, readout = centred.T[answers], model.W_U.T[answers] - model.W_U.T[wrong]
    _, clean = model.run_with_cache(tokens)

    def through(x: Tensor) -> Tensor:
        if norm is None:
            return x
        return norm.gain * (x - x.mean(-1, keepdim=True) if norm.centred else x)

    if norm is not None:
        towards = torch.stack([norm.gain * row - (norm.gain * row).mean() * norm.centred for row in towards])
    towards = towards / towards.norm(dim=-1, keepdim=True)
    final = clean[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"][:, -1]
    scale = torch.ones(len(tokens)).double() if norm is None else norm.scale(final)[:, 0]

    def ablate(z: Tensor, hook: Any) -> Tensor:
        new = z.clone()
        new[:, :, head] = 0
        return new

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", ablate)]):
        _, gone = model.run_with_cache(tokens)
    found = torch.zeros(model.cfg.n_layers * model.cfg.n_heads, len(tokens)).double()
    for later in range(layer + 1, model.cfg.n_layers):
        name = f"blocks.{later}.hook_resid_pre"
        change = gone[name][:, -1] - clean[name][:, -1]
        moved = (change * towards).sum(-1, keepdim=True) * towards

        def shift(x: Tensor, hook: Any, moved: Tensor = moved) -> Tensor:
            return torch.cat([x[:, :-1], x[:, -1:] + moved[:, None]], dim=1)

        with model.hooks(fwd_hooks=[(name, shift)]):
            _, read = model.run_with_cache(tokens)
        query = read[f"blocks.{later}.attn.hook_q"][:, -1]
        for one in range(model.cfg.n_heads):

            def put(q: Tensor, hook: Any, one: int = one, query: Tensor = query) -> Tensor:
                new = q.clone()
                new[:, -1, one] = query[:, one]
                return new

            with model.hooks(fwd_hooks=[(f"blocks.{later}.attn.hook_q", put)]):
                _, run = model.run_with_cache(tokens)
            z = [cache[f"blocks.{later}.attn.hook_z"][:, -1, one] for cache in (run, clean)]
            write = (z[0] - z[1]) @ model.blocks[later].attn.W_O[one]
            found[later * model.cfg.n_heads + one] = (through(write) * readout).sum(-1) / scale
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_gains_are_those_of_whole_runs_with_the_query_exchanged(family: str) -> None:
    model, task = build_model(family), build_task(n=4)
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
        with borrowed(model):
            found = explain_self_repair(model, task, ["a0.h1", "a1.h2"], kind="zero", n_random=2)
            small = explain_self_repair(model, task, ["a0.h1", "a1.h2"], kind="zero", n_random=2, memory_budget=400_000)
        for row, (layer, head) in enumerate(((0, 1), (1, 2))):
            expected = gains_by_hand(model, task, layer, head)
            assert float(expected.abs().max()) > 1e-6
            torch.testing.assert_close(found.gains[row], expected, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(found.by_prediction[row], expected.sum(dim=0), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(small.gains, found.gains, rtol=1e-9, atol=1e-11)
    assert found.by_lot.shape == (2, 2, 4)
    assert not torch.allclose(found.by_lot[:, 0], found.by_prediction)
    whole = study_self_repair(model, task, ["a0.h1", "a1.h2"], kind="zero")
    torch.testing.assert_close(found.by_heads, -whole.by_heads)
    torch.testing.assert_close(found.repaired, whole.repaired)


V, N_POS = 12, 4


def planted(*, reads_prediction: bool) -> tuple[Any, Task]:
    """a0.h0 says the word at column 1. a1.h0 looks there and takes .6 of that word away: because it is said, or (the
    other plant) because of a mark that a0.h0 leaves beside it. Where it does not look, it looks at column 0, whose word
    nobody says.
    """
    s = NamedStream(token=V, pos=N_POS, said=V, mark=1)
    token, pos, said, mark = s.read("token"), s.read("pos"), s.read("said"), s.read("mark")
    here = torch.ones(N_POS, 1).double()
    first, second = pos[:, :1], pos[:, 1:2]
    away = torch.eye(V).double()
    away[0] = 0
    output = torch.cat([said.T, torch.zeros(1, said.shape[0]).double()])
    marked = torch.cat([token, 0 * second], dim=1)
    if reads_prediction:
        query, key = torch.cat([SHARP * said, 0.5 * SHARP * pos @ here], dim=1), torch.cat([token, first], dim=1)
    else:
        query, key = SHARP * torch.cat([mark, 0.5 * pos @ here], dim=1), torch.cat([second, first], dim=1)
        output = torch.cat([said.T, mark.T])
        marked = torch.cat([token, token @ torch.ones(V, 1).double()], dim=1)
    say = HeadWeights(q=SHARP * pos @ here, k=second, v=marked, o=output)
    model = Blueprint(
        name="suppressor",
        embed=s.write("token", torch.eye(V)),
        pos=s.write("pos", torch.eye(N_POS)),
        unembed=s.read("said"),
        blocks=[BlockWeights([say]), BlockWeights([HeadWeights(q=query, k=key, v=token, o=-0.6 * away @ said.T)])],
    ).build()
    clean = [[0, word, 10, 11] for word in range(1, 7)]
    corrupt = [[0, 9, 10, 11] for _ in range(1, 7)]
    return model, Task.from_tokens(clean, corrupt, list(range(1, 7)), [9] * 6)


def test_a_planted_suppressor_is_explained_and_one_that_reads_a_mark_is_not() -> None:
    for reads, share in ((True, 1.0), (False, 0.0)):
        model, task = planted(reads_prediction=reads)
        found = explain_self_repair(model, task, ["a0.h0"], kind="zero")
        assert float(found.by_heads.mean()) == pytest.approx(0.6, abs=1e-3)
        assert found.share("a0.h0") == pytest.approx(share, abs=0.02)
        assert abs(float(found.by_lot.mean())) < 0.3
    assert "by what is predicted" in str(found)
    assert list(found.to_dataframe()["head"]) == ["a0.h0"]


def test_refused_before_a_forward(tiny_gpt2_64: Any) -> None:
    task = build_task(n=2)
    with pytest.raises(InputError, match="n_random is a whole number, at least 1"):
        explain_self_repair(tiny_gpt2_64, task, ["a0.h1"], n_random=0)
    with pytest.raises(InputError, match="heads"):
        explain_self_repair(tiny_gpt2_64, task, ["a9.h9"])
    with pytest.raises(InputError, match="linear"):
        explain_self_repair(tiny_gpt2_64, task.with_metric("log_probability"), ["a0.h1"])
