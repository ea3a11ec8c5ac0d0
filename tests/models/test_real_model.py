"""On a real pretrained model: what a user does first. `MECHWORK_REAL_MODEL` is the path of a GGUF file; skipped without
it.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.models.identity import hash_file, identify_model

FILE = os.environ.get("MECHWORK_REAL_MODEL", "")

pytestmark = [
    pytest.mark.skipif(not Path(FILE).is_file(), reason="MECHWORK_REAL_MODEL names no GGUF file"),
    pytest.mark.slow,
]


@cache
def real() -> Any:
    return mw.load_model(FILE)


def test_it_says_what_it_is() -> None:
    identity = identify_model(real())
    assert identity["origin"]["gguf_sha256"] == hash_file(Path(FILE))
    assert identity["anatomy"]["n_layers"] == real().cfg.n_layers > 10


def test_it_knows_who_gets_the_drink() -> None:
    model = real()
    tokens = model.to_tokens("When Mary and John went to the store, John gave a drink to", prepend_bos=False)
    with torch.no_grad():
        logits = model(tokens)[0, -1]
    assert model.tokenizer.decode(int(logits.argmax())) == " Mary"


def test_relevance_beats_gradients_on_a_pronoun() -> None:
    """The direction of the RelP paper, on the stream, measured at the spans of four pairs."""
    from mechwork.patching import study_agreement

    model = real()
    task = mw.tasks.pronoun(model, n=4, seed=0)
    assert task.accuracy(model) > 0.7
    study = study_agreement(model, [task], rules=["gradient", "relp"], sites=["resid_pre"], positions="spans")
    plain, relp = (study.rows["pronoun", "resid_pre", name] for name in ("gradient", "relp"))
    assert relp.pearson > plain.pearson
    assert relp.n_large > 10
