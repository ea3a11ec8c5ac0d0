"""The readout is the model's own: equal to its logits at the last layer and to the host's kernel, on every
architecture.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformer_lens.tools.analysis import logit_lens as host_lens
from transformer_lens.tools.analysis import logit_readout

import mechwork as mw
from mechwork.lenses import Readout, read_lens
from mechwork.lenses.states import lens_sites, record_states
from mechwork.models.anatomy import read_anatomy
from tests.families import D_VOCAB, NATIVE, build_native

TOKENS = torch.randint(D_VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))


def test_the_last_place_gives_the_models_logits(family_model: Any) -> None:
    sites = lens_sites(read_anatomy(family_model))
    states = record_states(family_model, TOKENS, sites)
    with torch.no_grad():
        logits = family_model(TOKENS)
    assert float(logits.abs().max()) > 0.5
    assert float((Readout.of(family_model).logits(states[-1]) - logits).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", NATIVE)
def test_native_models_too(name: str) -> None:
    model = build_native(name)
    with torch.no_grad():
        logits = model(TOKENS)
    state = record_states(model, TOKENS, lens_sites(read_anatomy(model)))[-1]
    torch.testing.assert_close(Readout.of(model).logits(state), logits, rtol=1e-9, atol=1e-9)


def test_every_number_equals_the_hosts(family_model64: Any) -> None:
    """The host computes one selector per call, at places it names itself; in float32 inside."""
    model = family_model64
    table = read_lens(model, TOKENS, target=5, top_k=4)
    by_target = host_lens(model, TOKENS, positions=None, targets=5, return_type="log_probs")
    tops = host_lens(model, TOKENS, positions=None, top_k=4, return_type="probs")
    assert len(table.places) == len(by_target.labels)
    assert by_target.readout.target_ranks is not None
    assert tops.readout.top_ids is not None
    torch.testing.assert_close(
        table.surprisal.float(), -by_target.values[..., 0].float() / torch.log(torch.tensor(2.0)), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(table.rank, by_target.readout.target_ranks[..., 0])
    torch.testing.assert_close(
        table.entropy.float(), by_target.readout.entropy / torch.log(torch.tensor(2.0)), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(table.top_probabilities.float(), tops.values.float(), rtol=1e-4, atol=1e-6)
    assert torch.equal(table.top_ids, tops.readout.top_ids)
    assert table.rank.float().std() > 1


def test_logits_are_the_hosts_to_the_bit(family_model: Any, seed: int) -> None:
    vectors = torch.randn(5, 32)
    assert torch.equal(Readout.of(family_model).logits(vectors), logit_readout(family_model, vectors).values)


def test_divergence_is_the_literal_sum(tiny_gpt2_64: Any) -> None:
    states = record_states(tiny_gpt2_64, TOKENS, lens_sites(read_anatomy(tiny_gpt2_64)))
    p = tiny_gpt2_64(TOKENS).softmax(-1)
    table = read_lens(tiny_gpt2_64, TOKENS)
    for k, x in enumerate(states):
        q = Readout.of(tiny_gpt2_64).logits(x).softmax(-1)
        expected = torch.tensor(
            [
                [
                    sum(float(a) * float(torch.log2(a / b)) for a, b in zip(*pq, strict=True))
                    for pq in zip(*rows, strict=True)
                ]
                for rows in zip(p, q, strict=True)
            ],
            dtype=torch.float64,
        )
        torch.testing.assert_close(table.kl[k], expected, rtol=1e-6, atol=1e-9)
    assert float(table.kl[0].mean()) > 1
    assert float(table.kl[-1].max()) < 1e-9


def test_a_small_budget_changes_nothing(tiny_gpt2_64: Any, seed: int) -> None:
    vectors = torch.randn(7, 3, 32, dtype=torch.float64)
    small, large = (
        Readout.of(tiny_gpt2_64, budget).read(vectors, top_k=3, targets=torch.tensor(4), reference=vectors.flip(0))
        for budget in (1, 10**9)
    )
    for name, value in vars(small).items():
        torch.testing.assert_close(value, vars(large)[name], rtol=1e-12, atol=1e-12)


def test_no_more_logits_are_held_than_the_budget(tiny_gpt2_64: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, sizes = torch.randn(23, 32, dtype=torch.float64), list[int]()
    real = Readout.logits

    def counted(self: Readout, x: torch.Tensor) -> torch.Tensor:
        found = real(self, x)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(Readout, "logits", counted)
    Readout.of(tiny_gpt2_64, 5 * D_VOCAB + 3).read(vectors)
    assert sizes == [5 * D_VOCAB] * 4 + [3 * D_VOCAB]


def test_places_between_attention_and_mlp(tiny_gpt2: Any) -> None:
    table = read_lens(tiny_gpt2, TOKENS, kinds=("resid_pre", "resid_mid", "resid_post"))
    assert table.places[:4] == ("resid_pre.0", "resid_mid.0", "resid_post.0", "resid_pre.1")
    assert table.places[-1] == "resid_post.2"
    assert len(table.places) == 9


def test_many_prompts_are_read_in_parts(tiny_gpt2_64: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_lens(tiny_gpt2_64, TOKENS.repeat(3, 1))
    monkeypatch.setattr("mechwork.lenses.table.rows_that_fit", lambda *_, **__: 4)
    parts = read_lens(tiny_gpt2_64, TOKENS.repeat(3, 1))
    for name in ("kl", "surprisal", "entropy", "top_ids", "targets"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_prediction_depth_by_hand(tiny_gpt2_64: Any) -> None:
    table = read_lens(tiny_gpt2_64, TOKENS)
    top = table.top_token
    for row in range(2):
        for pos in range(9):
            depth = len(table.places) - 1
            while depth > 0 and top[depth - 1, row, pos] == top[-1, row, pos]:
                depth -= 1
            assert int(table.prediction_depth[row, pos]) == depth


def test_text_targets_and_round_trip(bundled_model: Any, tmp_path: Any) -> None:
    prompts = ["The girl went to the park and", "When Mary and John went to the shop, John gave a drink to"]
    table = read_lens(bundled_model, prompts, target=" Mary", top_k=3)
    ends = table.mask.sum(1) - 1
    assert table.words(-1, 1, int(ends[1]))[0][0] == " Mary"
    assert int(table.rank[-1, 1, ends[1]]) == 0
    assert table.prompt(0)[1:] == ["The", " girl", " went", " to", " the", " park", " and"]
    alone = read_lens(bundled_model, prompts[0], target=" Mary", top_k=3)
    torch.testing.assert_close(
        table.surprisal[:, 0, : alone.surprisal.shape[2]], alone.surprisal[:, 0], rtol=1e-4, atol=1e-3
    )
    again = type(table).load(table.save(tmp_path / "table"))
    assert again.places == table.places
    assert again.texts == table.texts
    assert torch.equal(again.kl, table.kl)
    frame = table.to_dataframe()
    assert len(frame) == len(table.places) * int(table.mask.sum())
    assert " Mary" in str(table)


def test_without_a_target_it_is_the_next_token(bundled_model: Any) -> None:
    table = read_lens(bundled_model, "When Mary and John went to the shop, John gave a drink to")
    assert torch.equal(table.targets[0, :-1], table.tokens[0, 1:])
    assert int(table.targets[0, -1]) == int(table.top_token[-1, 0, -1])


def test_refusals(bundled_model: Any) -> None:
    with pytest.raises(mw.errors.InputError, match="single token"):
        read_lens(bundled_model, "The cat", target=" unbelievableness")
    with pytest.raises(mw.errors.InputError, match="empty"):
        read_lens(bundled_model, "")
    with pytest.raises(mw.errors.InputError, match="at most 128 tokens"):
        read_lens(bundled_model, [[5] * 200])
    with pytest.raises(mw.errors.InputError, match="residual stream"):
        read_lens(bundled_model, "The cat", kinds=("z",))
    with pytest.raises(mw.errors.InputError, match="token ids"):
        read_lens(bundled_model, "The cat", target=torch.tensor([1, 2, 3]))
    with pytest.raises(mw.errors.InputError, match="top_k"):
        read_lens(bundled_model, "The cat", top_k=0)
