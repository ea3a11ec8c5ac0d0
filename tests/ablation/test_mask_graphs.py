"""Graphs of masks: rollout by enumerating paths, centres and rates by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from mechwork.ablation import MaskStudy, study_masks
from mechwork.ablation.mask_graphs import default_masks, find_centre
from mechwork.errors import InputError


def by_paths(mask: torch.Tensor, n_layers: int) -> list[float]:
    """Shares of every token in the last one: the sum over all paths of the product of their steps."""
    n = len(mask)
    step = [[(0.5 / int(mask[i].sum()) if mask[i, j] else 0.0) + 0.5 * (i == j) for j in range(n)] for i in range(n)]
    shares = [0.0] * n
    for path in itertools.product(range(n), repeat=n_layers):
        whole = (n - 1, *path)
        shares[path[-1]] += math.prod(step[a][b] for a, b in itertools.pairwise(whole))
    return shares


def test_shares_are_those_of_all_paths(tmp_path: Any) -> None:
    found = study_masks(5, 3)
    for name, mask in default_masks(5).items():
        expected = by_paths(mask, 3)
        row = next(r for r in found.rows if r.mask == name and r.layer == 2)
        centre = find_centre(mask).tolist()
        assert row.first == pytest.approx(expected[0])
        assert row.outside == pytest.approx(sum(s for s, inside in zip(expected, centre, strict=True) if not inside))
        assert row.mean_position == pytest.approx(sum(i * s for i, s in enumerate(expected)) / 4)
        assert sum(expected) == pytest.approx(1)
    assert MaskStudy.load(found.save(tmp_path / "masks")).rows == found.rows
    assert "in the long run" in str(found)


def test_centres_reach_and_rates_are_the_theorys() -> None:
    found = study_masks(16, 120)
    assert [one.n_centre for one in found.centres] == [1, 1, 4]
    assert [one.reach for one in found.centres] == [1, 5, 1]  # a window of 4: 15 / 3
    assert found.centre("causal").decay == pytest.approx(-math.log(0.75), rel=1e-9)
    assert found.centre("prefix of 4").decay == pytest.approx(-math.log(0.6), rel=1e-9)
    assert found.centre("causal").decay_here == pytest.approx(found.centre("causal").decay, rel=1e-3)
    causal, window = ([r.outside for r in found.rows if r.mask == name] for name in ("causal", "window of 4"))
    assert all(a < b for a, b in zip(causal, window, strict=True))


def test_masks_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="two tokens"):
        study_masks(1, 3)
    with pytest.raises(InputError, match="every token sees itself"):
        study_masks(4, 3, {"blind": torch.zeros(4, 4, dtype=torch.bool)})
    with pytest.raises(InputError, match="no centre"):
        study_masks(4, 3, {"alone": torch.eye(4, dtype=torch.bool)})
    with pytest.raises(InputError, match="masks are causal"):
        study_masks(4, 3).centre("spiral")
