"""Copy suppression on a head built to do it, and the tables against loops."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mechwork.ablation import study_copy_suppression
from mechwork.ablation.suppression_weights import qk_evidence
from mechwork.circuits.ground_truth.weights import SHARP, BlockWeights, Blueprint, HeadWeights, NamedStream
from mechwork.errors import InputError
from mechwork.tasks.task import Task
from tests.families import build_model, build_task

V, N_POS = 12, 6


def suppressor() -> Any:
    """Layer 0 predicts what is in the context (the most frequent token most); a1.h0 attends to the predicted token and
    lowers it.
    """
    s = NamedStream(token=V, pos=N_POS, predicted=V)
    token, predicted = s.read("token"), s.read("predicted")
    return Blueprint(
        name="suppressor",
        embed=s.write("token", torch.eye(V)),
        pos=s.write("pos", torch.eye(N_POS)),
        unembed=s.read("predicted"),
        blocks=[
            BlockWeights([HeadWeights(v=token, o=4 * predicted.T)]),
            BlockWeights(
                [
                    HeadWeights(q=SHARP * predicted, k=token, v=token, o=-3 * predicted.T),
                    HeadWeights(v=0 * token, o=0 * predicted.T),
                ]
            ),
        ],
    ).build()


def suppressed_task(n: int = 12) -> Task:
    """One token stands twice, the others once: it is what is predicted."""
    rng = random.Random(0)
    rows = [rng.sample(range(V), 6) for _ in range(n)]
    clean = [[a, b, a, c, d, e] for a, b, c, d, e, _ in rows]
    corrupt = [[f, b, a, c, d, e] for a, b, c, d, e, f in rows]
    return Task.from_tokens(clean, corrupt, [row[0] for row in rows], [row[1] for row in rows])


def test_a_head_built_to_suppress_is_found() -> None:
    found = study_copy_suppression(
        suppressor(), suppressed_task(), ["a1.h0", "a1.h1"], tokens=torch.arange(V), n_lowest=1
    )
    row, idle = (next(r for r in found.rows if r.head == name) for name in ("a1.h0", "a1.h1"))
    assert row.ov_among_lowest == row.qk_first == row.qk_percentile == 1.0
    assert row.ov_percentile == 0.0
    assert row.share_explained == pytest.approx(1.0, abs=0.02)
    assert row.kl_ablated > 0.1
    assert idle.ov_percentile == pytest.approx(0.5)
    assert idle.qk_percentile == pytest.approx(0.5)
    assert idle.ov_among_lowest == idle.qk_first == 0.0
    assert idle.kl_ablated == pytest.approx(0, abs=1e-12)
    assert row.direct_effect < 0
    assert found.negative == ("a1.h0",)
    assert found.chance_first == found.chance_lowest == pytest.approx(1 / V)
    assert "explained" in str(found)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_random_heads_are_near_chance(family: str) -> None:
    found = study_copy_suppression(build_model(family), build_task(n=12), n_heads=12, tokens=torch.arange(97))
    assert len(found.rows) == 12
    assert [r.direct_effect for r in found.rows] == sorted(r.direct_effect for r in found.rows)
    for name in ("ov_percentile", "qk_percentile"):
        mean = sum(getattr(r, name) for r in found.rows) / 12
        assert mean == pytest.approx(0.5, abs=0.1)
    assert all(r.kl_ablated > 0 for r in found.rows)
    assert set(found.negative) == {r.head for r in found.rows if r.direct_effect < 0 and r.p < 0.05}


def test_where_it_cannot_be_read_off() -> None:
    for family in ("gemma2", "olmo2"):
        with pytest.raises(InputError, match="norm after attention"):
            study_copy_suppression(build_model(family), build_task(n=8))
    with pytest.raises(InputError, match="a9"):
        study_copy_suppression(build_model("gpt2"), build_task(n=8), ["a9.h0"])


def test_sources_are_ranked_by_prediction_above_their_base_rate(seed: int) -> None:
    """The literal form: every token's logit at every position, one vector at a time. A frequent token loses
    its lead.
    """
    from mechwork.ablation.suppression import _above_base_rate

    model, task = build_model("gpt2"), build_task(n=4)  # its norm computes in float64, unlike RMSNorm's
    pairs = task.pairs
    stream = torch.randn(4, 10, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = _above_base_rate(model, pairs, stream)
    norm, present = model.ln_final, set(pairs.clean_tokens.flatten().tolist())
    logits = torch.stack([torch.stack([norm(x[None, None])[0, 0] @ model.W_U for x in row]) for row in stream])
    logits = logits - logits.mean(dim=-1, keepdim=True)
    for token in range(97):
        if token not in present:
            assert bool(found[:, token].isneginf().all())
            continue
        expected = logits[:, 9, token] - sum(logits[b, p, token] for b in range(4) for p in range(10)) / 40
        torch.testing.assert_close(found[:, token], expected, rtol=0, atol=1e-9)


def test_evidence_is_of_the_given_tokens_by_loops() -> None:
    """Each sampled token alone after BOS; its own logit among all, its own key among the sampled ones."""
    model, layer, head = build_model("gpt2"), 1, 2
    model.tokenizer = SimpleNamespace(bos_token_id=11)
    tokens = torch.tensor([3, 50, 7, 96, 20, 61])
    attn, norm = model.blocks[layer].attn, model.blocks[layer].ln1
    gain = model.ln_final.weight
    streams, lowest, below = [], 0, 0.0
    with torch.no_grad():
        for token in tokens.tolist():
            e = model.run_with_cache(torch.tensor([[11, token]]))[1]["blocks.0.hook_resid_post"][0, -1]
            streams.append(e)
            write = norm(e[None, None])[0, 0] @ attn.W_V[head] @ attn.W_O[head]
            logits = ((write - write.mean()) * gain @ model.W_U).tolist()
            rank = sum(value < logits[token] for value in logits)
            lowest += rank < 20
            below += rank / 96
        columns = [model.W_U[:, token] for token in tokens.tolist()]
        size = sum(float(e.norm()) for e in streams) / len(streams)
        first, percentiles = 0, 0.0
        keys = [norm(e[None, None])[0, 0] @ attn.W_K[head] + attn.b_K[head] for e in streams]
        for i, column in enumerate(columns):
            q = norm((column / column.norm() * size)[None, None])[0, 0] @ attn.W_Q[head] + attn.b_Q[head]
            scores = [float(q @ k) for k in keys]
            rank = sum(value < scores[i] for value in scores)
            first += rank == len(tokens) - 1
            percentiles += rank / (len(tokens) - 1)
    found = study_copy_suppression(model, build_task(n=4), ["a1.h2"], tokens=tokens, n_lowest=20).rows[0]
    assert (found.ov_among_lowest, found.ov_percentile) == pytest.approx((lowest / 6, below / 6))
    assert (found.qk_first, found.qk_percentile) == pytest.approx((first / 6, percentiles / 6))
    assert 0 < found.ov_among_lowest < 1
    with torch.no_grad():
        assert qk_evidence(model, layer, head, torch.stack(streams[:1]), tokens[:1]) == (1.0, 0.0), "alone it is first"
