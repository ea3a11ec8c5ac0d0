"""Preference pairs: scores token by token, and the rate against autograd on the unembedding itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError
from mechwork.lenses import Displacement, study_displacement
from tests.families import borrowed, build_model

PROMPTS, GOOD, BAD = (
    [[1, 2, 3], [4, 5], [6, 7, 8, 9], [2, 9]],
    [[7], [8, 9], [3, 4], [11]],
    [[10], [11], [5, 6, 7], [12]],
)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_scores_and_rates_are_those_of_single_prompts(family: str, tmp_path: Any) -> None:
    model = build_model(family)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    with borrowed(model):
        found = study_displacement(model, PROMPTS, GOOD, BAD)
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0
    for i, prompt in enumerate(PROMPTS):
        sums, grads, logs, lengths = [], [], [], []
        for answer in (GOOD[i], BAD[i]):
            states: list[torch.Tensor] = []
            tokens = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                model.run_with_hooks(tokens, fwd_hooks=[("unembed.hook_in", lambda x, hook, s=states: s.append(x[0]))])
            h = states[0][len(prompt) - 1 : -1].double()
            W = model.W_U.detach().double().requires_grad_(True)
            logits = h @ W + model.b_U.detach()
            logits = cap * (logits / cap).tanh() if cap > 0 else logits
            log_p = logits.log_softmax(-1)[range(len(answer)), answer].sum()
            grads.append(torch.autograd.grad(log_p, W)[0])
            sums.append(h.sum(dim=0))
            logs.append(float(log_p.detach()))
            lengths.append(len(answer))
        assert float(found.ches[i]) == pytest.approx(float(sums[0] @ sums[1] - sums[0] @ sums[0]), rel=1e-5)
        short = [s / n for s, n in zip(sums, lengths, strict=True)]
        assert float(found.by_length[i]) == pytest.approx(float(short[0] @ short[1] - short[0] @ short[0]), rel=1e-5)
        rate = (grads[0] * grads[0]).sum() - (grads[0] * grads[1]).sum()
        assert float(found.rate[i]) == pytest.approx(float(rate), rel=1e-5)
        assert found.log_p[i].tolist() == pytest.approx(logs, abs=1e-5)
    assert Displacement.load(found.save(tmp_path / "ches")).control == found.control
    assert "by lot" in str(found)


def test_bad_input_is_refused(tiny_gpt2_64: Any) -> None:
    def refused(words: str, *parts: Any) -> None:
        with pytest.raises(InputError, match=words):
            study_displacement(tiny_gpt2_64, *parts)

    refused("two answers; got 4, 3, 4", PROMPTS, GOOD[:3], BAD)
    refused("pair 1 has an empty one", PROMPTS, [GOOD[0], [], *GOOD[2:]], BAD)
    refused("are the same", PROMPTS, GOOD, [BAD[0], GOOD[1], *BAD[2:]])
    refused("one token follow the same state", PROMPTS, [a[:1] for a in GOOD], [[b[0] + 40] for b in BAD])
    refused("below 97", PROMPTS, [[99], *GOOD[1:]], BAD)
