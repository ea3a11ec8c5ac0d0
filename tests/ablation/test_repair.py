"""The split of a head's effect into what it wrote and what the others made of its absence, against the writes of two
plain runs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import AblationSpec, ablate, fit_ablation, study_self_repair
from mechwork.errors import InputError
from mechwork.models.anatomy import final_norm
from tests.families import NATIVE, borrowed, build_model, build_native, build_task


def worths(model: Any, task: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Every write at the last token times the final norm's gain and the answers' unembedding, one by one; stream and
    scale.
    """
    pairs = task.pairs
    _, cache = model.run_with_cache(pairs.clean_tokens)
    norm = final_norm(model)
    found = {}

    def worth(x: torch.Tensor) -> torch.Tensor:
        x = x[:, -1]
        if norm is not None:
            x = norm.gain * (x - x.mean(-1, keepdim=True) if norm.centred else x)
        u = model.W_U.T[pairs.correct[:, 0]] - model.W_U.T[pairs.incorrect[:, 0]]
        return (x * u).sum(-1)

    for layer in range(model.cfg.n_layers):
        attn = model.blocks[layer].attn
        writes = torch.einsum("bphe,hed->bphd", cache[f"blocks.{layer}.attn.hook_z"], attn.W_O)
        if "ln1_post" in model.blocks[layer].submodules:
            post = model.blocks[layer].ln1_post
            total = writes.sum(2)
            original = post.original_component
            eps = getattr(original, "eps", None) or original.variance_epsilon
            gain = post.weight + 1 if post.uses_weight_offset else post.weight
            writes = gain * writes / (total.pow(2).mean(-1, keepdim=True) + eps).sqrt()[:, :, None]
        for head in range(model.cfg.n_heads):
            found[f"a{layer}.h{head}"] = worth(writes[:, :, head])
        if not model.cfg.attn_only:
            found[f"m{layer}"] = worth(cache[f"blocks.{layer}.hook_mlp_out"])
    final = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    scale = torch.ones(len(pairs)).double() if norm is None else norm.scale(final[:, -1])[:, 0]
    return found, worth(final), scale


def check(model: Any, kind: str = "mean") -> None:
    task = build_task(n=9)
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    with borrowed(model):
        found = study_self_repair(model, task, ["a0.h1", "a1.h2"], kind=kind)
        fitted = fit_ablation(model, AblationSpec(["a0.h1"], kind), task if kind == "mean" else None)
        with torch.no_grad():
            before, _, scale = worths(model, task)
            with fitted.applied(model, task.pairs):
                after, stream, scale_after = worths(model, task)
        total = ablate(model, task, fitted).per_example
    torch.testing.assert_close(found.total[0], total, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.direct[0], (before["a0.h1"] - after["a0.h1"]) / scale, rtol=0, atol=1e-6)
    others = [name for name in before if name.startswith("a") and name != "a0.h1"]
    torch.testing.assert_close(
        found.by_heads[0], sum((before[n] - after[n]) / scale for n in others), rtol=0, atol=1e-6
    )
    mlps = [name for name in before if name.startswith("m")]
    torch.testing.assert_close(
        found.by_mlps[0],
        sum(((before[n] - after[n]) / scale for n in mlps), torch.zeros(9).double()),
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(found.by_norm[0], stream * (1 / scale - 1 / scale_after), rtol=0, atol=1e-6)
    whole = found.direct + found.by_heads + found.by_mlps + found.by_norm
    torch.testing.assert_close(found.total, whole, rtol=0, atol=1e-5)
    assert float(found.direct.abs().min(dim=1).values.max()) > 0
    assert float(found.repaired.abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma3", "olmo2", "mixtral", "falcon"])
def test_the_parts_are_those_of_two_plain_runs_and_add_up(family: str) -> None:
    check(build_model(family))


@pytest.mark.parametrize("name", [n for n in NATIVE if n not in ("bidirectional", "gated")])
def test_models_without_norms_or_mlps(name: str) -> None:
    model = build_native(name)
    check(model, "zero")


def test_backups_are_named(bundled_model: Any) -> None:
    import mechwork as mw

    found = study_self_repair(bundled_model, mw.tasks.ioi(bundled_model, n=32), ["a4.h1", "a5.h1"])
    assert "backups" in str(found)
    for head in found.ablated:
        for backup in found.backups(head):
            row = found.heads.index(backup.head)
            assert backup.gain == pytest.approx(float(found.gains[found.ablated.index(head), row].mean()))
            assert backup.p < 0.05
            assert int(backup.head[1]) >= int(head[1])
    assert 0 <= float(found.gains[:, found.heads.index("a0.h0")].abs().max()) < 1e-6


def test_metrics_that_do_not_split(tiny_gpt2_64: Any) -> None:
    with pytest.raises(InputError, match="linear"):
        study_self_repair(tiny_gpt2_64, build_task(n=8, metric="log_probability"))
    with pytest.raises(InputError, match="soft cap"):
        study_self_repair(build_model("gemma2"), build_task(n=8))
