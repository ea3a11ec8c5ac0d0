"""Subspace patching against a hook written by hand; the illusion of Makelov et al. 2023 as a case with known answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from mechwork.directions import Direction
from mechwork.errors import InputError
from mechwork.models.load import load_model
from mechwork.patching import (
    Subspace,
    check_illusion,
    check_steering,
    fit_das,
    leading_differences,
    mean_difference,
    neurons,
    patch,
    patch_subspace,
)
from mechwork.patching.illusion import split_subspace
from mechwork.patching.subspace import Across, SubspaceAsFar, SubspaceExchange
from mechwork.runs.room import d_mlp_of
from mechwork.sites import Site, hook_name
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model, build_task, kv_head, rounding


def by_hand(model: Any, task: Task, site: Site, basis: torch.Tensor, pos: int | None) -> torch.Tensor:
    name = hook_name(Site(site.kind, site.layer))
    at: Any = slice(None) if pos is None else pos
    index = (slice(None), at) if site.head is None else (slice(None), at, site.head)
    with torch.no_grad():
        cache = model.run_with_cache(task.pairs.clean_tokens)[1]
        plain = task.metric(model(task.pairs.corrupt_tokens), task.pairs)

        def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            new = activation.clone()
            new[index] += (cache[name][index] - activation[index]) @ basis @ basis.T
            return new

        return task.metric(model.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=[(name, put)]), task.pairs) - plain


def test_equals_a_hook_written_by_hand(family_model64: Any, tiny_task: Task, seed: int) -> None:
    model = family_model64
    sites = [Site("resid_pre", 1), Site("mlp_out", 0), Site("z", 1, 2), Site("k", 1, kv_head(model, 1))]
    sites += [] if model.cfg.num_experts else [Site("mlp_post", 1)]
    for site in sites:
        size = {"z": 8, "k": 8, "mlp_post": d_mlp_of(model)}.get(site.kind, 32)
        subspace = Subspace.of(torch.randn(size, 2).double())
        with borrowed(model):
            whole = patch_subspace(model, tiny_task, site, subspace)
            each = patch_subspace(model, tiny_task, site, subspace, positions="each")
        expected = by_hand(model, tiny_task, site, subspace.basis, None)
        torch.testing.assert_close(whole.per_example.flatten(), expected, rtol=0, atol=rounding(model))
        assert float(expected.abs().max()) > 1e-6
        for pos in (4, 8):
            expected = by_hand(model, tiny_task, site, subspace.basis, pos)
            torch.testing.assert_close(each.per_example[:, 0, pos].flatten(), expected, rtol=0, atol=rounding(model))


def test_the_whole_space_is_the_whole_patch(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    whole = patch(tiny_gpt2_64, tiny_task, ["mlp_out"], positions="all")["mlp_out"].per_example[:, 1]
    along = patch_subspace(tiny_gpt2_64, tiny_task, Site("mlp_out", 1), Subspace(torch.eye(32).double()))
    torch.testing.assert_close(along.per_example.flatten(), whole, rtol=0, atol=1e-9)


def test_the_papers_two_layer_example() -> None:
    """h = x (1, 0, 1), y = h . (0, 2, 1): one unit is disconnected, one dormant, one mediates; (1, 1, 0) works as the
    third does.
    """
    into, out = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
    host, donor = 2.0 * into, 5.0 * into
    disconnected, dormant, mediating = torch.eye(3)

    def effect(direction: torch.Tensor) -> float:
        return float((SubspaceExchange(Subspace.of(direction))(donor, host) - host) @ out)

    assert effect(mediating) == pytest.approx(3.0)
    assert effect(disconnected + dormant) == pytest.approx(3.0)
    assert effect(disconnected) == 0
    assert effect(dormant) == 0


def illusion_model() -> tuple[Any, Task]:
    """The example inside a transformer: neuron 0 disconnected, 1 dormant, 2 mediates what 0 also computes."""
    torch.manual_seed(0)
    module: Any = hf.GPT2LMHeadModel(
        hf.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=8, vocab_size=20, n_inner=16)
    ).eval()
    mlp, attn = module.transformer.h[0].mlp, module.transformer.h[0].attn
    with torch.no_grad():
        attn.c_proj.weight.zero_()
        module.transformer.wte.weight.normal_()
        mlp.c_fc.weight.zero_()
        mlp.c_fc.weight[:, 0] = torch.randn(8)
        mlp.c_fc.weight[:, 2] = mlp.c_fc.weight[:, 0]
        mlp.c_fc.bias[0] = mlp.c_fc.bias[2] = 2.0
        mlp.c_proj.weight.zero_()
        write, aside = torch.randn(8), 1e-3 * torch.randn(8)
        mlp.c_proj.weight[1] = 2 * write + aside  # a second output dimension, so that the row space tells 1 from 2
        mlp.c_proj.weight[2] = write
    clean = torch.randint(20, (6, 5))
    corrupt = clean.clone()
    corrupt[:, -1] = (clean[:, -1] + 7) % 20
    return load_model(module, dtype=torch.float64), Task.from_tokens(clean, corrupt, [1] * 6, [2] * 6)


def test_the_check_sees_through_the_illusion() -> None:
    model, task = illusion_model()
    site = Site("mlp_post", 0)
    honest = check_illusion(model, task, site, neurons(model, [2]))
    direction = torch.zeros(16).double()
    direction[:2] = 1
    illusory = check_illusion(model, task, site, Subspace.of(direction, "the pair of neurons 0 and 1"))
    assert float(honest.subspace.abs().min()) > 1e-2
    torch.testing.assert_close(illusory.subspace, honest.subspace, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(honest.subspace, honest.whole, rtol=1e-6, atol=1e-9)
    assert float(illusory.row.abs().max()) < 1e-9
    assert float(illusory.null.abs().max()) < 1e-9
    assert float(illusory.complement.abs().max()) < 1e-2 * float(illusory.whole.abs().max()), (
        "it cannot tell the two apart"
    )
    assert float(honest.complement.abs().max()) < 1e-9
    assert illusory.null_share == pytest.approx(0.5)
    assert honest.null_share == pytest.approx(0.0, abs=1e-9)
    assert (illusory.row_rank, illusory.rank) == (2, 1)
    assert illusory.illusory
    assert not honest.illusory
    assert "causally disconnected" in illusory.verdict
    assert "no effect can ride" in honest.verdict
    frame = illusory.to_dataframe()
    assert list(frame["patched"][:5]) == ["subspace", "row part", "null part", "complement", "whole activation"]
    assert "random 4" in str(illusory)


def test_a_steering_direction_is_checked_for_idle_parts() -> None:
    """The pair of neurons again: patched, it is an illusion; added, it steers by its row part alone, and half of it is
    idle.
    """
    model, task = illusion_model()
    site = Site("mlp_post", 0)
    vector = torch.zeros(16).double()
    vector[:2] = 1
    found = check_steering(model, task, Direction(vector, site, name="the pair"), strength=0.5, n_random=2)
    assert found.check.illusory
    assert found.check.null_share == pytest.approx(0.5)
    assert found.added["row part"] == pytest.approx(found.added["whole"], abs=1e-9)
    assert found.added["null part"] == pytest.approx(0.0, abs=1e-9)
    assert abs(found.added["whole"]) > 1e-3

    def by_hand(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation + 0.5 * vector

    clean, corrupt = task.pairs.clean_tokens, task.pairs.corrupt_tokens
    with torch.no_grad():
        steered = model.run_with_hooks(corrupt, fwd_hooks=[("blocks.0.mlp.hook_post", by_hand)])
        metrics = [float(task.measure(logits).mean()) for logits in (steered, model(corrupt), model(clean))]
    assert found.added["whole"] == pytest.approx((metrics[0] - metrics[1]) / (metrics[2] - metrics[1]))
    assert "idle in steering" in str(found) or "no evidence" in str(found)
    with pytest.raises(InputError, match="one weight reads"):
        check_steering(model, task, Direction(torch.ones(8).double(), Site("resid_post", 0)))
    with pytest.raises(InputError, match="16 numbers"):
        check_steering(model, task, Direction(torch.ones(15).double(), site))


def test_parts_add_up_and_the_null_part_does_nothing(tiny_gpt2_64: Any, tiny_task: Task, seed: int) -> None:
    site = Site("mlp_post", 1)
    subspace = mean_difference(tiny_gpt2_64, tiny_task, site)
    found = check_illusion(tiny_gpt2_64, tiny_task, site, subspace, n_random=2)
    assert 0.2 < found.null_share < 1  # 128 neurons write into 32 dimensions
    assert float(found.null.abs().max()) < 1e-9
    assert float(found.whole.abs().max()) > 1e-3
    weight = tiny_gpt2_64.blocks[1].mlp.W_out
    row, null, share, rank = split_subspace(subspace, weight)
    assert row is not None
    assert null is not None
    assert rank == 32
    assert float((null.basis.T @ weight).abs().max()) < 1e-9
    torch.testing.assert_close(row.project(subspace.basis.T) + null.project(subspace.basis.T), subspace.basis.T)
    assert share == pytest.approx(float(null.project(subspace.basis.T).pow(2).sum()))
    head = check_illusion(
        tiny_gpt2_64, tiny_task, Site("z", 1, 0), leading_differences(tiny_gpt2_64, tiny_task, Site("z", 1, 0))
    )
    assert head.null_share == pytest.approx(0, abs=1e-9)


def test_shares_of_a_change(seed: int) -> None:
    donor, host = torch.randn(4, 5, 6).double(), torch.randn(4, 5, 6).double()
    inside = Subspace.of(torch.randn(6, 2).double())
    along, across = SubspaceExchange(inside)(donor, host), Across(inside)(donor, host)
    torch.testing.assert_close(along + across, donor + host)
    torch.testing.assert_close(along @ inside.basis, donor @ inside.basis)
    far = SubspaceAsFar(inside, Subspace.of(torch.randn(6, 2).double()))(donor, host)
    torch.testing.assert_close((far - host).norm(dim=-1), (along - host).norm(dim=-1))


def test_fitted_directions(tiny_gpt2: Any, tiny_task: Task) -> None:
    site = Site("resid_pre", 1)
    difference = mean_difference(tiny_gpt2, tiny_task, site, "9")
    cache = [
        tiny_gpt2.run_with_cache(t)[1]["blocks.1.hook_resid_pre"]
        for t in (tiny_task.pairs.clean_tokens, tiny_task.pairs.corrupt_tokens)
    ]
    expected = (cache[0] - cache[1])[:, 9].mean(dim=0)
    torch.testing.assert_close(difference.project(expected), expected)
    leading = leading_differences(tiny_gpt2, tiny_task, site, "9", rank=3)
    assert leading.rank == 3
    torch.testing.assert_close(leading.project(expected), expected, rtol=1e-4, atol=1e-4)
    with borrowed(tiny_gpt2):
        learned = fit_das(tiny_gpt2, tiny_task, site, 9, epochs=30, lr=0.1)
    random = Subspace.of(torch.randn(32, 1, generator=torch.Generator().manual_seed(0)))
    log = tiny_task.with_metric("log_probability")
    effects = [float(patch_subspace(tiny_gpt2, log, site, s, positions="each").values[0, 9]) for s in (learned, random)]
    assert effects[0] > effects[1]


def test_the_first_and_the_last_neuron_are_neurons(tiny_gpt2: Any) -> None:
    found = neurons(tiny_gpt2, [0, 127]).project(torch.ones(128))
    assert found.nonzero().flatten().tolist() == [0, 127]
    with pytest.raises(InputError, match="0 to 127"):
        neurons(tiny_gpt2, [128])


def test_refused(tiny_gpt2: Any, tiny_task: Task) -> None:
    good = Subspace.of(torch.ones(32))
    for vectors, message in (
        (torch.zeros(32), "positive length"),
        (torch.tensor([1.0, torch.nan]), "finite"),
        (torch.ones(4, 2), "depend on one another"),
        (torch.randn(2, 3), "at most 2"),
        ([1, 2], "tensor"),
    ):
        with pytest.raises(InputError, match=message):
            Subspace.of(vectors)
    with pytest.raises(InputError, match="orthonormal"):
        Subspace(torch.ones(4, 1))
    for site, message in (
        (Site("mlp_post", 0), "128 numbers"),
        (Site("z", 0), "name the head"),
        (Site("embed"), "has none"),
        (Site("pattern", 0), "has none"),
        (Site("resid_pre", 7), "0 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            patch_subspace(tiny_gpt2, tiny_task, site, good)
    with pytest.raises(InputError, match="single downstream weight"):
        check_illusion(tiny_gpt2, tiny_task, Site("resid_pre", 0), good)
    with pytest.raises(InputError, match="at least 1"):
        check_illusion(tiny_gpt2, tiny_task, Site("mlp_post", 0), neurons(tiny_gpt2, [1]), n_random=0)
    with pytest.raises(InputError, match="0 to 127"):
        neurons(tiny_gpt2, [128])
    with pytest.raises(InputError, match="one of the spans"):
        mean_difference(tiny_gpt2, tiny_task, Site("resid_pre", 0), "S9")
    with pytest.raises(InputError, match="rank is 1 to 3"):
        leading_differences(tiny_gpt2, tiny_task, Site("resid_pre", 0), rank=9)
    with pytest.raises(InputError, match="without heads"):
        fit_das(tiny_gpt2, tiny_task, Site("z", 0, 1), 3)
    with pytest.raises(InputError, match="no site 'mlp_post'"):
        patch_subspace(build_model("mixtral"), tiny_task, Site("mlp_post", 0), good)


@pytest.mark.parametrize("rank", [1, 2])
def test_leading_directions_are_those_of_largest_difference(tiny_gpt2_64: Any, rank: int) -> None:
    """Of more pairs than asked for: the eigenvectors of the largest eigenvalues of D^T D, by another routine."""
    task = build_task(n=6)
    site = Site("resid_pre", 2)
    clean, corrupt = (
        tiny_gpt2_64.run_with_cache(side)[1]["blocks.2.hook_resid_pre"][:, 8].detach()
        for side in (task.pairs.clean_tokens, task.pairs.corrupt_tokens)
    )
    differences = clean - corrupt
    values, vectors = torch.linalg.eigh(differences.T @ differences)
    assert float(values[-rank] / values[-rank - 1]) > 1.01
    best = vectors[:, -rank:]
    found = leading_differences(tiny_gpt2_64, task, site, "8", rank=rank)
    torch.testing.assert_close(found.basis @ found.basis.T, best @ best.T, rtol=0, atol=1e-8)
