"""Screened sweeps: what is measured is exact, what is chosen is as said, and the bound covers."""

from __future__ import annotations

from math import comb
from typing import Any

import pytest
import torch

from mechwork.errors import InputError, UnknownNameError
from mechwork.patching import attribute, patch
from mechwork.patching.screen import upper_share
from mechwork.tasks.task import Task

SITES = ["resid_pre", "mlp_out", "z"]


def test_measured_cells_are_exact_and_chosen_as_said(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    found = patch(tiny_gpt2_64, tiny_task, SITES, screen="relp", verify_top=0.2, verify_random=0.1)
    exact = patch(tiny_gpt2_64, tiny_task, SITES)
    estimate = attribute(tiny_gpt2_64, tiny_task, SITES, rules="relp")
    n_top = n_control = 0
    worst_top, best_rest = [], []
    for kind in SITES:
        top, control = found.top[kind], found.control[kind]
        assert not (top & control).any()
        both = top | control
        torch.testing.assert_close(found.measured[kind].values[both], exact[kind].values[both], rtol=0, atol=1e-9)
        assert bool(found.measured[kind].values[~both].isnan().all())
        assert torch.equal(found.estimate[kind].values, estimate[kind].values)
        n_top, n_control = n_top + int(top.sum()), n_control + int(control.sum())
        worst_top += estimate[kind].values[top].abs().tolist()
        best_rest += estimate[kind].values[~top].abs().tolist()
    assert (n_top, n_control) == (15, 8)  # of 30 + 30 + 12
    assert min(worst_top) >= max(best_rest)
    assert float(exact["resid_pre"].values.abs().max()) > 1e-3
    again = patch(tiny_gpt2_64, tiny_task, SITES, screen="relp", verify_top=0.2, verify_random=0.1)
    assert all(torch.equal(again.control[kind], found.control[kind]) for kind in SITES)


def test_agreement_bound_and_table(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    found = patch(tiny_gpt2_64, tiny_task, SITES, screen="relp", verify_top=0.2, verify_random=0.3)
    assert found.agreement("control").n_places == 22
    assert -1 <= found.agreement("verified").pearson <= 1
    everything = found.missed(0.0 - 1e-30)
    assert everything.at_most == 1.0
    nothing = found.missed(1e9)
    assert nothing.n_above == 0
    assert nothing.at_most == pytest.approx(1 - 0.05 ** (1 / 22), abs=1e-9)
    assert found.missed().n_unmeasured == 72 - 15 - 22
    assert "95 % confidence" in str(found)
    frame: Any = found.to_dataframe()
    assert frame["role"].value_counts().to_dict() == {"estimated only": 35, "control": 22, "top": 15}
    assert int(frame["effect"].notna().sum()) == 37
    places = found.strongest(3)
    assert len(places) == 3
    assert abs(places[0][1]) >= abs(places[1][1])
    with pytest.raises(InputError, match="verified"):
        found.agreement("all")


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (10, 11)])
def test_the_bound_solves_its_equation(k: int, n: int) -> None:
    q = upper_share(k, n, 0.05)
    assert sum(comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k + 1)) == pytest.approx(0.05, abs=1e-6)


def test_refused(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="verify_top is a share"):
        patch(tiny_gpt2, tiny_task, ["z"], screen="relp", verify_top=5)
    with pytest.raises(UnknownNameError, match="relp"):
        patch(tiny_gpt2, tiny_task, ["z"], screen="relpp")
    with pytest.raises(InputError, match="can be screened"):
        patch(tiny_gpt2, tiny_task, ["pattern"], screen="relp")
