"""Positions are absolute: in one forward and token by token with a key-value cache, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError
from mechwork.interventions import (
    ByCell,
    ByPosition,
    Chosen,
    Constant,
    Entries,
    Noise,
    OnEdges,
    Write,
    Zero,
    intervene,
    track_columns,
)
from mechwork.sites import Site
from tests.families import borrowed


def test_generation_is_what_one_forward_of_its_text_says(family_model64: Any) -> None:
    tokens = torch.tensor([[1, 2, 3, 8, 3, 2], [4, 5, 6, 9, 1, 1]])
    table = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0)).double()
    writes = [Write(Site("attn_out", 1), ByPosition(table)), Write(Site("mlp_out", 0), Noise(torch.ones(32), 3))]
    with borrowed(family_model64) as model, torch.no_grad(), intervene(model, writes):
        made = model.generate(tokens, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
        assert torch.equal(model(made)[:, 5:-1].argmax(dim=-1), made[:, 6:])


def test_columns_count_what_the_cache_holds(tiny_gpt2_64: Any) -> None:
    seen: list[int] = []
    note = ("blocks.0.hook_attn_out", lambda x, hook: seen.append(columns.start))
    with borrowed(tiny_gpt2_64) as model, track_columns(model) as columns, model.hooks(fwd_hooks=[note]):
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False)
    assert seen == [0, 3, 4]


def test_chosen_positions_and_entries() -> None:
    x = torch.randn(2, 4, 3, 5)
    where = torch.tensor([[False, False, True, True, False, True]])
    found = Chosen(Zero(), where).place(x, 2)
    assert not found[:, :2].any()
    assert torch.equal(found[:, 2], x[:, 2])
    assert not found[:, 3].any()
    assert torch.equal(Chosen(Zero(), where).place(x, 6), x)
    heads = Entries(Constant(2.0), (0, 2)).place(x, 0)
    assert bool((heads[:, :, [0, 2]] == 2.0).all())
    assert torch.equal(heads[:, :, 1], x[:, :, 1])
    with pytest.raises(InputError, match="given for 3 prompts"):
        Chosen(Zero(), where.expand(3, -1)).place(x, 0)


@pytest.mark.parametrize("renormalise", [False, True])
def test_edges_by_absolute_cells(renormalise: bool) -> None:
    """Row 2 of a prompt of 4, run alone after two cached columns, is row 2 of the whole."""
    pattern = torch.rand(1, 4, 4).tril().double()
    pattern = pattern / pattern.sum(dim=-1, keepdim=True)
    cells = torch.zeros(1, 4, 4, dtype=torch.bool)
    cells[:, 2, 1] = True
    cells[:, 0, 0] = True
    for inner in (Zero(), ByCell(torch.full((1, 4, 4), 0.5))):
        whole = OnEdges(cells, inner, renormalise).place(pattern, 0)
        alone = OnEdges(cells, inner, renormalise).place(pattern[:, 2:3, :3], 2)
        torch.testing.assert_close(alone, whole[:, 2:3, :3])
        assert float((whole - pattern)[:, 2].abs().max()) > 0
        assert torch.equal(whole[:, [1, 3]], pattern[:, [1, 3]])
        if renormalise:
            assert float(whole[0, 2].sum()) == pytest.approx(1.0)
    assert not OnEdges(cells, Zero(), renormalise=True).place(pattern, 0)[0, 0].any()  # nothing else to look at
