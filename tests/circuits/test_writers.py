"""Writes of half-precision models are compared in float32."""

from __future__ import annotations

import pytest
import torch

from mechwork.circuits.graph.space import EdgeSpace
from mechwork.circuits.graph.writers import record_writers, write_differences, writer_kinds
from mechwork.models.anatomy import read_anatomy
from mechwork.runs.record import record_run
from tests.families import build_model, build_task


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_differences_of_bfloat16_writes_are_taken_in_float32(family: str) -> None:
    """Of two close numbers of eight bits a difference in bfloat16 would keep two."""
    model, task = build_model(family, torch.bfloat16), build_task()
    space = EdgeSpace.of(read_anatomy(model))
    clean, corrupt = (record_run(model, task.pairs, writer_kinds(space), corrupt=side) for side in (False, True))
    found = write_differences(model, space, clean, corrupt)
    assert found.dtype == torch.float32
    for layer in space.mlps:
        a, b = (run.layers["mlp_out"][layer].detach() for run in (clean, corrupt))
        assert torch.equal(found[space.mlp_writers(layer).start], a.float() - b.float())
        assert not torch.equal((a - b).float(), a.float() - b.float()), "the fixture does not tell"
    whole = record_writers(model, space, clean).float() - record_writers(model, space, corrupt).float()
    scale = float(whole.abs().max())
    torch.testing.assert_close(found, whole, rtol=0, atol=0.03 * scale)
