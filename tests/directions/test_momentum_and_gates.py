"""Dimensions scaled by their momentum and gates per input: against literal hooks, and in generation."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.directions import Examples, fit_input_gate, rank_dimensions, study_forgetting
from mechwork.directions.input_gate import redirections
from mechwork.errors import InputError, MetricError
from mechwork.interventions import Add, PerInput, Similarity, Write, intervene, load_writes, save_writes
from mechwork.sites import Site
from tests.families import UNLIKE, borrowed, build_task

SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "verbose": False, "stop_at_eos": False}
NAMES = {"mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post", "z": "attn.hook_z"}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def alike(model: Any, puts: Any, tokens: Tensor) -> None:
    """Generation with and without a cache, in a batch and alone, says one thing."""
    with torch.no_grad(), intervene(model, puts):
        made = [model.generate(tokens, use_past_kv_cache=cached, **SETTINGS) for cached in (True, False)]
    assert torch.equal(*made)


@pytest.mark.parametrize("family", UNLIKE, indirect=True)
def test_dimensions_are_scaled_by_the_share_of_pairs(family_model64: Any) -> None:
    """Against counts and hooks written out."""
    task = build_task(n=5)
    sites = [Site("z", 1, 0), Site("z", 1, 3), Site("mlp_out", 0), Site("mlp_out", 2)]
    with borrowed(family_model64) as model:
        found = rank_dimensions(model, Examples.of_task(task), sites, n_controls=2)
        with torch.no_grad():
            _, clean = model.run_with_cache(task.pairs.clean_tokens)
            _, corrupt = model.run_with_cache(task.pairs.corrupt_tokens)
        betas: dict[tuple[Site, int], float] = {}
        for site in sites:
            name = f"blocks.{site.layer}.{NAMES[site.kind]}"
            a, b = (c[name][:, -1] if site.head is None else c[name][:, -1, site.head] for c in (clean, corrupt))
            for i in range(a.shape[1]):
                more, less = (int((side[:, i] > 0).sum()) for side in (a - b, b - a))
                betas[site, i] = (more if more >= less else -less) / len(task)
        n = 25
        top = found.top(n)
        assert [abs(beta) for *_, beta in top] == sorted((abs(b) for b in betas.values()), reverse=True)[:n]
        assert all(betas[site, i] == beta for site, i, beta in top)
        assert len({site for site, *_ in top}) > 1
        assert len({beta for *_, beta in top}) > 1
        for used in (found, found.control(1)):
            chosen = used.top(n)

            def put(a: Tensor, hook: Any, name: str, chosen: Any = chosen) -> Tensor:
                new = a.clone()
                for site, i, beta in chosen:
                    if f"blocks.{site.layer}.{NAMES[site.kind]}" == name:
                        part = new if site.head is None else new[:, :, site.head]
                        part[..., i] += 0.7 * beta * part[..., i]
                return new

            names = {f"blocks.{site.layer}.{NAMES[site.kind]}" for site in sites}
            hooks = [(name, partial(put, name=name)) for name in names]
            with torch.no_grad():
                literal = model.run_with_hooks(task.pairs.clean_tokens, fwd_hooks=hooks)
                with intervene(model, used.writes(n, 0.7)):
                    torch.testing.assert_close(model(task.pairs.clean_tokens), literal, rtol=0, atol=1e-9)
                assert float((literal - model(task.pairs.clean_tokens)).abs().max()) > 1e-4
        drawn = found.control(1).top(n)
        assert [(site, beta) for site, _, beta in drawn] == [(site, beta) for site, _, beta in top]
        assert len({(site, i) for site, i, _ in drawn}) == n
        assert [i for _, i, _ in drawn] != [i for _, i, _ in top]
        alike(model, found.writes(n, 3.0), task.pairs.clean_tokens)
        for wrong, message in ((0, "1 to"), (10**6, "1 to")):
            with pytest.raises(InputError, match=message):
                found.top(wrong)
        with pytest.raises(InputError, match="each once"):
            rank_dimensions(model, Examples.of_task(task), [sites[0], sites[0]])
        with pytest.raises(InputError, match="two or more"):
            rank_dimensions(model, Examples.of_task(task[[0]]), sites)


def test_luck_is_beside_the_momentum(bundled_model: Any, tmp_path: Any) -> None:
    sites = [Site("mlp_out", layer) for layer in range(6)]
    task = mw.tasks.pronoun(bundled_model, n=64).train
    right = task.pairs.correct[:, 0]
    she = task[(right == right.mode().values).nonzero().flatten().tolist()]
    many, few = (rank_dimensions(bundled_model, Examples.of_task(part), sites) for part in (she, she[:2]))
    assert few.beyond_lot() == 0 < many.beyond_lot()  # two pairs: half of all dimensions are "sure"
    again = type(many).load(many.save(tmp_path / "momentum"))
    assert again.top(9) == many.top(9)
    assert "by lot" in str(many)


def gate_of(site: Site, where: Tensor, threshold: float, *, weighted: bool = False) -> PerInput:
    return PerInput(
        Site("resid_post", 0), Similarity(draw(3, 32), threshold, weighted), where, site,
        draw(3, 32 if site.head is None else 8, seed=1), 4.0, keep_norm=True,
    )  # fmt: skip


def by_hand(gate: PerInput, state: Tensor, x: Tensor) -> Tensor:
    """One prompt: its state ``[d]``, its activations ``[pos, d]``."""
    route: Any = gate.route
    cosines = [float(c @ state / c.norm() / state.norm()) for c in route.centres]
    chosen = [k for k, cosine in enumerate(cosines) if cosine > route.threshold]
    if not chosen:
        return x
    total = sum(cosines[k] for k in chosen)
    shares = [cosines[k] / total if route.weighted else 1 / len(chosen) for k in chosen]
    new = x + 4.0 * sum(share * gate.vectors[k] for share, k in zip(shares, chosen, strict=True))
    return new * x.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("family", UNLIKE, indirect=True)
@pytest.mark.parametrize("site", [Site("resid_post", 0), Site("mlp_out", 1), Site("z", 2, 1)], ids=str)
def test_a_gate_decides_once_per_prompt(family_model64: Any, site: Site, tmp_path: Any) -> None:
    tokens = build_task(n=6).pairs.clean_tokens[:, :6]
    where = torch.ones(6, 6, dtype=torch.bool)
    where[0, 3:] = False
    name = f"blocks.{site.layer}.{NAMES[site.kind]}"
    with borrowed(family_model64) as model, torch.no_grad():
        plain, cache = model.run_with_cache(tokens)
        for weighted, threshold in ((False, 0.05), (True, 0.0)):
            gate = gate_of(site, where, threshold, weighted=weighted)
            states = torch.stack(
                [x[w].mean(dim=0) for x, w in zip(cache["blocks.0.hook_resid_post"], where, strict=True)]
            )
            opened = gate.route(states).sum(dim=1)
            assert 0 < float(opened.mean()) < 1 or weighted
            assert set(opened.round(decimals=9).tolist()) <= {0.0, 1.0}

            def put(a: Tensor, hook: Any, gate: PerInput = gate, states: Tensor = states) -> Tensor:
                new = a.clone()
                part = new if site.head is None else new[:, :, site.head]
                for row in range(len(a)):
                    part[row] = by_hand(gate, states[row], part[row])
                return new

            literal = model.run_with_hooks(tokens, fwd_hooks=[(name, put)])
            with intervene(model, [gate]):
                torch.testing.assert_close(model(tokens), literal, rtol=0, atol=1e-9)
            assert float((literal - plain).abs().max()) > 1e-3
            alike(model, [gate], tokens)
            file = save_writes(tmp_path / f"gate{weighted}", [gate])
            with intervene(model, load_writes(file)):
                torch.testing.assert_close(model(tokens), literal, rtol=0, atol=1e-9)
        with intervene(model, [gate_of(site, where, 0.0)]), pytest.raises(InputError, match="columns of 6 prompts"):
            model(tokens[:2])
        with intervene(model, [gate_of(site, where, 0.0)]), pytest.raises(InputError, match="whole"):
            model(tokens[:, :4])
    with pytest.raises(InputError, match="at or before"):
        PerInput(Site("resid_post", 2), Similarity(draw(3, 32), 0.0), where, site, draw(3, 32))
    with pytest.raises(InputError, match="a row of `where` without"):
        gate_of(site, torch.zeros(6, 6, dtype=torch.bool), 0.0)


def test_forgetting_spares_what_is_retained(bundled_model: Any, tmp_path: Any) -> None:
    """Prompts of another task are left alone by the gate and not by the vectors alone; random vectors forget less."""
    pronoun, other = mw.tasks.pronoun(bundled_model, n=64), mw.tasks.agreement(bundled_model, n=64)
    prompts = [p.pairs.prompt(i) for p in (pronoun.train, other.train) for i in range(len(p))]
    labels = [True] * len(pronoun.train) + [False] * len(other.train)
    examples = Examples.of_tokens(prompts, labels, everywhere=True)
    gate = fit_input_gate(bundled_model, examples, Site("resid_post", 3), 2)
    assert gate.caught > 0.9
    assert gate.false_alarms < 0.1
    assert gate.control[0] - gate.control[1] < 0.5 * (gate.caught - gate.false_alarms)
    study = study_forgetting(bundled_model, gate, pronoun.test, [other.test], strengths=[2.0])
    plain, gated, everywhere, random = study.rows
    assert plain.forget_metric - gated.forget_metric > 1.3 * (plain.forget_metric - random.forget_metric) > 0
    assert gated.retain_kl < 0.1 * everywhere.retain_kl
    assert gated.retain_accuracy == plain.retain_accuracy > everywhere.retain_accuracy
    assert type(study).load(study.save(tmp_path / "study")).rows == study.rows
    assert type(gate).load(gate.save(tmp_path / "gate")).threshold == gate.threshold
    assert "by lot" in str(gate)
    assert "all prompts" in str(study)
    with pytest.raises(InputError, match="clusters"):
        fit_input_gate(bundled_model, examples, Site("resid_post", 2), 10**4)
    with pytest.raises(InputError, match="tasks to retain"):
        study_forgetting(bundled_model, gate, pronoun.test, [])
    centre, retain = draw(5), draw(5, seed=1)
    across = centre - (centre @ retain) / (retain @ retain) * retain
    torch.testing.assert_close(redirections(centre[None], retain, 3.0)[0], across * 3 / across.norm())
    with pytest.raises(MetricError, match="nothing to remove"):
        redirections(torch.ones(1, 3), torch.ones(3), 1.0)


def test_a_gate_and_a_write_go_together(tiny_gpt2_64: Any) -> None:
    tokens = build_task().pairs.clean_tokens
    gate = gate_of(Site("mlp_out", 1), torch.ones(1, tokens.shape[1], dtype=torch.bool), -1.0)
    with torch.no_grad(), intervene(tiny_gpt2_64, [gate, Write(Site("resid_post", 1), Add(draw(32)))]):
        both = tiny_gpt2_64(tokens)
    with torch.no_grad(), intervene(tiny_gpt2_64, [gate]):
        assert float((tiny_gpt2_64(tokens) - both).abs().max()) > 1e-3
