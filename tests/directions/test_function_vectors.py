"""Function vectors against the formula head by head; demonstrations exchanged, taken away, refused; the bundled model
that has one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.directions import Demonstrations, check_function_vector, fit_function_vector
from mechwork.errors import InputError, MetricError
from mechwork.interventions import Write, intervene
from mechwork.sites import Site
from tests.families import D_VOCAB, build_model
from tests.reference import literal
from tests.reference.function_vectors import indirect_effects, mean_head_outputs


def random_demonstrations(model: Any, n: int = 3) -> Demonstrations:
    """Two examples (first word, link, second word, comma), then a query and a link; answers: what the examples make
    likelier.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, D_VOCAB, (n, 12), generator=generator)
    lengths = torch.tensor([12, 11, 12][:n])
    images = torch.tensor([[3, 7]] * n)
    ones = torch.ones(n, dtype=torch.long)
    made = Demonstrations(tokens, lengths, ones, images, ones, torch.full((n,), 9))
    with torch.no_grad():
        clean, bare = (part.final(model(part.tokens)).softmax(dim=-1) for part in (made, made.bare()))
    gain = clean - bare
    gain[:, 0] = -1.0  # id 0 pads
    return replace(made, answers=gain.argmax(dim=-1))


def rows(prompts: Demonstrations) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(prompts.tokens, prompts.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "gemma2"])
def test_effects_and_vector_are_those_of_the_formula(name: str) -> None:
    model = build_model(name)
    shown = random_demonstrations(model)
    found = fit_function_vector(model, shown, shown.bare(), n_heads=2, site=Site("resid_post", 1))
    z = mean_head_outputs(model, rows(shown), 3, 4)
    expected = indirect_effects(model, rows(shown.bare()), shown.answers.tolist(), z)
    torch.testing.assert_close(found.effects, expected, rtol=0, atol=1e-9)
    assert float(expected.abs().max()) > 1e-4
    chosen = sorted(((i, j) for i in range(3) for j in range(4)), key=lambda k: -float(expected[k]))[:2]
    assert list(found.heads) == chosen
    torch.testing.assert_close(found.vector, torch.stack([found.writes[i, j] for i, j in chosen]).sum(dim=0))
    for layer in range(3):  # the heads' mean writes add up to the mean of what attention adds, less its bias
        outputs = [
            literal.cached(model, torch.tensor([row]))[literal.hook("attn_out", layer)][0, -1] for row in rows(shown)
        ]
        bias = getattr(model.blocks[layer].attn, "b_O", None)
        total = found.writes[layer].sum(dim=0) + (0 if bias is None or name == "gemma2" else bias.detach())
        close = 1e-6 if name == "gemma2" else 1e-9  # its post-norm computes in float32
        torch.testing.assert_close(total, torch.stack(outputs).mean(dim=0), rtol=0, atol=close)
    assert found.clean > found.uninformative


def test_examples_are_exchanged_or_taken_away(tiny_gpt2: Any) -> None:
    shown = random_demonstrations(tiny_gpt2)
    mixed = shown.shuffled(seed=1)
    for row in range(3):
        assert mixed.tokens[row, 3] == shown.tokens[row, 7]
        assert mixed.tokens[row, 7] == shown.tokens[row, 3]
    rest = [i for i in range(12) if i not in (3, 7)]
    assert torch.equal(mixed.tokens[:, rest], shown.tokens[:, rest])
    bare = shown.bare()
    assert rows(bare)[1] == [*rows(shown)[1][:1], *rows(shown)[1][9:]]
    assert bare.shots == 0
    with pytest.raises(InputError, match="two are needed"):
        bare.shuffled()


def test_words_of_ones_own_make_prompts_and_must_fit_the_context(bundled_model: Any) -> None:
    words = [("Mary", "John"), ("John", "Mary"), ("Anna", "Tom"), ("Tom", "Anna"), ("Sara", "Kate"), ("Kate", "Sara")]
    words = [
        pair
        for pair in words
        if all(len(bundled_model.tokenizer(f" {w}", add_special_tokens=False).input_ids) == 1 for w in pair)
    ]
    made = Demonstrations.of_words(bundled_model, words, shots=2, n=5, opening="So")
    text = bundled_model.tokenizer.decode(made.tokens[0].tolist())
    assert text.count(":") == 3
    second = bundled_model.tokenizer.decode([int(made.tokens[0, made.images[0, 1]])]).strip()
    assert second in {y for _, y in words}
    with pytest.raises(InputError, match=r"context has 128: at most \d+ fit"):
        Demonstrations.of_words(bundled_model, words * 20, shots=40)
    with pytest.raises(InputError, match="one token of this model"):
        Demonstrations.of_words(bundled_model, [("Xyzzyqq", "Mary"), ("Mary", "Xyzzyqq")], shots=1)
    with pytest.raises(InputError, match="need 5 pairs of words"):
        Demonstrations.of_words(bundled_model, words[:2])


def test_french_is_a_vector_in_gemma2() -> None:
    model = mw.load_model("gemma2-6l")
    task = mw.tasks.in_context(model, n=48, relation="french")
    shown, held = Demonstrations.of_task(task.train), Demonstrations.of_task(task.test)
    with pytest.raises(MetricError, match="nothing is missing"):  # shuffled examples are French all the same
        fit_function_vector(model, shown)
    french = fit_function_vector(model, shown, shown.bare(), n_heads=4)
    assert {layer for layer, _ in french.heads[:3]} == {1}
    result = check_function_vector(model, french, {"bare": held.bare()}, strengths=(2.0,), n_controls=2)
    assert result.accuracy("bare", "nothing") == 0.0
    assert result.accuracy("bare", "function vector") > 0.8
    assert max(result.accuracy("bare", "other heads"), result.accuracy("bare", "random")) < 0.2
    bare = held.bare()
    with torch.no_grad(), intervene(model, [Write(french.direction.site, french.write(2.0), bare.ends())]):
        said = bare.final(model(bare.tokens)).argmax(dim=-1)
    assert float((said == bare.answers).double().mean()) == result.accuracy("bare", "function vector")


def test_contracts(tiny_gpt2: Any) -> None:
    shown = random_demonstrations(tiny_gpt2)
    with pytest.raises(InputError, match="12 heads; got n_heads=13"):
        fit_function_vector(tiny_gpt2, shown, shown.bare(), n_heads=13)
    with pytest.raises(InputError, match="residual stream"):
        fit_function_vector(tiny_gpt2, shown, shown.bare(), site=Site("mlp_out", 1))
    long = Demonstrations(
        torch.ones(1, 70, dtype=torch.long), torch.tensor([70]), torch.tensor([1]), torch.tensor([[3]]),
        torch.tensor([1]),
        torch.tensor([60]),
    )  # fmt: skip
    with pytest.raises(InputError, match="context of 64 tokens; the longest prompt has 70"):
        fit_function_vector(tiny_gpt2, long, long.bare())
    with pytest.raises(InputError, match="out of order"):
        Demonstrations(shown.tokens, shown.lengths, shown.answers, shown.images, shown.query, shown.first)
    with pytest.raises(InputError, match="lacks X1"):
        Demonstrations.of_task(mw.Task.from_tokens([[1, 2]], [[1, 3]], [1], [2]))
    found = fit_function_vector(tiny_gpt2, shown, shown.bare(), n_heads=12)
    with pytest.raises(InputError, match="no other head"):
        found.of_other_heads()
    with pytest.raises(InputError, match="fitted in another model"):
        check_function_vector(build_model("llama", torch.float32), found, {"bare": shown.bare()})
