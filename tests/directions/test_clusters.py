"""Clustered vectors: k-means against all partitions, the choosing probe beside clusters dealt out by lot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.directions import Examples, fit_clusters, fit_direction, record_examples
from mechwork.directions.clusters import find_clusters
from mechwork.errors import InputError
from mechwork.interventions import intervene, load_writes, save_writes
from mechwork.sites import Site

SITE = Site("resid_post", 3)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_the_best_partition(seed: int) -> None:
    """Of nine rows in two heaps, against every way to part them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    rows[5:] += 5

    def cost(index: torch.Tensor) -> float:
        return sum(
            float((rows[index == k] - rows[index == k].mean(dim=0)).pow(2).sum()) for k in (0, 1) if (index == k).any()
        )

    index, centres = find_clusters(rows, 2, torch.Generator().manual_seed(seed))
    best = min(cost(torch.tensor([code >> i & 1 for i in range(9)])) for code in range(1 << 9))
    assert cost(index) == pytest.approx(best)
    assert index.tolist() == [0] * 5 + [1] * 4  # the larger first
    torch.testing.assert_close(centres[1], rows[5:].mean(dim=0))


def test_vectors_and_their_choice_on_a_model(bundled_model: Any, tmp_path: Any) -> None:
    task = mw.tasks.pronoun(bundled_model, n=64).train
    examples = Examples.of_task(task)
    found = fit_clusters(bundled_model, examples, SITE, 2, n_controls=1)
    assert sum(found.sizes) == len(task)
    assert 0 < found.spread_left < 1
    assert found.agreement > found.control + 0.2  # "she" to "he" or the other way, read off the name
    assert "by lot" in str(found)
    one = fit_clusters(bundled_model, examples, SITE, 1, n_controls=1)
    mean = fit_direction(bundled_model, examples, SITE).vector
    torch.testing.assert_close(one.vectors[0].float(), mean, rtol=0, atol=1e-4)
    states = record_examples(bundled_model, examples, [SITE])[0][len(task) :]
    put = found.write(0.5).replacement
    picked = put.chosen(states)  # pyright: ignore[reportAttributeAccessIssue]
    expected = torch.stack([x + 0.5 * found.vectors[k].float() for x, k in zip(states, picked, strict=True)])
    torch.testing.assert_close(put(states), expected)  # pyright: ignore[reportCallIssue]
    assert not torch.equal(picked, found.by_lot().write().replacement.chosen(states))  # pyright: ignore[reportAttributeAccessIssue]
    file = save_writes(tmp_path / "choice", [found.write()])
    tokens = task.pairs.corrupt_tokens[:2]
    with torch.no_grad(), intervene(bundled_model, [found.write()]):
        mine = bundled_model(tokens)
    with torch.no_grad(), intervene(bundled_model, load_writes(file)):
        torch.testing.assert_close(bundled_model(tokens), mine)
    with pytest.raises(InputError, match="needs 3 groups"):
        fit_clusters(bundled_model, examples, SITE, 40)
