"""Removal of top heads beside matched random ones, clamping to another run, and the formation study on the shipped
checkpoints.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation import (
    AblationSpec,
    ablate,
    measure_roles,
    measure_span_roles,
    record_clamp,
    remove_top_heads,
    repeated_tokens,
    study_formation,
)
from mechwork.ablation.formation import BACK, CONDITIONS
from mechwork.errors import ArtefactError, InputError
from mechwork.interventions import intervene
from tests.families import borrowed, build_model, build_task
from tests.reference import ablation as literal


def test_removing_the_induction_head_breaks_what_random_heads_do_not(bundled_model: Any) -> None:
    prompts = repeated_tokens(bundled_model, 32, 12)
    table = measure_roles(bundled_model, prompts)
    found = remove_top_heads(bundled_model, table=table, prompts=prompts, n_random=10, role="previous token")
    assert found.heads == (table.top("previous token", 1)[0][0],)
    row = found.rows[0]
    one = ablate(bundled_model, prompts.task, AblationSpec(found.heads))
    assert row.removed == pytest.approx(float(one.ablated_per_example.mean()), abs=1e-4)
    assert row.intact == pytest.approx(float(one.clean_per_example.mean()), abs=1e-4)
    assert row.intact - row.removed > max(row.intact - value for value in row.random)
    assert row.p == pytest.approx(1 / 11)
    assert "matched random" in str(found)
    with pytest.raises(InputError, match="nearest: induction"):
        remove_top_heads(bundled_model, role="inductin", table=table)
    with pytest.raises(InputError, match="share"):
        remove_top_heads(bundled_model, share=0)


@pytest.mark.parametrize(
    ("family", "what", "site"),
    [("gpt2", "z", "z"), ("llama", "pattern", "pattern"), ("mixtral", "v", "v"), ("gemma2", "k", "k")],
)
def test_a_clamp_holds_the_other_runs_values(family: str, what: str, site: str) -> None:
    donor, model = build_model(family), build_model(family, seed=1)
    tokens = build_task(n=4).pairs.clean_tokens
    with torch.no_grad():
        model.run_with_cache(tokens)
    name = f"blocks.1.attn.hook_{site}"
    with torch.no_grad():
        value = donor.run_with_cache(tokens)[1][name]
    head = 2 if what in ("z", "pattern") else 1

    def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        new = activation.clone()
        if what == "pattern":
            new[:, head] = value[:, head]
        else:
            new[:, :, head] = value[:, :, head]
        return new

    with borrowed(model), torch.no_grad():
        expected = model.run_with_hooks(tokens, fwd_hooks=[(name, put)])
        with record_clamp(donor, tokens, ["a1.h2"], what=what).applied(model):
            found = model(tokens)
        assert float((found - model(tokens)).abs().max()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_clamp_to_the_own_run_changes_nothing(tiny_gpt2_64: Any) -> None:
    tokens = build_task(n=4).pairs.clean_tokens
    with torch.no_grad():
        plain = tiny_gpt2_64(tokens)
        with record_clamp(tiny_gpt2_64, tokens, ["a0.h1", "a1", "m2"]).applied(tiny_gpt2_64):
            torch.testing.assert_close(tiny_gpt2_64(tokens), plain, rtol=0, atol=1e-12)
    assert literal.HOOKS
    with (
        pytest.raises(ArtefactError, match="architecture"),
        record_clamp(tiny_gpt2_64, tokens, ["m0"]).applied(build_model("neox")),
    ):
        pass
    with pytest.raises(InputError, match="heads, attention and MLPs"):
        record_clamp(tiny_gpt2_64, tokens, ["m0.n3"])
    with pytest.raises(InputError, match="nearest"):
        record_clamp(tiny_gpt2_64, tokens, ["a0.h1"], what="patern")
    assert intervene is not None


def test_the_formation_of_induction() -> None:
    found = study_formation(steps=[0, 500, 2500], n=16)
    first, _, last = found.rows
    assert last.induction > 0.6 > first.induction
    assert last.loss < first.loss
    assert set(first.clamped) == {*CONDITIONS, BACK}
    for condition in CONDITIONS:  # a model clamped to its own values is itself
        assert last.clamped[condition] == pytest.approx(last.loss, abs=1e-5)
    assert last.clamped[BACK] == pytest.approx(last.loss, abs=1e-5)
    assert first.clamped[BACK] > last.loss
    assert len(found.to_dataframe()) == 3
    assert "loss" in str(found).lower()
    with pytest.raises(InputError, match="at least two checkpoints"):
        study_formation("gpt2-6l")


def test_name_movers_are_found_by_loops(bundled_model: Any) -> None:
    task = mw.tasks.ioi(bundled_model, n=16)
    table = measure_span_roles(bundled_model, task, n_null=50)
    assert set(table.scores) == {"name mover", "negative name mover", "S-inhibition"}
    pairs = task.pairs
    _, cache = bundled_model.run_with_cache(pairs.clean_tokens)
    layer, head = 5, 1
    pattern, v = cache[f"blocks.{layer}.attn.hook_pattern"], cache[f"blocks.{layer}.attn.hook_v"]
    looks, copies = [], []
    for b in range(16):
        io, end = int(pairs.spans["IO"][b].nonzero()[0]), int(pairs.lengths[b]) - 1
        looks.append(float(pattern[b, head, end, io]))
        write = v[b, io, head] @ bundled_model.blocks[layer].attn.W_O[head]
        logits = (bundled_model.ln_final.weight * (write - write.mean())) @ bundled_model.W_U
        own = logits[int(pairs.clean_tokens[b, io])]
        copies.append(2 * float((logits < own).sum()) / (len(logits) - 1) - 1)
    copying = sum(copies) / 16
    row = table.heads.index(f"a{layer}.h{head}")
    assert float(table.scores["name mover"][row]) == pytest.approx(sum(looks) / 16 * max(0, copying), abs=1e-3)
    assert float(table.scores["negative name mover"][row]) == pytest.approx(
        sum(looks) / 16 * max(0, -copying), abs=1e-3
    )
    merged = measure_roles(bundled_model, repeated_tokens(bundled_model, 8, 8), n_null=20).with_roles(table)
    assert {"induction", "S-inhibition"} <= set(merged.scores)
    with pytest.raises(InputError, match="spans IO, S1 and END"):
        measure_span_roles(bundled_model, mw.tasks.induction(bundled_model, n=16))
