"""Every preset on every architecture equals rules written a second time, at the level of torch's functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.patching.attribution import find_coefficients
from mechwork.relevance import PRESETS
from mechwork.runs import record_run
from mechwork.tasks.task import Task
from tests.reference.oracle import coefficient

D_MLP = {"gpt2": 128, "gptj": 128, "falcon": 128}
EXACT = {"gpt2", "neox", "opt", "gptj", "falcon"}
"""Families whose norms compute in the model's dtype. The others' RMSNorm computes in float32 inside, whatever the
model's.
"""


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if not preset.grad_drop])
def test_coefficients_equal_the_oracle(family_model64: Any, family: str, tiny_task: Task, name: str) -> None:
    model, tokens = family_model64, tiny_task.pairs.clean_tokens
    with PRESETS[name].context(model, strict=True):
        run = record_run(model, tiny_task.pairs, ["resid_pre"], grad=True)
        value = tiny_task.metric(run.logits, tiny_task.pairs).sum()
    mine = find_coefficients(run, value, ["resid_pre"])["resid_pre"][0]
    d_mlp = D_MLP.get(family, 48)
    theirs = coefficient(model, tokens, lambda logits: tiny_task.metric(logits, tiny_task.pairs), name, d_mlp=d_mlp)
    # OPT's attention and every RMSNorm's softmax run in float32 inside, which only GIM's softmax rule goes through.
    exact = family in EXACT and not (family == "opt" and name == "gim")
    assert float(theirs.abs().max()) > 1e-3
    assert float((mine - theirs).norm() / theirs.norm()) <= (1e-9 if exact else 1e-6)


def test_the_oracle_is_not_the_gradient(family_model64: Any, family: str, tiny_task: Task) -> None:
    """Every rule the oracle knows changes what it returns: it cannot agree by doing nothing."""

    def found(name: str) -> torch.Tensor:
        tokens, d_mlp = tiny_task.pairs.clean_tokens, D_MLP.get(family, 48)
        return coefficient(
            family_model64, tokens, lambda logits: tiny_task.metric(logits, tiny_task.pairs), name, d_mlp=d_mlp
        )

    names = ["gradient", "cp_lrp", "relp", "relp_ah", "attnlrp", "gim"]
    if family == "opt":  # the gradient of a relu is its Identity-rule, so that CP-LRP is RelP + AH
        names.remove("cp_lrp")
    results = [found(name) for name in names]
    for i, a in enumerate(results):
        for b in results[i + 1 :]:
            assert float((a - b).norm() / a.norm()) > 1e-3
