"""Node effects and scores equal those of the RelP authors' code on the same weights and pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.patching import attribute, patch
from mechwork.relevance import IdentityRule
from tests.reference import peers

SITES = ["resid_pre", "attn_out", "mlp_out", "z"]
EXACT = {"f32": 1e-4, "f64": 1e-6}
RELP = {"f32": 1e-4, "f64": 5e-5}  # their Identity-rule has a stabiliser of 1e-6, ours takes the limit


@pytest.mark.parametrize("tag", ["f32", "f64"])
def test_activation_patching(tag: str) -> None:
    effects = patch(peers.model(tag), peers.task(), SITES)
    nodes = peers.arrays("nodes", tag)
    assert effects.baseline.clean == pytest.approx(1.213806, abs=1e-5)
    assert effects.baseline.corrupt == pytest.approx(-1.268849, abs=1e-5)
    for site in SITES:
        peers.assert_agrees(effects[site].metric, nodes[f"actpatch_{site}"], EXACT[tag])


def test_activation_patching_of_heads_by_position() -> None:
    effect = patch(peers.model("f64"), peers.task(), ["z"], positions="each")["z"]
    assert effect.axes == ("layer", "pos", "head")
    peers.assert_agrees(effect.metric, peers.arrays("nodes", "f64")["actpatch_z_by_pos"], EXACT["f64"])


@pytest.mark.parametrize("tag", ["f32", "f64"])
@pytest.mark.parametrize(("rules", "theirs"), [("gradient", "attrpatch"), ("relp", "relp"), ("relp_ah", "relp_ah")])
def test_attribution_and_relevance_patching(rules: str, theirs: str, tag: str) -> None:
    scores = attribute(peers.model(tag), peers.task(), SITES, rules=rules)
    nodes = peers.arrays("nodes", tag)
    tolerance = (EXACT if rules == "gradient" else RELP)[tag]
    for site in SITES:
        peers.assert_agrees(scores[site].values, nodes[f"{theirs}_{site}"], tolerance)


def stabilised(self: IdentityRule, x: torch.Tensor, act: Any) -> torch.Tensor:
    """Their Identity-rule to the letter: x moved away from 0 by 1e-6 in the ratio and in the product."""
    moved = x + 1e-6 * torch.where(x >= 0, 1.0, -1.0)
    return moved * (act(x) / moved).detach()


@pytest.mark.parametrize(("rules", "theirs"), [("gradient", "attrpatch"), ("relp", "relp"), ("relp_ah", "relp_ah")])
def test_the_stabiliser_is_the_only_difference(rules: str, theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IdentityRule, "surrogate", stabilised)
    scores = attribute(peers.model("f64"), peers.task(), SITES, rules=rules)
    nodes = peers.arrays("nodes", "f64")
    for site in SITES:
        peers.assert_agrees(scores[site].values, nodes[f"{theirs}_{site}"], 1e-6)
        mine = scores[site].per_example / len(peers.task())
        peers.assert_agrees(mine, nodes[f"{theirs}_{site}_per_example"], 1e-6)


def test_relp_is_not_what_following_the_forks_readme_gives() -> None:
    """There the Identity-rule is silently off; ours must differ from that as their own RelP does."""
    nodes = peers.arrays("nodes", "f64")
    mine = attribute(peers.model("f64"), peers.task(), ["mlp_out"], rules="relp")["mlp_out"].values
    theirs = nodes["relp_readme_mlp_out"]
    assert float((mine - torch.from_numpy(theirs)).abs().max()) > 1e-2 * abs(theirs).max()
