"""Writing features against hooks written by hand, in float64, over the families; transcoders; generation; overflow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mechwork.errors import InputError
from mechwork.features import FeatureSet, FeatureWrite, intervene_features, record_features
from mechwork.interventions import Constant, Entries, Value, Zero
from mechwork.sites import Site
from tests.families import borrowed, build_model
from tests.features.build import coder, features
from tests.reference import literal

TOKENS = torch.tensor([[1, 2, 3, 8, 3, 2], [4, 5, 6, 9, 1, 1]])
SITE = Site("resid_post", 1)


def test_a_write_changes_its_features_and_leaves_the_error(tiny_gpt2_64: Any) -> None:
    made = features(tiny_gpt2_64, SITE)[0]
    write = FeatureWrite(made, Entries(Constant(2.5), (1, 4)))
    with torch.no_grad(), intervene_features(tiny_gpt2_64, [write]):
        found = tiny_gpt2_64(TOKENS)

    def by_hand(y: torch.Tensor, hook: object) -> torch.Tensor:
        f = made.encode(y)
        error = y - made.decode(f)
        f[..., [1, 4]] = 2.5
        return made.decode(f) + error

    with torch.no_grad():
        expected = tiny_gpt2_64.run_with_hooks(TOKENS, fwd_hooks=[(literal.hook("resid_post", 1), by_hand)])
        plain = tiny_gpt2_64(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert float((found - plain).abs().max()) > 1e-2


def test_a_transcoder_writes_elsewhere_than_it_reads(tiny_gpt2_64: Any) -> None:
    made = features(tiny_gpt2_64, (Site("mlp_in", 1), Site("mlp_out", 1)))[0]
    kept: list[torch.Tensor] = []

    def by_hand(y: torch.Tensor, hook: object) -> torch.Tensor:
        f = made.encode(kept[0])
        return y - f[..., [3]] @ made.W_dec[[3]]

    hooks = [("blocks.1.mlp.hook_in", lambda x, hook: kept.append(x)), (literal.hook("mlp_out", 1), by_hand)]
    with torch.no_grad():
        plain, expected = tiny_gpt2_64(TOKENS), tiny_gpt2_64.run_with_hooks(TOKENS, fwd_hooks=hooks)
        with intervene_features(tiny_gpt2_64, [FeatureWrite(made, Entries(Zero(), (3,)))]):
            found = tiny_gpt2_64(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert float((found - plain).abs().max()) > 1e-3


def test_heads_are_coded_side_by_side(tiny_gpt2_64: Any) -> None:
    made = features(tiny_gpt2_64, Site("z", 1))[0]
    with torch.no_grad():
        cache = tiny_gpt2_64.run_with_cache(TOKENS)[1]
        z = cache["blocks.1.attn.hook_z"].flatten(2)
        new = z - made.encode(z)[..., [2]] @ made.W_dec[[2]]
        shape = cache["blocks.1.attn.hook_z"].shape
        expected = tiny_gpt2_64.run_with_hooks(
            TOKENS, fwd_hooks=[("blocks.1.attn.hook_z", lambda x, hook: new.reshape(shape))]
        )
        with intervene_features(tiny_gpt2_64, [FeatureWrite(made, Entries(Zero(), (2,)))]):
            found = tiny_gpt2_64(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert bool((made.encode(z)[..., 2] > 0).any())


def test_patching_all_features_and_the_error_is_patching_the_place(tiny_gpt2_64: Any) -> None:
    made = features(tiny_gpt2_64, SITE, kind="topk")[0]
    other = TOKENS.flip(0)
    donor, host = (record_features(tiny_gpt2_64, t, [made])[0] for t in (other, TOKENS))
    whole = host.written + made.write(donor.features - host.features) + donor.error - host.error
    torch.testing.assert_close(whole, donor.written, rtol=0, atol=1e-12)
    with torch.no_grad(), intervene_features(tiny_gpt2_64, [FeatureWrite(made, Value(donor.features))]):
        found = tiny_gpt2_64.run_with_cache(TOKENS)[1][literal.hook("resid_post", 1)]
    torch.testing.assert_close(found, host.written + made.write(donor.features - host.features), rtol=0, atol=1e-12)
    assert float((found - host.written).abs().max()) > 1e-3


def test_steered_generation_is_what_one_forward_of_its_text_says(tiny_gpt2_64: Any) -> None:
    made = features(tiny_gpt2_64, SITE, (Site("mlp_in", 0), Site("mlp_out", 0)))
    writes = [FeatureWrite(one, Entries(Constant(4.0), (0, 7))) for one in made]
    with borrowed(tiny_gpt2_64) as model, torch.no_grad():
        plain = model.generate(TOKENS, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
        with intervene_features(model, writes):
            text = model.generate(TOKENS, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
            assert torch.equal(model(text)[:, 5:-1].argmax(dim=-1), text[:, 6:])
            one = model(TOKENS[:1])
            torch.testing.assert_close(model(TOKENS)[:1], one, rtol=0, atol=1e-10)
    assert not torch.equal(plain, text)


def test_a_strength_that_overflows_is_named() -> None:
    model = build_model("gpt2", torch.float16)
    with torch.no_grad():
        model(TOKENS)  # a bridge finishes setting itself up in its first forward pass
    made = replace(coder(SITE, 32), W_dec=torch.ones(12, 32).double())
    big = FeatureWrite(made, Entries(Constant(1e6), (0,)))
    with borrowed(model), torch.no_grad():
        with (
            intervene_features(model, [big]),
            pytest.raises(InputError, match=r"overflows at resid_post.1: torch.float16 ends at"),
        ):
            model(TOKENS)
        with intervene_features(model, [FeatureWrite(made, Entries(Constant(3.0), (0,)))]):
            assert bool(model(TOKENS).isfinite().all())


def test_places_that_are_not_there_are_refused(tiny_gpt2: Any) -> None:
    write = FeatureWrite(FeatureSet((coder(Site("mlp_out", 9), 32),))[0], Zero())
    with pytest.raises(InputError, match="layer"), intervene_features(tiny_gpt2, [write]):
        pass
    with (
        pytest.raises(InputError, match="vectors of 6 numbers"),
        intervene_features(tiny_gpt2, [FeatureWrite(coder(SITE, 6), Zero())]),
    ):
        pass
