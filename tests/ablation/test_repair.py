"""The split of a head's effect into what it wrote and what the others made of its absence, against the writes of two
plain runs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import AblationSpec, ablate, fit_ablation, study_self_repair
from mechwork.circuits.ground_truth.weights import SHARP, BlockWeights, Blueprint, HeadWeights, NamedStream
from mechwork.errors import InputError
from mechwork.models.anatomy import final_norm
from mechwork.tasks.task import Task
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


V, N_POS, SOURCE = 16, 6, 2
SIGNS = (1, 1, 1, -1, 1, -1, 1, 1, -1, 1, 1, -1)


def planted() -> tuple[Any, Task]:
    """a0.h0 moves the token at column 2 to the answer. Where that is missing, the heads of layer 1 look there instead
    of at column 0, and write it: h0 fully, h1 by .04, h2 by .06, h3 by .3 with a sign that changes from pair to pair.
    """
    s = NamedStream(token=V, pos=N_POS, said=V)
    token, pos, said = s.read("token"), s.read("pos"), s.read("said")
    here = torch.ones(N_POS, 1).double()
    missing = torch.cat([said @ torch.ones(V, 1).double(), 0.5 * pos @ here], dim=1)
    looks = SHARP * missing
    places = torch.stack([pos[:, 0], pos[:, SOURCE]], dim=1)
    words = torch.eye(V).double()
    words[0] = 0  # column 0 always holds token 0, which nobody says
    signs = words.clone()
    for row, sign in enumerate(SIGNS):
        signs[1 + row] *= 0.3 * sign
    last = SHARP * pos @ here
    model = Blueprint(
        name="backup",
        embed=s.write("token", torch.eye(V)),
        pos=s.write("pos", torch.eye(N_POS)),
        unembed=s.read("said"),
        blocks=[
            BlockWeights([HeadWeights(q=last, k=places[:, 1:], v=token, o=said.T)]),
            BlockWeights(
                [
                    HeadWeights(q=looks, k=places, v=token, o=scale @ said.T)
                    for scale in (words, 0.04 * words, 0.06 * words, signs)
                ]
            ),
        ],
    ).build()  # fmt: skip
    clean = [[0, 14, 1 + row, 13, 14, 13] for row in range(len(SIGNS))]
    corrupt = [[0, 14, 15, 13, 14, 13] for _ in SIGNS]
    return model, Task.from_tokens(clean, corrupt, [1 + row for row in range(len(SIGNS))], [15] * len(SIGNS))


def test_a_planted_backup_is_named_with_its_gain() -> None:
    model, task = planted()
    found = study_self_repair(model, task, ["a0.h0", "a1.h0"], kind="zero")
    backups = found.backups("a0.h0")
    assert [backup.head for backup in backups] == ["a1.h0", "a1.h2"], "h1 gains too little, h3 as often as it loses"
    assert backups[0].gain == pytest.approx(1, abs=1e-6)
    assert backups[1].gain == pytest.approx(0.06, abs=1e-6)
    assert all(backup.p < 0.05 for backup in backups)
    assert float(found.gains[0, found.heads.index("a1.h1")].mean()) == pytest.approx(0.04, abs=1e-6)
    assert float(found.gains[0, found.heads.index("a1.h3")].mean()) == pytest.approx(0.3 / 3, abs=1e-6)
    assert found.backups("a1.h0") == ()
    assert float(found.direct[0].mean()) == pytest.approx(1)
    assert float(found.repaired[0].mean()) == pytest.approx(1 + 0.04 + 0.06 + 0.1, abs=1e-6)
    assert float(found.by_heads[0].mean()) == pytest.approx(-1.2, abs=1e-6)
    assert found.share() == pytest.approx(1.2, abs=1e-6)
    assert found.share(least=1.0) == pytest.approx(1.2, abs=1e-6), "the strongest head alone"
    row = found.to_dataframe().set_index("head").loc["a0.h0"]
    assert row["backups"] == "a1.h0 a1.h2"
    assert row["by_heads"] == pytest.approx(1.2, abs=1e-6)
    assert "a1.h0 +1.00" in str(found)


def test_metrics_that_do_not_split(tiny_gpt2_64: Any) -> None:
    with pytest.raises(InputError, match="linear"):
        study_self_repair(tiny_gpt2_64, build_task(n=8, metric="log_probability"))
    with pytest.raises(InputError, match="soft cap"):
        study_self_repair(build_model("gemma2"), build_task(n=8))
