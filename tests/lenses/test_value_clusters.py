"""Clusters of value vectors: against scipy's k-means, and their writes against a hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.cluster.vq import kmeans2

from mechwork.errors import InputError
from mechwork.interventions import intervene
from mechwork.lenses import ValueClusters, cluster_values
from tests.families import build_model, build_task


def planted(model: Any) -> list[int]:
    """Layer 2's neurons write along one of three unembedding columns; which one is returned."""
    generator = torch.Generator().manual_seed(2)
    side = torch.randint(3, (int(model.blocks[2].mlp.W_out.shape[0]),), generator=generator)
    columns = model.W_U[:, [11, 40, 77]].T.detach()
    noise = 0.05 * torch.randn(len(side), 32, generator=generator, dtype=torch.float64)
    weight = model.blocks[2].mlp.out.original_component.weight
    new = columns[side] / columns.norm(dim=1, keepdim=True)[side] + noise
    with torch.no_grad():
        weight.copy_(new if weight.shape == new.shape else new.T)
    return side.tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_planted_concepts_are_found_as_scipy_finds_them(family: str, tmp_path: Any) -> None:
    model = build_model(family)
    side = planted(model)
    found = cluster_values(model, [2], 3)
    mine = {n: k for k, part in enumerate(found.members) for _, n in part}
    names = [(mine[i], side[i]) for i in range(len(side))]
    assert len(set(names)) == 3  # one cluster per planted token
    for i, token in enumerate((11, 40, 77)):
        assert found.find(token) == next(k for k, s in names if s == i)
    assert min(found.tightness) > 0.8 > found.by_lot
    w = model.blocks[2].mlp.W_out.detach()
    gain = model.ln_final.weight.detach() if family == "llama" else None
    if gain is not None:  # an RMS norm: no centring
        effects = (w * gain) @ model.W_U.detach()
        said = torch.nn.functional.normalize(effects - effects.mean(dim=1, keepdim=True), dim=1)
        _, theirs = kmeans2(said.numpy(), 3, minit="++", rng=1)
        assert len(set(zip(theirs.tolist(), (mine[i] for i in range(len(side))), strict=True))) == 3
    assert ValueClusters.load(found.save(tmp_path / "clusters")).members == found.members
    assert "by lot" in str(found)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"], indirect=True)
def test_writes_set_every_neuron_of_a_cluster(family_model64: Any) -> None:
    model, tokens = family_model64, build_task().pairs.clean_tokens
    settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "verbose": False, "stop_at_eos": False}
    found = cluster_values(model, [1, 2], 5)
    assert sum(len(part) for part in found.members) == 2 * found.d_mlp
    for clusters in (found, found.control(1)):
        chosen = {layer: [n for at, n in clusters.members[0] if at == layer] for layer in (1, 2)}

        def put(layer: int, chosen: Any = chosen) -> Any:
            def hook(a: torch.Tensor, hook: Any) -> torch.Tensor:
                a = a.clone()
                a[..., chosen[layer]] = 1.5
                return a

            return hook

        with torch.no_grad(), intervene(model, clusters.write(0, 1.5)):
            mine = model(tokens)
        with torch.no_grad():
            theirs = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{i}.mlp.hook_post", put(i)) for i in (1, 2)])
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
        with torch.no_grad(), intervene(model, clusters.write(0, 1.5)):
            made = [model.generate(tokens, use_past_kv_cache=cached, **settings) for cached in (True, False)]
        assert torch.equal(*made)
    counts = [sorted(layer for layer, _ in c.members[0]) for c in (found, found.control(1))]
    assert counts[0] == counts[1]


def test_bad_input_is_refused(tiny_gpt2_64: Any) -> None:
    with pytest.raises(InputError, match="layers of this model"):
        cluster_values(tiny_gpt2_64, [3])
    with pytest.raises(InputError, match="the number of neurons"):
        cluster_values(tiny_gpt2_64, [0], 10_000)
    found = cluster_values(tiny_gpt2_64, [2], 2)
    with pytest.raises(InputError, match="clusters are 0 to 1"):
        found.write(2, 1.0)
    with pytest.raises(InputError):
        cluster_values(build_model("mixtral"))
