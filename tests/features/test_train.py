"""The trainer: resumed runs are identical to the bit, folding keeps the loss, sparse codes are found, bad input is
refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.errors import ArtefactError, InputError
from mechwork.features import FeatureRecipe, evaluate_features, load_features, train_features
from mechwork.lenses import open_text
from mechwork.sites import Site
from tests.families import D_VOCAB

PLACES = [Site("resid_post", 0), Site("attn_out", 1)]
SMALL = FeatureRecipe(n_features=24, k=4, steps=8, step_tokens=64, scale_tokens=128, held_out_rows=4, dead_tokens=100)


def text(n: int = 60) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(D_VOCAB, (12,), generator=generator).tolist() for _ in range(n)]


def stream(model: Any) -> Any:
    return open_text(model, text(), packing="documents")


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_a_resumed_run_is_the_same_to_the_bit(tiny_gpt2: Any, tmp_path: Path, kind: str) -> None:
    recipe = FeatureRecipe(**{**SMALL.to_dict(), "kind": kind})
    whole = train_features(tiny_gpt2, stream(tiny_gpt2), PLACES, recipe)
    assert whole.finished
    stopped = train_features(tiny_gpt2, stream(tiny_gpt2), PLACES, recipe, folder=tmp_path, stop_after=5)
    assert (stopped.step, stopped.finished) == (5, False)
    again = train_features(tiny_gpt2, stream(tiny_gpt2), PLACES, recipe, folder=tmp_path)
    assert again.features.places == ("resid_post.0", "attn_out.1")
    for a, b, c in zip(whole.features, again.features, stopped.features, strict=True):
        for name, tensor in a.tensors().items():
            assert torch.equal(tensor, b.tensors()[name]), name
        assert not torch.equal(a.W_enc, c.W_enc)
    assert again.features.provenance["text"] == whole.features.provenance["text"]
    with pytest.raises(ArtefactError, match="another run"):
        train_features(tiny_gpt2, stream(tiny_gpt2), PLACES[:1], recipe, folder=tmp_path)


def test_training_explains_more_and_folding_keeps_it(tiny_gpt2: Any, tmp_path: Path) -> None:
    recipe = FeatureRecipe(**{**SMALL.to_dict(), "steps": 60, "n_features": 64, "k": 8, "learning_rate": 1e-2})
    training = train_features(tiny_gpt2, stream(tiny_gpt2), PLACES, recipe)
    first, last = training.history[0]["unexplained"], training.history[-1]["unexplained"]
    assert all(b < a < 1 for a, b in zip(first, last, strict=True))
    measured = evaluate_features(tiny_gpt2, training.features, stream(tiny_gpt2), n_rows=40, start=4)
    for left, there, random in zip(measured.unexplained, last, measured.random_unexplained, strict=True):
        assert left == pytest.approx(there, rel=0.25)  # the same text, another batch
        assert left < 0.8 * random
    assert measured.l0 == pytest.approx((8.0, 8.0), abs=0.2)
    for coder in training.features:
        torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(64))
    kept = load_features(tiny_gpt2, training.features.save(tmp_path / "kept", torch.float16))
    assert kept.provenance["recipe"]["k"] == 8
    x = torch.randn(5, 32)
    torch.testing.assert_close(kept[0].W_enc, training.features[0].W_enc.half().float())
    assert bool((kept[0].encode(x) > 0).any())


def test_a_transcoder_learns_a_map(tiny_gpt2: Any) -> None:
    recipe = FeatureRecipe(**{**SMALL.to_dict(), "steps": 60, "n_features": 64, "k": 8, "learning_rate": 1e-2})
    training = train_features(tiny_gpt2, stream(tiny_gpt2), [(Site("mlp_in", 1), Site("mlp_out", 1))], recipe)
    coder = training.features[0]
    assert coder.is_transcoder
    assert training.history[-1]["unexplained"][0] < 0.9 * training.history[0]["unexplained"][0]
    measured = evaluate_features(tiny_gpt2, training.features, stream(tiny_gpt2), n_rows=20, start=4)
    assert measured.unexplained[0] < 1


def test_contracts(tiny_gpt2: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few rows"):
        train_features(tiny_gpt2, open_text(tiny_gpt2, text(3), packing="documents"), PLACES, SMALL)
    with pytest.raises(InputError, match="one place or more"):
        train_features(tiny_gpt2, stream(tiny_gpt2), [], SMALL)
    with pytest.raises(InputError, match="have one width"):
        train_features(tiny_gpt2, stream(tiny_gpt2), [PLACES[0], Site("mlp_post", 0)], SMALL)
    with pytest.raises(InputError, match="one vector per position"):
        train_features(tiny_gpt2, stream(tiny_gpt2), [Site("pattern", 0)], SMALL)
    with pytest.raises(InputError, match="layer"):
        train_features(tiny_gpt2, stream(tiny_gpt2), [Site("resid_post", 5)], SMALL)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        train_features(tiny_gpt2, stream(tiny_gpt2), PLACES, SMALL, folder=tmp_path / "file")
    for wrong, said in (
        ({"kind": "gated"}, "topk or relu"), ({"k": 40}, "k is at most"), ({"steps": -1}, "at least 0"),
        ({"learning_rate": 0.0}, "positive"), ({"warm_up": 1.0}, "warm_up is in"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            FeatureRecipe(**{**SMALL.to_dict(), **wrong})
    rates = [SMALL.rate(i) for i in range(SMALL.steps)]
    assert max(rates) == SMALL.learning_rate
    assert rates[-1] < rates[3]
