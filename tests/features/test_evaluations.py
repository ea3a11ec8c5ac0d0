"""Evaluations against their definitions: reconstruction and loss recovered, Jensen-Shannon distances, suppression."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mechwork.directions import Examples
from mechwork.errors import InputError, UnknownNameError
from mechwork.features import (
    Attenuate,
    FeatureSet,
    Relu,
    SparseCoder,
    concept_of_answer,
    evaluate_features,
    fit_posterior,
    measure_separability,
    study_suppression,
)
from mechwork.features.concepts import bin_edges, bin_index, exchange, histograms, js_distance
from mechwork.lenses import open_text
from mechwork.sites import Site
from tests.families import D_VOCAB, build_task
from tests.features.build import coder, features
from tests.reference import features as literal

SITE = Site("resid_post", 1)


def rows(n: int = 6) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(D_VOCAB, (9,), generator=generator).tolist() for _ in range(n)]


def test_reconstruction_and_loss_by_their_definitions(tiny_gpt2_64: Any) -> None:
    made = features(tiny_gpt2_64, SITE, Site("mlp_out", 2))
    text = rows()
    measured = evaluate_features(tiny_gpt2_64, made, open_text(tiny_gpt2_64, text, packing="documents"), n_rows=6)
    tokens = torch.tensor(text)
    one = made["resid_post.1"]
    with torch.no_grad():
        y = tiny_gpt2_64.run_with_cache(tokens)[1]["blocks.1.hook_resid_post"][:, 1:]
        f = one.encode(y)
        mean = y.flatten(0, 1).mean(dim=0)
        left = (y - one.decode(f)).pow(2).sum() / (y - mean).pow(2).sum()

        def loss(put: Any) -> torch.Tensor:
            def hook(x: torch.Tensor, hook: object) -> torch.Tensor:
                new = x.clone()
                new[:, 1:] = put(x[:, 1:])
                return new

            logits = tiny_gpt2_64.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", hook)])
            return -logits[:, 1:-1].log_softmax(dim=-1).gather(2, tokens[:, 2:, None]).mean() / math.log(2)

        plain, spliced, flat = (
            loss(lambda x: x),
            loss(lambda x: one.decode(one.encode(x))),
            loss(mean.expand_as),
        )
    index = measured.places.index("resid_post.1")
    assert measured.unexplained[index] == pytest.approx(float(left), rel=1e-9)
    assert measured.l0[index] == pytest.approx(float((f > 0).sum(dim=-1).double().mean()))
    assert measured.dead[index] == pytest.approx(float((~(f > 0).flatten(0, 1).any(dim=0)).double().mean()))
    assert measured.loss("plain")[0] == pytest.approx(float(plain), rel=1e-9)
    assert measured.loss("spliced")[index] == pytest.approx(float(spliced), rel=1e-9)
    assert measured.recovered[index] == pytest.approx(float((flat - spliced) / (flat - plain)), rel=1e-6)
    assert abs(float(flat - plain)) > 1e-3
    assert len(measured.to_dataframe()) == 3
    assert "all places" in str(measured)


def test_a_perfect_code_loses_nothing(tiny_gpt2_64: Any) -> None:
    eye = torch.eye(32, dtype=torch.float64)
    zero = torch.zeros(64, dtype=torch.float64)
    both = torch.cat([eye, -eye])  # x = relu(x) - relu(-x)
    perfect = FeatureSet((SparseCoder(SITE, SITE, both.T.contiguous(), zero, both, zero[:32], Relu()),))
    measured = evaluate_features(tiny_gpt2_64, perfect, open_text(tiny_gpt2_64, rows(), packing="documents"), n_rows=6)
    assert measured.unexplained[0] == pytest.approx(0, abs=1e-12)
    assert measured.recovered == pytest.approx((1, 1))
    assert measured.l0[0] == pytest.approx(32)
    assert measured.random_unexplained[0] > 0.05
    with pytest.raises(InputError, match="two rows or more"):
        evaluate_features(tiny_gpt2_64, perfect, open_text(tiny_gpt2_64, rows(1), packing="documents"))


def test_the_distance_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 3, generator=generator).double().relu()
    labels = torch.arange(40) % 2 == 0
    values[labels, 1] += 5
    values[:, 2] = 0
    edges = bin_edges(values)
    found = js_distance(*histograms(bin_index(values, edges), labels, 8))
    expected = [literal.js_distance(values[:, i], labels, edges[:, i]) for i in range(3)]
    assert found.tolist() == pytest.approx(expected)
    assert found[1] == pytest.approx(1)
    assert found[2] == 0
    assert 0.05 < float(found[0]) < 0.9


def concept(n: int = 40, seed: int = 0) -> Examples:
    """Prompts that end in an even (positive) or an odd token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(D_VOCAB, (n, 6), generator=generator)
    tokens[:, -1] = torch.where(torch.arange(n) % 2 == 0, 2, 3) + 2 * torch.randint(2, (n,), generator=generator)
    return Examples.of_tokens(tokens.tolist(), (tokens[:, -1] % 2 == 0).tolist(), [i // 2 for i in range(n)])


def test_a_feature_that_is_the_concept_separates_and_chance_does_not(tiny_gpt2_64: Any) -> None:
    examples = concept()
    site = Site("embed")
    W_E = tiny_gpt2_64.W_E.detach()
    even = W_E[[2, 4]].sum(dim=0) - W_E[[3, 5]].sum(dim=0)
    made = coder(site, 32)
    W_enc = torch.zeros_like(made.W_enc)
    W_enc[:, 5] = even
    own = FeatureSet((SparseCoder(site, site, W_enc, torch.zeros(12).double(), made.W_dec, made.b_dec, Relu()),))
    found = measure_separability(tiny_gpt2_64, own, examples)
    best = found.best
    assert best.feature == 5
    assert best.distance == pytest.approx(1)
    assert best.passes
    assert 0 < best.chance < 0.7
    assert found["embed"].top[0] == 5
    shuffled = Examples(
        examples.tokens,
        exchange(examples.labels, examples.groups, torch.Generator().manual_seed(3)),
        examples.where,
        examples.groups,
    )
    assert measure_separability(tiny_gpt2_64, own, shuffled).best.distance < 0.7
    assert "chance" in str(found)
    assert len(found.to_dataframe()) == 1


def test_concepts_of_answers(bundled_model: Any) -> None:
    import mechwork as mw

    task = mw.tasks.agreement(bundled_model, n=16)
    number = concept_of_answer(bundled_model, task, " are")
    assert len(number) == 32
    assert int(number.labels.sum()) == 16
    with pytest.raises(InputError, match="has the answer"):
        concept_of_answer(bundled_model, task, " she")
    with pytest.raises(InputError, match="single token"):
        concept_of_answer(bundled_model, task, " unbelievable")


def test_attenuation_by_its_definition() -> None:
    examples = concept()
    values = torch.zeros(40, 3).double()
    values[:, 1] = torch.where(examples.labels, 4.0, 1.0).double() + 0.01 * torch.arange(40)
    write = fit_posterior(values, examples, [1])
    f = torch.tensor([[[0.5, 4.2, 7.0], [0.5, 1.1, 7.0]]]).double()
    new = write(f)
    assert torch.equal(new[..., [0, 2]], f[..., [0, 2]])
    n = int(examples.labels.sum())
    edges = write.edges[:, 0]
    for column in (0, 1):
        which = int((f[0, column, 1] > edges).sum())
        counts = [
            int(((values[rows, 1][:, None] > edges).sum(dim=1) == which).sum())
            for rows in (examples.labels, ~examples.labels)
        ]
        p, q = ((c + 1) / (n + 8) for c in counts)
        assert float(new[0, column, 1]) == pytest.approx(float(f[0, column, 1]) * (1 - p / (p + q)))
    assert float(new[0, 0, 1]) < 0.3 * 4.2
    assert float(new[0, 1, 1]) > 0.7 * 1.1
    half = Attenuate((1,), 0.5)(f)
    assert torch.equal(half[..., 1], 0.5 * f[..., 1])
    assert torch.equal(half[..., 0], f[..., 0])


def test_masking_falls_on_what_the_feature_carries(tiny_gpt2_64: Any) -> None:
    made = features(tiny_gpt2_64, SITE)
    task = build_task(n=6)
    study = study_suppression(
        tiny_gpt2_64,
        made,
        "resid_post.1",
        [0, 3],
        concept(),
        task[:3],
        task[3:],
        others=[build_task(n=4, seed=5)],
        shares=(0.5, 1.0),
    )
    rows = {(r.method, r.share, r.control): r for r in study.rows}
    assert len(rows) == 2 * 5
    mask, full = rows["mask", 1.0, False], rows["partial", 1.0, False]
    assert mask.concept == pytest.approx(full.concept)
    assert mask.kl == pytest.approx(full.kl)
    assert 0 < rows["posterior", 1.0, False].kl < mask.kl
    assert mask.concept_interval[0] <= mask.concept <= mask.concept_interval[1]

    def by_hand(y: torch.Tensor, hook: object) -> torch.Tensor:
        f = made[0].encode(y)
        return y - f[..., [0, 3]] @ made[0].W_dec[[0, 3]]

    with torch.no_grad():
        logits = tiny_gpt2_64.run_with_hooks(
            task[:3].pairs.clean_tokens, fwd_hooks=[("blocks.1.hook_resid_post", by_hand)]
        )
        plain = tiny_gpt2_64(task[:3].pairs.clean_tokens)
    expected = task.measure(logits, task[:3].pairs).mean() / task.measure(plain, task[:3].pairs).mean()
    assert mask.concept == pytest.approx(float(expected), rel=1e-9)
    assert abs(mask.concept - 1) > 1e-3
    assert "unsuppressed" in str(study)
    assert len(study.to_dataframe()) == 10


def test_contracts(tiny_gpt2_64: Any) -> None:
    made = features(tiny_gpt2_64, SITE)
    task = build_task(n=4)
    with pytest.raises(UnknownNameError, match="nearest: mask"):
        study_suppression(tiny_gpt2_64, made, "resid_post.1", [0], concept(), task, task, methods=["masks"])
    with pytest.raises(InputError, match="shares in"):
        study_suppression(tiny_gpt2_64, made, "resid_post.1", [0], concept(), task, task, shares=(1.5,))
    with pytest.raises(InputError, match="0 to 11"):
        study_suppression(tiny_gpt2_64, made, "resid_post.1", [12], concept(), task, task)
    with pytest.raises(InputError, match="four or more"):
        measure_separability(tiny_gpt2_64, made, concept(6))
    with pytest.raises(InputError, match="at least 2"):
        measure_separability(tiny_gpt2_64, made, concept(), n_bins=1)
    with pytest.raises(InputError, match="no features were measured"):
        measure_separability(tiny_gpt2_64, made, concept(), n_permutations=2)["mlp_out.0"]
