"""Causal bases and stimulus-response alignment: by hand, in the exact case, and against random directions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.lenses import LOGIT_LENS, Readout, align_stimulus_response, extract_causal_basis
from mechwork.lenses.causal import _start
from mechwork.lenses.states import record_states
from tests.families import D_VOCAB, build_model
from tests.lenses.test_tuned import random_lens

ROWS = torch.randint(D_VOCAB, (6, 8), generator=torch.Generator().manual_seed(4))


def literal_influence(model: Any, lens: Any, site: mw.Site, v: torch.Tensor) -> float:
    """The mean divergence in bits, state by state."""
    x = record_states(model, ROWS.reshape(1, -1)[:, :48], [site])[0][0]
    mean, total = x.mean(0), 0.0
    readout = Readout.of(model)
    for h in x:
        p = readout.logits(lens.translate(h, site)).softmax(-1)
        q = readout.logits(lens.translate(h + v * (v @ (mean - h)), site)).softmax(-1)
        total += float((p * (p / q).log()).sum()) / math.log(2)
    return total / len(x)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_influence_is_literal_and_greater_than_any_starts(family: str) -> None:
    model = build_model(family)
    lens, site = random_lens(model), mw.Site("resid_pre", 1)
    basis = extract_causal_basis(model, lens, site, ROWS, k=4)
    assert torch.allclose(basis.vectors.T @ basis.vectors, torch.eye(4, dtype=torch.float64), atol=1e-9)
    for v, found in zip(basis.vectors.T, basis.influence.tolist(), strict=True):
        assert found == pytest.approx(literal_influence(model, lens, site, v), rel=1e-6)
    others = _start(model, lens, site, 32)
    best = max(literal_influence(model, lens, site, others[:, i]) for i in range(32))
    assert float(basis.influence[0]) > best > 0
    assert bool((basis.influence.diff() <= 0).all())


def test_at_the_last_place_stimulus_is_response() -> None:
    """There the logit lens is the model."""
    model, site = build_model("neox"), mw.Site("resid_post", 2)
    basis = extract_causal_basis(model, LOGIT_LENS, site, ROWS, k=3)
    found = align_stimulus_response(model, LOGIT_LENS, basis, ROWS)
    for value in (found.alignment, found.random_alignment):
        torch.testing.assert_close(value, torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.on_lens, found.on_model, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.on_lens, basis.influence, rtol=1e-6, atol=1e-9)
    assert found.rank_correlation == pytest.approx(1.0)
    assert float(found.on_lens.min()) > 0.01


def test_earlier_places_align_in_part() -> None:
    model = build_model("llama")
    basis = extract_causal_basis(model, LOGIT_LENS, mw.Site("resid_pre", 2), ROWS, k=3)
    found = align_stimulus_response(model, LOGIT_LENS, basis, ROWS)
    assert bool((found.alignment.abs() < 1).all())
    assert float(found.on_lens.min()) > float(found.random_on_lens.max()) > 0
    assert len(found.to_dataframe()) == 6
    assert "alignment" in str(found)


def test_refusals(tiny_gpt2: Any) -> None:
    with pytest.raises(mw.errors.InputError, match="k is 1 to"):
        extract_causal_basis(tiny_gpt2, LOGIT_LENS, mw.Site("resid_pre", 1), ROWS, k=40)
    with pytest.raises(mw.errors.InputError, match="reads resid_pre"):
        extract_causal_basis(tiny_gpt2, LOGIT_LENS, mw.Site("mlp_out", 1), ROWS)
    with pytest.raises(mw.errors.InputError, match="two positions"):
        extract_causal_basis(tiny_gpt2, LOGIT_LENS, mw.Site("resid_pre", 1), ROWS, n_rows=0)
