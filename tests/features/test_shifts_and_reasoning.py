"""Signed shifts and traces of features, propositions and rules: against hooks and loops, and in generation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.directions import Examples, study_spectrum
from mechwork.directions.spectrum import spectrum_of
from mechwork.errors import InputError
from mechwork.features import (
    FeatureSet,
    FeatureWrite,
    Implication,
    Proposition,
    Reasoner,
    SignedShift,
    fit_propositions,
    fit_signed_shift,
    intervene_features,
    load_features,
    record_features,
    trace_feature,
)
from mechwork.interventions import intervene
from mechwork.sites import Site
from tests.families import UNLIKE, borrowed, build_task
from tests.features.build import N, features
from tests.reference import literal

SITE = Site("resid_post", 1)
SETTINGS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generated(model: Any, put: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad(), intervene(model, [put]):
        made = [model.generate(tokens, use_past_kv_cache=cached, **SETTINGS) for cached in (True, False)]
    assert torch.equal(*made)
    return made[0]


@pytest.mark.parametrize("family", UNLIKE, indirect=True)
def test_a_signed_shift_against_a_hook(family_model64: Any) -> None:
    tokens = build_task().pairs.clean_tokens
    towards, away = torch.zeros(2, N, dtype=torch.float64)
    towards[[1, 4]], away[[1, 4]] = draw(2), draw(2, seed=1)
    axis = torch.zeros(N, dtype=torch.float64)
    axis[[1, 4]] = torch.tensor([0.6, 0.8], dtype=torch.float64)
    with borrowed(family_model64) as model:
        made = features(model, SITE)[0]
        put = FeatureWrite(made, SignedShift(towards, away, axis * (axis @ away), 3.0, 0.5))

        def by_hand(y: Tensor, hook: object) -> Tensor:
            new = y.clone()
            for row, pos in itertools.product(range(y.shape[0]), range(y.shape[1])):
                f = made.encode(y[row, pos])
                back = (f @ away) * away
                step = 3.0 * towards - 0.5 * axis * float(axis @ back)
                new[row, pos] = y[row, pos] + step @ made.W_dec
            return new

        with torch.no_grad():
            expected = model.run_with_hooks(tokens, fwd_hooks=[(literal.hook("resid_post", 1), by_hand)])
            for enter in (intervene, intervene_features):
                with enter(model, [put]):
                    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-9)
            assert float((model(tokens) - expected).abs().max()) > 1e-2
        generated(model, put, tokens)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"], indirect=True)
def test_a_trace_is_the_neurons_share_of_what_the_feature_reads(family_model64: Any) -> None:
    """All neurons' shares with attention's and the embedding's are the contrast of the input."""
    task = build_task(n=4)
    examples = Examples.of_task(task)
    with borrowed(family_model64) as model:
        made = features(model, SITE)
        d_mlp = int(model.blocks[0].mlp.W_out.shape[0])
        found = trace_feature(model, made, "resid_post.1", 3, examples, 2 * d_mlp)
        w = made[0].W_enc[:, 3]
        with torch.no_grad():
            cache = model.run_with_cache(torch.cat([task.pairs.clean_tokens, task.pairs.corrupt_tokens]))[1]

        def contrast(x: Tensor) -> float:
            return float(((x[:4, -1] - x[4:, -1]).mean(dim=0)) @ w)

        rest = contrast(cache["blocks.0.hook_resid_pre"]) + sum(
            contrast(cache[f"blocks.{i}.hook_attn_out"]) for i in (0, 1)
        )
        assert sum(found.shares) + rest == pytest.approx(found.whole, abs=1e-9)
        assert found.whole == pytest.approx(contrast(cache["blocks.1.hook_resid_post"]), abs=1e-9)
        shares = dict(zip(found.neurons, found.shares, strict=True))
        h = cache["blocks.0.mlp.hook_post"]
        mine = float((h[:4, -1, 7] - h[4:, -1, 7]).mean() * (model.blocks[0].mlp.W_out[7].detach() @ w))
        assert shares[0, 7] == pytest.approx(mine, abs=1e-9)
        top = trace_feature(model, made, "resid_post.1", 3, examples, 5)
        off, lot = top.write(0.0), top.control(1)
        assert not set(lot.neurons) & set(top.neurons)
        with torch.no_grad(), intervene(model, off):
            hidden = model.run_with_cache(task.pairs.clean_tokens)[1]
            for layer, n in top.neurons:
                assert float(hidden[f"blocks.{layer}.mlp.hook_post"][..., n].abs().max()) == 0
        with pytest.raises(InputError, match="neurons below"):
            trace_feature(model, made, "resid_post.1", 3, examples, 10**6)
        with pytest.raises(InputError, match="read the residual stream"):
            trace_feature(model, features(model, Site("mlp_out", 1)), "mlp_out.1", 3, examples)


def test_the_spectrum_against_its_definitions(bundled_model: Any, tmp_path: Any) -> None:
    import scipy.linalg
    import scipy.stats

    rows = draw(9, 5)
    s, effective, gap, rank, _ = spectrum_of(rows, 12)
    theirs: Any = scipy.linalg.svd(rows.numpy(), compute_uv=False)
    torch.testing.assert_close(s, torch.from_numpy(theirs))
    assert effective == pytest.approx(float(torch.tensor(scipy.stats.entropy(theirs**2)).exp()))
    assert gap == int((theirs[:-1] / theirs[1:]).argmax()) + 1
    assert rank == min(gap, int(torch.tensor(effective).ceil()))
    task = mw.tasks.pronoun(bundled_model, n=64).train
    found = study_spectrum(bundled_model, Examples.of_task(task))
    assert max(row.mass for row in found.rows) > 0.5
    assert 2 <= len(found.window(2, 3)) <= 3
    assert set(found.window(2, 3)) <= {row.site for row in found.rows}
    best = max(found.rows, key=lambda row: row.score)
    assert found.window(1, 1) == (best.site,)
    axes = found.basis(best.site)
    torch.testing.assert_close(axes @ axes.T, torch.eye(len(axes), dtype=axes.dtype))
    again = type(found).load(found.save(tmp_path / "spectrum"))
    assert again.rows == found.rows
    assert "within one side" in str(found)
    bad: list[dict[str, Any]] = [{"sites": []}, {"r_max": 0}, {"n_bootstrap": 1}]
    for wrong in bad:
        with pytest.raises(InputError):
            study_spectrum(bundled_model, Examples.of_task(task), **wrong)
    with pytest.raises(InputError, match="a window has"):
        found.window(9, 9)


def test_a_shift_is_fitted_and_beats_features_by_lot(bundled_model: Any, tmp_path: Any) -> None:
    coders = load_features(bundled_model)
    task = mw.tasks.pronoun(bundled_model, n=48)
    right = task.train.pairs.correct[:, 0]
    she = task.train[(right == right.mode().values).nonzero().flatten().tolist()]
    found = fit_signed_shift(bundled_model, coders, "resid_post.3", she[:8], n_top=6, alphas=(1.0, 4.0))
    assert all(lift > 0 for lift in found.lift)
    host = she[8:].pairs.corrupt_as_host()

    def metric(put: Any = None) -> float:
        with torch.no_grad(), intervene(bundled_model, [] if put is None else [put]):
            return float(she.measure(bundled_model(host.clean_tokens)[:, -host.n_tail :], host).mean())

    plain, mine = metric(), metric(found.write(coders, 8.0, 0.5))
    lots = [metric(found.control(seed).write(coders, 8.0, 0.5)) for seed in range(3)]
    assert mine - plain > 2 * max(abs(x - plain) for x in lots)
    again = type(found).load(found.save(tmp_path / "shift"))
    assert again.chosen == found.chosen
    assert "lift" in str(found)
    with pytest.raises(InputError, match="alphas"):
        fit_signed_shift(bundled_model, coders, "resid_post.3", she, alphas=())


# ---- propositions and rules ------------------------------------------------------------------------------------------


def reasoner(*rules: str, at: tuple[float, float, float] = (0.4, 0.6, 0.8)) -> Reasoner:
    return Reasoner(
        "resid_post.1", tuple(Proposition(name, (i, i + 4), (1.0, 0.5), at[i]) for i, name in enumerate("abc"))
    ).with_rules(*rules)


def test_rules_follow_as_in_a_truth_table() -> None:
    told = reasoner("a and b -> d", "d or c -> e", "not e and a -> f", "f -> g")
    for held in itertools.product((False, True), repeat=3):
        a, b, c = held
        d = a and b
        e = d or c
        f = not e and a
        expected = dict(zip(told.names, (a, b, c, d, e, f, f), strict=True))
        found = told.infer(torch.tensor(held))
        assert dict(zip(told.names, found.tolist(), strict=True)) == expected
    loop = reasoner("a -> b", "b -> c", "c -> a")  # a circle without `not` ends
    assert loop.infer(torch.tensor([False, True, False])).tolist() == [True] * 3
    for wrong, message in (
        ("a", "a body, ->"), ("a + b -> c", "names with and"), ("a and -> c", "names with and"),
        ("__import__('os') -> c", "names with and"), ("a -> b c", "a body, ->"), ("x -> c", "nothing says"),
        ("not c -> c", "own negation"), ("not c -> b", None),
    ):  # fmt: skip
        if message is None:
            reasoner(wrong)
        else:
            with pytest.raises(InputError, match=message):
                reasoner(wrong)
    with pytest.raises(InputError, match="own negation"):
        reasoner("not a -> b", "not b -> a")
    with pytest.raises(InputError, match="like variables"):
        Proposition("two words", (0,), (1.0,), 0.0)
    assert Implication.parse("a and not (b or c) -> d").names() == {"a": False, "b": True, "c": True}


@pytest.mark.parametrize("family", UNLIKE, indirect=True)
@pytest.mark.parametrize("scope", ["so_far", "token"])
def test_steering_by_conclusions_against_a_hook(family_model64: Any, scope: str) -> None:
    tokens = build_task(n=5).pairs.clean_tokens
    rules = ("a and not b -> d", "d or b -> c")
    with borrowed(family_model64) as model:
        made = features(model, SITE)
        scores = reasoner().scores(record_features(model, tokens, list(made))[0].features).flatten(0, 1)
        # rare enough that a prompt begins without them
        at = tuple(scores.quantile(torch.tensor([0.9, 0.9, 0.8], dtype=scores.dtype), dim=0).diagonal().tolist())
        told = reasoner(*rules, at=at)
        put = told.write(made, {"c": 2.0, "a": -0.5}, scope)
        coder = made[0]
        seen: list[tuple[bool, bool]] = []

        def by_hand(y: Tensor, hook: object) -> Tensor:
            new = y.clone()
            for row in range(y.shape[0]):
                so_far = [False] * 3
                for pos in range(y.shape[1]):
                    f = coder.encode(y[row, pos])
                    now = [float(f[i] + 0.5 * f[i + 4]) > at[i] for i in range(3)]
                    so_far = [x or z for x, z in zip(so_far, now, strict=True)]
                    a, b, c = so_far if scope == "so_far" else now
                    c = c or b or (a and not b)
                    seen.append((a, c))
                    for holds, strength, i in ((c, 2.0, 2), (a, -0.5, 0)):
                        vector = coder.W_dec[i] + 0.5 * coder.W_dec[i + 4]
                        if holds:
                            new[row, pos] += strength * y[row, pos].norm() * vector / vector.norm()
            return new

        with torch.no_grad():
            expected = model.run_with_hooks(tokens, fwd_hooks=[(literal.hook("resid_post", 1), by_hand)])
            assert len(set(seen)) >= 3
            with intervene(model, [put]):
                torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-9)
            told_there = told.detect(model, made, tokens, scope)
            index = [told.names.index(name) for name in "ac"]
            assert [tuple(x) for x in told_there[..., index].flatten(0, 1).tolist()] == seen
        generated(model, put, tokens[:, :4])
        with pytest.raises(InputError, match="features of its own"):
            told.write(made, {"d": 1.0})
        with pytest.raises(InputError, match="so_far or token"):
            told.write(made, {"a": 1.0}, "ever")
        with pytest.raises(InputError, match="writes elsewhere"):
            places = features(model, (Site("resid_pre", 1), SITE))
            Reasoner("resid_post.1", told.propositions).write(places, {"a": 1.0})


def test_propositions_are_fitted_and_composed(bundled_model: Any, tmp_path: Any) -> None:
    """ "she" and "plural" are told apart by features; what both deny is concluded by a rule and checked by hand."""
    coders = load_features(bundled_model)
    pronoun, number = mw.tasks.pronoun(bundled_model, n=64), mw.tasks.agreement(bundled_model, n=64)
    concepts = {
        "she": mw.features.concept_of_answer(bundled_model, pronoun.train, " she"),
        "plural": mw.features.concept_of_answer(bundled_model, number.train, " are"),
    }
    found = fit_propositions(bundled_model, coders, "resid_post.4", concepts, 3)
    for p in found.propositions:
        assert p.accuracy > 0.9
        assert p.control < 0.75
    told = found.with_rules("not she and not plural -> neither", "she or plural -> either")
    tokens = number.test.pairs.clean_tokens
    names = told.detect(bundled_model, coders, tokens, "token")[:, -1]
    at = {name: names[:, told.names.index(name)] for name in told.names}
    assert torch.equal(at["neither"], ~at["either"])
    assert 0 < float(at["plural"].double().mean()) < 1
    lot = told.control(coders)
    assert not {j for p in lot.propositions for j in p.features} & {j for p in told.propositions for j in p.features}
    again = Reasoner.load(told.save(tmp_path / "rules"))
    assert again.rules == told.rules
    assert "by lot" in str(told)
    with pytest.raises(InputError, match="needs concepts"):
        fit_propositions(bundled_model, coders, "resid_post.4", {})
    assert isinstance(coders, FeatureSet)
