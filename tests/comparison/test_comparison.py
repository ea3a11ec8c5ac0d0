"""Two models: known differences are found where they are, values go across as a hook would carry them, nothing is
changed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.comparison import (
    compare_directions,
    compare_lenses,
    find_divergence,
    patch_across,
    weight_distances,
    with_noise,
)
from mechwork.comparison.divergence import _distance
from mechwork.comparison.noise import distinct_parameters
from mechwork.directions import Examples, fit_direction
from mechwork.edits import LowRankChange, WeightEdit, apply_edit
from mechwork.errors import InputError, MetricError
from mechwork.lenses import BiasOnly, Full, TunedLens
from mechwork.lenses.fingerprint import fingerprint
from mechwork.models.identity import weights_sha256
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model, build_task

FIVE = ["gpt2", "neox", "llama", "gemma2", "mixtral"]


def changed(weight: str, size: float, *, family: str = "gpt2") -> tuple[Any, WeightEdit]:
    """A second copy of the tiny model, and an edit of it."""
    model = build_model(family)
    generator = torch.Generator().manual_seed(3)
    d_in = 128 if weight.startswith("W_out") else 32
    left, right = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (d_in, 32))
    return model, WeightEdit({weight: LowRankChange(size * left, right.T.contiguous())}, weights_sha256(model))


def by_hand(a: Tensor, b: Tensor, lengths: Tensor) -> list[float]:
    """Mean over each prompt's tokens of 2 |a - b| / (|a| + |b|)."""
    found = []
    for row in range(len(a)):
        values = [
            2 * float((a[row, p] - b[row, p]).norm()) / (float(a[row, p].norm()) + float(b[row, p].norm()))
            for p in range(int(lengths[row]))
        ]
        found.append(sum(values) / len(values))
    return found


def test_a_change_of_one_layer_is_found_there_and_the_numbers_are_the_definitions(
    tiny_gpt2_64: Any, tiny_task: Task
) -> None:
    other, edit = changed("W_out.1", 0.02)
    with apply_edit(other, edit), borrowed(tiny_gpt2_64) as model, torch.no_grad():
        found = find_divergence(model, other, tiny_task, n_null=2)
        caches = [m.run_with_cache(tiny_task.pairs.clean_tokens)[1] for m in (model, other)]
        for row in found.rows:
            a, b = (cache[f"blocks.{row.layer}.hook_{row.kind}"] for cache in caches)
            values = by_hand(a, b, tiny_task.pairs.lengths)
            assert row.distance == pytest.approx(sum(values) / len(values), abs=1e-12)
        for layer, row in enumerate(found.of("resid_post")):
            p, q = (
                m.unembed(m.ln_final(cache[f"blocks.{layer}.hook_resid_post"]))[:, -1].log_softmax(-1)
                for m, cache in zip((model, other), caches, strict=True)
            )
            assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-6, abs=1e-9)
    stream = found.of("resid_post")
    assert (stream[0].distance, stream[0].weights, stream[0].null) == (0.0, 0.0, 0.0)
    assert stream[1].weights > 0
    assert stream[1].distance > 0.01
    assert stream[2].distance > 0.01
    assert stream[2].weights == 0.0
    assert found.of("attn_out")[1].distance == 0.0
    assert found.first_layer in (1, 2, None)
    assert found.output_kl == pytest.approx(stream[2].kl, rel=1e-6)
    assert len(found.to_dataframe()) == 9
    assert "over" in str(found)


def test_the_same_model_is_nowhere_over_the_null(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    found = find_divergence(tiny_gpt2_64, build_model("gpt2"), tiny_task, n_null=1)
    assert found.first_layer is None
    assert {row.distance for row in found.rows} == {0.0}
    assert found.output_kl == 0.0
    with pytest.raises(MetricError, match="same metric"):
        patch_across(tiny_gpt2_64, build_model("gpt2"), tiny_task)


@pytest.mark.parametrize("family", ["gpt2", "neox", "phi3", "falcon", "mixtral"], indirect=True)
def test_noise_has_the_size_it_says_and_comes_off_to_the_bit(family_model64: Any, family: str) -> None:
    other = build_model(family, seed=1)
    with borrowed(family_model64) as model:
        sizes = weight_distances(model, other)
        before = {name: p.detach().clone() for name, p in distinct_parameters(model).items()}
        with with_noise(model, sizes, seed=0):
            for name, parameter in distinct_parameters(model).items():
                assert float((parameter.double() - before[name].double()).norm()) == pytest.approx(
                    sizes[name], rel=1e-6
                )
        assert max(sizes.values()) > 0.1
        with pytest.raises(RuntimeError), with_noise(model, sizes, seed=0):
            raise RuntimeError


def test_a_tuned_model_is_over_the_null_and_an_untuned_site_carries_nothing(bundled_model: Any) -> None:
    """Ten steps towards the wrong pronouns: every layer differs more than by noise, and late streams carry all
    of it.
    """
    task = mw.tasks.pronoun(bundled_model, n=48)
    tuned = mw.load_model("gpt2-6l")
    weights = [p for name, p in distinct_parameters(tuned).items() if ".h.2." in name]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    train = task.train.pairs
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(train.final(tuned(train.clean_tokens)), train.incorrect[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tuned.requires_grad_(False)
    for weight in weights:
        weight.grad = None
    found = find_divergence(bundled_model, tuned, task.test, kinds=["mlp_out"], n_null=2)
    stream = found.of("resid_post")
    assert [row.distance > 0 for row in stream] == [False, False, True, True, True, True]
    assert found.first_layer == 2
    assert stream[3].distance > 2 * stream[3].null
    assert found.metric[0] - found.metric[1] > 3
    across = {
        str(row.site): row for row in patch_across(bundled_model, tuned, task.test, ["resid_post", "mlp_out"]).rows
    }
    assert across["resid_post.1"].share == pytest.approx(0.0, abs=1e-6)
    assert across["resid_post.2"].share == pytest.approx(1.0, abs=1e-3)  # all that differs lies before it
    low, high = across["mlp_out.2"].interval
    assert low <= across["mlp_out.2"].share <= high


@pytest.mark.parametrize("family", FIVE, indirect=True)
def test_values_go_across_as_a_hook_would_carry_them(family_model64: Any, family: str, tiny_task: Task) -> None:
    donor, task = build_model(family, seed=1), tiny_task
    tokens = task.pairs.clean_tokens
    sites = ["resid_post", "mlp_out", Site("z", 1, 2), Site("pattern", 2, 0)]
    with borrowed(family_model64) as host, torch.no_grad():
        found = patch_across(host, donor, task, sites)
        plain, theirs = task.measure(host(tokens)), task.measure(donor(tokens))
        cache = donor.run_with_cache(tokens)[1]
        gap = float((theirs - plain).mean())
        for row in found.rows:
            inside = "attn." if row.site.kind in ("z", "pattern") else ""
            name = f"blocks.{row.site.layer}.{inside}hook_{row.site.kind}"

            def put(x: Tensor, hook: Any, row: Any = row, name: str = name) -> Tensor:
                new = x.clone()
                if row.site.kind == "z":
                    new[:, :, row.site.head] = cache[name][:, :, row.site.head]
                elif row.site.kind == "pattern":
                    new[:, row.site.head] = cache[name][:, row.site.head]
                else:
                    new = cache[name]
                return new

            effect = float((task.measure(host.run_with_hooks(tokens, fwd_hooks=[(name, put)])) - plain).mean())
            assert row.effect == pytest.approx(effect, abs=1e-9)
            assert row.share == pytest.approx(effect / gap)
        assert max(abs(row.effect) for row in found.rows) > 0.1
        assert len(found.rows) == 8
        assert len(found.best(2)) == 2


def test_directions_and_lenses_side_by_side(tiny_gpt2_64: Any) -> None:
    task = build_task(n=8)
    examples, sites = Examples.of_task(task), [Site("resid_post", layer) for layer in range(3)]
    other, edit = changed("W_out.1", 0.02)
    with apply_edit(other, edit):
        rows = compare_directions(tiny_gpt2_64, other, examples, sites)
        assert rows[0].cosine == pytest.approx(1.0)
        assert rows[2].cosine < 1 - 1e-6
        fitted, _ = examples.split(seed=0)
        a, b = (fit_direction(model, fitted, sites[2]).vector for model in (tiny_gpt2_64, other))
        assert rows[2].cosine == pytest.approx(float(a @ b / a.norm() / b.norm()))
        assert rows[2].chance == pytest.approx(1.96 / 32**0.5)
        plain = compare_lenses(tiny_gpt2_64, other, task)
        assert (plain[0].kl, plain[0].swapped) == pytest.approx((0.0, 0.0), abs=1e-12)
        assert plain[2].kl > 1e-4
        lenses = []
        for model, seed in ((tiny_gpt2_64, 0), (other, 1)):
            generator = torch.Generator().manual_seed(seed)
            shapes = Full().shapes(32)
            parts = {name: torch.randn(2, *shape, generator=generator) / 10 for name, shape in shapes.items()}
            lenses.append(TunedLens(Full(), "resid_post", parts, fingerprint(model)))
        found = compare_lenses(tiny_gpt2_64, other, task, *lenses)
        x = tiny_gpt2_64.run_with_cache(task.pairs.clean_tokens)[1]["blocks.0.hook_resid_post"][:, -1]
        p, q = (
            tiny_gpt2_64.unembed(tiny_gpt2_64.ln_final(lens.translate(x, sites[0])[:, None]))[:, 0].log_softmax(-1)
            for lens in lenses
        )
        assert found[0].swapped == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-6)
        flat = [(lens.matrix(sites[0]) - torch.eye(32)).flatten() for lens in lenses]
        assert found[0].cosine == pytest.approx(float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm()), rel=1e-4)
        assert len(found) == 2
    assert BiasOnly().name


def test_contracts(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    other = build_model("gpt2", seed=1)
    with pytest.raises(InputError, match="differ in architecture GPT2LMHeadModel and LlamaForCausalLM"):
        find_divergence(tiny_gpt2_64, build_model("llama"), tiny_task)
    with pytest.raises(InputError, match="vector per token"):
        find_divergence(tiny_gpt2_64, other, tiny_task, kinds=["pattern"])
    with pytest.raises(InputError, match="n_null=0"):
        find_divergence(tiny_gpt2_64, other, tiny_task, n_null=0)
    with pytest.raises(InputError, match="position is 'all'"):
        patch_across(tiny_gpt2_64, other, tiny_task, position="NAME")
    with pytest.raises(InputError, match="layers of this model"):
        patch_across(tiny_gpt2_64, other, tiny_task, [Site("resid_post", 9)])
    with pytest.raises(InputError, match="one site or more"):
        patch_across(tiny_gpt2_64, other, tiny_task, [])
    opt = build_model("opt"), build_model("opt", seed=1)
    with pytest.raises(InputError, match="not written"):
        patch_across(*opt, tiny_task, ["pattern"])


def test_an_mlp_that_writes_zeros_is_left_out_and_no_cosine_is_nan() -> None:
    first, second = (mw.load_model(name) for name in ("attn-only-2l@500", "attn-only-2l"))
    task = mw.tasks.induction(first, n=4).test
    found = find_divergence(first, second, task, n_null=1)
    assert found.kinds == ("resid_post", "attn_out")
    asked = find_divergence(first, second, task, kinds=["mlp_out"], n_null=1)
    assert [row.cosine for row in asked.of("mlp_out")] == [1.0, 1.0]
    assert not any(row.cosine != row.cosine for row in (*found.rows, *asked.rows))
    zeros = torch.zeros(1, *task.pairs.mask.shape, 2)
    one = _distance(zeros, zeros + 1, task.pairs)
    assert one[0].tolist() == [[pytest.approx(2.0, abs=1e-12)] * len(task)]
    assert one[1].tolist() == [[0.0] * len(task)]
