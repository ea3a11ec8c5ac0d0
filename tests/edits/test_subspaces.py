"""Edits into a subspace and edits like a patch: against hooks that put the wanted output there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.directions import Examples, fit_direction
from mechwork.edits import compare_with_patch, edit_into_subspace, edit_like_patch, find_weight
from mechwork.errors import InputError
from mechwork.interventions import intervene
from mechwork.sites import Site
from tests.families import D_VOCAB, borrowed, build_task

THREE = ["gpt2", "neox", "llama"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "verbose": False, "stop_at_eos": False}


def prompts(n: int, n_pos: int, seed: int) -> Tensor:
    return torch.randint(D_VOCAB, (n, n_pos), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", THREE, indirect=True)
def test_the_output_is_put_into_the_targets_subspace(family_model64: Any) -> None:
    """Few rows and no ridge: exactly the projection, at every position of the prompts to forget; targets stay."""
    tokens = prompts(5, 5, seed=3)
    examples = Examples.of_tokens(tokens.tolist(), [True, True, False, False, False], everywhere=True)
    with borrowed(family_model64) as model, torch.no_grad():
        fit = edit_into_subspace(model, "W_out.1", examples, 2, ridge=1e-13)
        W = find_weight(model, "W_out.1").read()
        _, cache = model.run_with_cache(tokens)
        x = cache["blocks.1.mlp.hook_post"]
        target = (x[2:] @ W).flatten(0, 1)
        p = target.mean(dim=0)
        values, vectors = torch.linalg.eigh((target - p).T @ (target - p))
        B = vectors[:, values.argsort()[-2:]]

        def put(out: Tensor, hook: Any) -> Tensor:
            new = out.clone()
            for row in (0, 1):
                for pos in range(5):
                    o = x[row, pos] @ W
                    new[row, pos] = out[row, pos] - o + p + B @ (B.T @ (o - p))
            return new

        literal = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_out", put)])
        plain = model(tokens)
        with intervene(model, [fit.edit]):
            torch.testing.assert_close(model(tokens), literal, rtol=0, atol=1e-5)
            made = [model.generate(tokens[:2], use_past_kv_cache=cached, **SETTINGS) for cached in (True, False)]
        assert torch.equal(*made)
        assert float((literal[:2] - plain[:2]).abs().max()) > 0.1
        torch.testing.assert_close(literal[2:], plain[2:])
        assert torch.equal(model(tokens), plain)
        lot = edit_into_subspace(model, "W_out.1", examples, 2, control_seed=1)
        assert not torch.equal(lot.edit.changes["W_out.1"].dense(), fit.edit.changes["W_out.1"].dense())
        low = edit_into_subspace(model, "W_out.1", examples, 2, rank=1)
        assert low.edit.changes["W_out.1"].rank == 1
        assert low.error > fit.error
        with pytest.raises(InputError, match="0 to 14 axes"):
            edit_into_subspace(model, "W_out.1", examples, 15)
        with pytest.raises(InputError, match="an MLP's output weight"):
            edit_into_subspace(model, "W_O.1", examples)


@pytest.mark.parametrize("family", THREE, indirect=True)
def test_a_rank_one_edit_does_what_the_patch_does(family_model64: Any) -> None:
    """In the last layer only END's own output matters: edit and patch agree to the bit of rounding, for any vector."""
    task = build_task(n=4)
    with borrowed(family_model64) as model:
        direction = fit_direction(model, Examples.of_task(task), Site("mlp_post", 2))
        fit = edit_like_patch(model, task, direction, ridge=1e-13)
        assert fit.edit.changes["W_out.2"].rank == 1
        host = task.pairs.corrupt_as_host()
        with torch.no_grad():
            clean = model.run_with_cache(task.pairs.clean_tokens)[1]["blocks.2.mlp.hook_post"][:, -1]

            def put(h: Tensor, hook: Any) -> Tensor:
                new = h.clone()
                for row in range(len(h)):
                    new[row, -1] += (direction.unit @ (clean[row] - h[row, -1])) * direction.unit
                return new

            literal = model.run_with_hooks(host.clean_tokens, fwd_hooks=[("blocks.2.mlp.hook_post", put)])
            with intervene(model, [fit.edit]):
                torch.testing.assert_close(model(host.clean_tokens)[:, -1], literal[:, -1], rtol=0, atol=1e-5)
            assert float((literal - model(host.clean_tokens)).abs().max()) > 1e-3
        found = compare_with_patch(model, task, direction, task, ridge=1e-13, others=[build_task(seed=5)])
        for row in found.rows:
            assert row.edit == pytest.approx(row.patch, abs=1e-5)
            assert abs(row.patch) > 1e-4
        assert 0 < found.rows[1].null_share < 1  # 48 neurons write into 32 numbers
        assert "rank-1 edit" in str(found)
        with pytest.raises(InputError, match="along neurons"):
            edit_like_patch(model, task, fit_direction(model, Examples.of_task(task), Site("resid_post", 1)))
        with pytest.raises(InputError, match="position is"):
            edit_like_patch(model, task, direction, position="nowhere")


def test_on_the_bundled_model(bundled_model: Any, tmp_path: Any) -> None:
    task = mw.tasks.pronoun(bundled_model, n=64)
    right = task.train.pairs.correct[:, 0]
    she = task.train[(right == right.mode().values).nonzero().flatten().tolist()]
    other = mw.tasks.agreement(bundled_model, n=32)
    direction = fit_direction(bundled_model, Examples.of_task(she), Site("mlp_post", 3))
    found = compare_with_patch(bundled_model, she[:12], direction, she[12:], others=[other.train])
    mine, *random = found.rows
    assert abs(mine.edit) > 3 * max(abs(row.edit) for row in random)
    assert mine.held_out == pytest.approx(mine.edit, rel=0.5)
    assert mine.kl < 0.1
    assert type(found).load(found.save(tmp_path / "beside")).rows == found.rows
