"""Coders: every kind against its formula in float64, what is refused, sets and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.errors import ArtefactError, InputError, NotFoundError, UnknownNameError
from mechwork.features import Coder, FeatureSet, JumpRelu, TopK
from mechwork.features.activations import build_activation
from mechwork.sites import Site
from tests.features.build import KINDS, coder, features
from tests.reference import features as literal

SITE = Site("resid_post", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_formula(kind: str) -> None:
    made = coder(SITE, 6, kind)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = made.encode(x)
    expected = torch.stack([literal.encode(made, row) for row in x])
    torch.testing.assert_close(f, expected, rtol=0, atol=1e-12)
    assert 0 < int((f > 0).sum()) < f.numel()
    y = made.decode(f)
    torch.testing.assert_close(y, f @ made.W_dec + made.b_dec)
    torch.testing.assert_close(made.write(f), f @ made.W_dec)
    assert isinstance(made, Coder)


def test_a_skip_connection_reads_what_was_read() -> None:
    made = coder(Site("mlp_in", 0), 6, "topk", Site("mlp_out", 0), skip=True)
    x = torch.randn(3, 6, dtype=torch.float64)
    f = made.encode(x)
    assert made.W_skip is not None
    torch.testing.assert_close(made.decode(f, x), f @ made.W_dec + made.b_dec + x @ made.W_skip)
    assert int((f > 0).sum(dim=1).max()) <= 3
    with pytest.raises(InputError, match="skip connection"):
        made.decode(f)


def test_pulling_back_is_the_transpose_of_writing() -> None:
    made = coder(SITE, 6)
    f, g = torch.rand(4, made.n_features, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close((made.write(f) * g).sum(), (f * made.pull_back(g)).sum())


def test_half_precision_is_computed_in_float32() -> None:
    made = coder(SITE, 6)
    x = torch.randn(4, 6).half()
    assert made.encode(x).dtype == torch.float32
    torch.testing.assert_close(made.encode(x), made.encode(x.float()))


def test_a_feature_is_a_direction() -> None:
    made = coder(SITE, 6)
    direction = made.direction(3)
    assert direction.site == SITE
    torch.testing.assert_close(direction.vector, made.W_dec[3].float())
    with pytest.raises(InputError, match=r"features at resid_post.1 are 0 to 11"):
        made.direction(12)


def test_what_a_coder_refuses() -> None:
    made = coder(SITE, 6, "jumprelu")
    with pytest.raises(InputError, match=r"b_dec .* has shape \(7,\)"):
        replace(made, b_dec=torch.zeros(7))
    with pytest.raises(InputError, match=r"threshold .* has shape"):
        replace(made, activation=JumpRelu(torch.zeros(5)))
    weights = made.W_enc.clone()
    weights[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"W_enc of the features at resid_post.1 has NaN"):
        replace(made, W_enc=weights)
    with pytest.raises(InputError, match="one vector per position"):
        replace(made, reads=Site("pattern", 1), writes=Site("pattern", 1))
    with pytest.raises(InputError, match="at least one feature"):
        TopK(0)
    with pytest.raises(UnknownNameError, match="kind of feature activation"):
        build_activation("relux", {}, {})


def test_a_set_is_in_the_order_of_the_model() -> None:
    places = [Site("resid_post", 0), Site("mlp_out", 0), Site("attn_out", 1), Site("attn_out", 0)]
    found = FeatureSet(tuple(coder(place, 6) for place in places))
    assert found.places == ("attn_out.0", "mlp_out.0", "resid_post.0", "attn_out.1")
    assert found["mlp_out.0"].reads == places[1]
    assert found.only("attn_out").places == ("attn_out.0", "attn_out.1")
    with pytest.raises(InputError, match=r"no features are written at z.0"):
        found["z.0"]
    with pytest.raises(InputError, match=r"two coders write to mlp_out.0"):
        FeatureSet((coder(places[1], 6), coder(places[1], 6, seed=1)))
    with pytest.raises(InputError, match="at least one coder"):
        FeatureSet(())


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_survives_its_files(kind: str, tmp_path: Path) -> None:
    made = FeatureSet(
        (coder(SITE, 6, kind), coder(Site("mlp_in", 0), 6, kind, Site("mlp_out", 0), skip=True)), name="mine"
    )
    again = FeatureSet.load(made.save(tmp_path / "kept"))
    assert again.places == made.places
    assert again.name == "mine"
    x = torch.randn(5, 6)
    for a, b in zip(again, made, strict=True):
        f = a.encode(x)
        assert torch.equal(f, replace_float(b).encode(x))
        assert bool((f > 0).any())


def replace_float(made: Any) -> Any:
    own = {name: value.float() for name, value in made.tensors().items() if name not in made.activation.tensors()}
    inner = {name: value.float() for name, value in made.activation.tensors().items()}
    return replace(made, **own, activation=type(made.activation)(**inner, **made.activation.settings()))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = FeatureSet((coder(SITE, 6),)).save(tmp_path / "kept")
    with pytest.raises(NotFoundError, match=r"holds no mechwork features"):
        FeatureSet.load(tmp_path)
    (folder / "features.safetensors").write_bytes(b"other")
    with pytest.raises(ArtefactError, match="is not the one"):
        FeatureSet.load(folder)
    big = coder(SITE, 6)
    with pytest.raises(InputError, match=r"overflows torch.float16"):
        FeatureSet((replace(big, b_dec=big.b_dec + 1e6),)).save(tmp_path / "half", torch.float16)


def test_a_set_belongs_to_a_model_of_its_size(tiny_gpt2: Any) -> None:
    features(tiny_gpt2, SITE, Site("z", 0), Site("mlp_post", 2)).check(tiny_gpt2)
    with pytest.raises(InputError, match="vectors of 6 numbers; this model has 32"):
        FeatureSet((coder(SITE, 6),)).check(tiny_gpt2)
    with pytest.raises(InputError, match="layer"):
        FeatureSet((coder(Site("resid_post", 7), 32),)).check(tiny_gpt2)
    with pytest.raises(ArtefactError, match="made for some-model"):
        FeatureSet((coder(SITE, 32),), {"name": "some-model", "weights": "0"}).check(tiny_gpt2)
