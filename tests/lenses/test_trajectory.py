"""Trajectories and their comparison; patchscopes and the future lens, against literal forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.lenses import (
    LOGIT_LENS,
    LensDecoder,
    Patchscope,
    compare_decoders,
    compare_trajectories,
    fit_future_lens,
    identity_prompt,
    open_text,
    read_lens,
    trajectory,
)
from mechwork.lenses.states import lens_sites, record_states
from mechwork.models.anatomy import read_anatomy
from tests.families import D_VOCAB, build_model
from tests.lenses.test_tuned import random_lens

TOKENS = torch.randint(D_VOCAB, (3, 9), generator=torch.Generator().manual_seed(3))
ROWS = torch.randint(D_VOCAB, (40, 12), generator=torch.Generator().manual_seed(4))


def test_a_trajectory_is_a_column_of_the_table(tiny_gpt2_64: Any) -> None:
    table = read_lens(tiny_gpt2_64, TOKENS, target=4)
    path = trajectory(table, 5)
    assert torch.equal(path.values["kl"], table.kl[:, :, 5])
    assert torch.equal(path.depth, table.prediction_depth[:, 5])
    assert path.tops[2][1] == table.texts[int(table.top_token[2, 1, 5])]
    torch.testing.assert_close(path.mean("rank"), (table.rank[:, :, 5].double() + 1).log2().mean(1).exp2() - 1)
    assert torch.equal(trajectory(table).values["entropy"], table.entropy[:, :, 8])
    assert len(path.to_dataframe()) == 4 * 3
    assert "prediction depth" in str(path)
    with pytest.raises(mw.errors.InputError, match="positions common"):
        trajectory(table, 9)


def test_comparison_of_lenses_prompts_and_models(tiny_gpt2_64: Any) -> None:
    one = trajectory(read_lens(tiny_gpt2_64, TOKENS, target=4))
    other = trajectory(read_lens(tiny_gpt2_64, TOKENS, random_lens(tiny_gpt2_64), target=4))
    same = compare_trajectories(one, other)
    torch.testing.assert_close(same.difference["kl"], other.values["kl"] - one.values["kl"])
    assert float(same.difference["kl"][:-1].abs().max()) > 0.01
    places = (other.values["rank"] + 1).log2() - (one.values["rank"] + 1).log2()
    torch.testing.assert_close(same.difference["rank"], places)
    assert float(places.abs().max()) > 0.1
    assert float(same.difference["kl"][-1].abs().max()) < 1e-9
    low, high = same.interval("kl")
    assert bool((low <= high).all())
    assert "minus" in str(same)
    from mechwork.models.load import load_model
    from tests.families import FAMILIES

    module = FAMILIES["gpt2"]().double()
    module.transformer.h = module.transformer.h[:2]
    module.config.n_layer = 2
    shallow = trajectory(read_lens(load_model(module.eval(), dtype=torch.float64), TOKENS, target=4))
    mixed = compare_trajectories(shallow, one)
    assert len(mixed.share) == 4
    torch.testing.assert_close(
        mixed.difference["kl"][[0, -1]], one.values["kl"][[0, -1]] - shallow.values["kl"][[0, -1]]
    )
    third = shallow.values["entropy"][0] / 3 + shallow.values["entropy"][1] * 2 / 3
    torch.testing.assert_close(mixed.difference["entropy"][1], one.values["entropy"][1] - third)
    with pytest.raises(mw.errors.InputError, match="prompt by prompt"):
        compare_trajectories(one, trajectory(read_lens(tiny_gpt2_64, TOKENS[:2])))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "neox"])
def test_a_patchscope_is_a_run_with_one_state_replaced(family: str) -> None:
    model = build_model(family)
    site, into = mw.Site("resid_pre", 2), mw.Site("resid_pre", 1)
    states = record_states(model, TOKENS, [site])[0][:, 4]
    scope = Patchscope.of(model, [5, 6, 7, 8], position=-2, into=into)
    found = scope.logits(states, site)
    for i, state in enumerate(states):

        def put(x: torch.Tensor, hook: Any, state: torch.Tensor = state) -> torch.Tensor:
            x = x.clone()
            x[0, 2] = state
            return x

        with torch.no_grad():
            literal = model.run_with_hooks(torch.tensor([[5, 6, 7, 8]]), fwd_hooks=[("blocks.1.hook_resid_pre", put)])[
                0, -1
            ]
        torch.testing.assert_close(found[i], literal, rtol=1e-6, atol=1e-6)
    assert float((found[0] - found[1]).abs().max()) > 0.1
    words = scope.generate(states[:2], site, 3)
    assert len(words) == 2
    first = int(found[0].argmax())
    assert words[0].startswith(str(first))


def test_a_patchscope_into_its_own_prompt_changes_nothing(tiny_gpt2_64: Any) -> None:
    site = mw.Site("resid_pre", 1)
    state = record_states(tiny_gpt2_64, TOKENS[:1], [site])[0][:, -1]
    with torch.no_grad():
        own = tiny_gpt2_64(TOKENS[:1])[:, -1]
    torch.testing.assert_close(Patchscope.of(tiny_gpt2_64, TOKENS[0]).logits(state, site), own)


def test_the_future_lens_is_a_regression_on_later_states() -> None:
    model = build_model("llama")
    text = open_text(model, ROWS, packing="documents")
    lens = fit_future_lens(model, text, ahead=2, ridge=0.0)
    sites = lens_sites(read_anatomy(model))
    states = record_states(model, ROWS, sites)
    last = states[-1][:, 2:].flatten(0, 1)
    scale = mw.models.anatomy.final_norm(model)
    assert scale is not None
    weight = (1 / scale.scale(last)).double()
    for site, x in zip(sites, states, strict=True):
        rows = torch.cat([x[:, :-2].flatten(0, 1), torch.ones(len(last), 1, dtype=torch.float64)], 1)
        literal = rows @ torch.linalg.lstsq(weight * rows, weight * last).solution
        torch.testing.assert_close(lens.translate(x[:, :-2].flatten(0, 1), site), literal, rtol=1e-3, atol=1e-3)
    with pytest.raises(mw.errors.InputError, match="at least 1"):
        fit_future_lens(model, text, ahead=0)
    with pytest.raises(mw.errors.InputError, match="more than 40"):
        fit_future_lens(model, text, ahead=40)


def test_decoders_share_one_protocol() -> None:
    model = build_model("gpt2")
    text = open_text(model, ROWS, packing="documents")
    decoders = [
        LensDecoder(model, LOGIT_LENS),
        LensDecoder(model, fit_future_lens(model, text, 1)),
        Patchscope.of(model, [1, 2, 3]),
    ]
    found = compare_decoders(model, decoders, text, n_rows=2, sites=[mw.Site("resid_pre", 1), mw.Site("resid_pre", 2)])
    assert found.decoders == ("logit lens", "future lens (+1)", "patchscope")
    table = read_lens(model, ROWS[:2])
    torch.testing.assert_close(
        found.surprisal[0].double(), table.surprisal[1:3, :, :-1].flatten(1), rtol=1e-4, atol=1e-4
    )
    assert len(found.to_dataframe()) == 6
    assert "patchscope" in str(found)
    later = compare_decoders(model, decoders[:1], text, ahead=3, n_rows=2)
    assert later.surprisal.shape[-1] == 2 * (12 - 4)


def test_the_future_lens_foretells_better_than_the_present_one(bundled_model: Any) -> None:
    text = open_text(bundled_model, "gpt2-6l")
    lens = fit_future_lens(bundled_model, text, 1, n_tokens=8000)
    decoders = [LensDecoder(bundled_model, LOGIT_LENS), LensDecoder(bundled_model, lens)]
    found = compare_decoders(
        bundled_model, decoders, text, ahead=1, n_rows=40, start=5000, sites=[mw.Site("resid_pre", 4)]
    )
    now, future = found.surprisal[:, 0].mean(dim=1).tolist()
    assert future < now - 1


def test_refusals(tiny_gpt2: Any, bundled_model: Any) -> None:
    with pytest.raises(mw.errors.InputError, match="position in it"):
        Patchscope.of(tiny_gpt2, [1, 2], position=5)
    with pytest.raises(mw.errors.InputError, match="residual stream"):
        Patchscope.of(tiny_gpt2, [1, 2], into=mw.Site("mlp_out", 1))
    with pytest.raises(mw.errors.InputError, match="needs decoders"):
        compare_decoders(tiny_gpt2, [], ROWS)
    with pytest.raises(mw.errors.InputError, match="rows of more than 12 tokens"):
        text = open_text(tiny_gpt2, ROWS, packing="documents")
        compare_decoders(tiny_gpt2, [LensDecoder(tiny_gpt2, LOGIT_LENS)], text, ahead=11)
    assert identity_prompt(bundled_model, ["cat", "dog"]).endswith("dog -> dog; x")
