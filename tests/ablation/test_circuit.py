"""Ablating everything outside a circuit of nodes is evaluating the circuit of the edges among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import AblationSpec, ablate, outside
from mechwork.circuits import Circuit, EdgeSpace, evaluate
from mechwork.models.anatomy import read_anatomy
from tests.families import borrowed, build_model, build_task

KEPT = ("input", "a0.h0", "a0.h3", "a1.h1", "m0", "a2.h2", "m2")


def circuit_among(model: Any, nodes: tuple[str, ...]) -> Circuit:
    """Every edge between two of the nodes (and to the logits)."""
    space = EdgeSpace.of(read_anatomy(model))
    mask = space.mask.clone()
    for i, writer in enumerate(space.writers):
        for j, reader in enumerate(space.readers):
            owner = reader.split("<")[0]
            group = read_anatomy(model).group_size
            heads = (
                [f"{owner.split('.h')[0]}.h{int(owner.split('.h')[1]) * group + g}" for g in range(group)]
                if reader.endswith(("<k>", "<v>"))
                else [owner]
            )
            mask[i, j] &= writer in nodes and (owner == "logits" or any(head in nodes for head in heads))
    return Circuit(space, mask)


@pytest.mark.parametrize("kind", ["zero", "mean", "corrupt", "resample"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "mixtral"])
def test_equal_to_the_circuit_engine(family: str, kind: str) -> None:
    model, task = build_model(family), build_task(n=10)
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    with borrowed(model):
        expected = evaluate(model, task, circuit_among(model, KEPT), ablation=kind, n_random=0)
        found = ablate(model, task, AblationSpec(outside(read_anatomy(model), KEPT), kind))
    # Hugging Face's RMSNorm computes in float32 inside, the circuit engine's own does not.
    bound = 1e-9 if family in ("gpt2", "neox") else 2e-6
    torch.testing.assert_close(found.ablated_per_example, expected.per_example, rtol=0, atol=bound)
    assert abs(found.effect) > 1e-3


@pytest.mark.parametrize("kind", ["zero", "mean", "corrupt"])
def test_equal_to_the_circuit_engine_where_a_norm_follows_attention(kind: str) -> None:
    """Behind a norm a head's write depends on the other heads' (`EdgeSpace`), so only whole attention blocks and MLPs
    correspond.
    """
    model, task = build_model("gemma2"), build_task(n=10)
    heads = tuple(f"a{layer}.h{head}" for layer in (0, 2) for head in range(read_anatomy(model).n_heads))
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    with borrowed(model):
        expected = evaluate(model, task, circuit_among(model, ("input", *heads, "m1", "m2")), ablation=kind, n_random=0)
        found = ablate(model, task, AblationSpec(["a1", "m0"], kind))
    torch.testing.assert_close(found.ablated_per_example, expected.per_example, rtol=0, atol=2e-6)
    assert abs(found.effect) > 1e-3
