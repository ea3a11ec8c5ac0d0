"""What directions, neurons, heads and singular vectors say, against literal sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformer_lens import SVDInterpreter
from transformer_lens.tools.analysis.jacobian_lens import JacobianLens as HostLens

import mechwork as mw
from mechwork.lenses import (
    JacobianLens,
    Readout,
    find_neurons,
    read_directions,
    read_head,
    read_lens,
    read_neurons,
    read_singular,
    singular_directions,
    token_effects,
    token_states,
    value_vectors,
)
from tests.families import D_VOCAB, build_model
from tests.lenses.test_tuned import random_lens
from tests.reference.literal import cached


def test_an_effect_is_the_derivative_of_the_logits_at_a_fixed_scale(family_model64: Any, seed: int) -> None:
    """A write's share of a logit difference (direct attribution) is its token effect over the norm's scale."""
    model = family_model64
    x, v = torch.randn(32, dtype=torch.float64), torch.randn(32, dtype=torch.float64)
    effects = token_effects(model, v)
    norm = mw.models.anatomy.final_norm(model)
    assert norm is not None
    linear = norm.linear(v, norm.scale(x)) @ model.W_U
    torch.testing.assert_close(effects / norm.scale(x), linear - linear.mean(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(token_effects(model, -2 * v), -2 * effects)
    assert float(effects.std()) > 0.1


def test_reading_lists_the_greatest_and_least_effects(tiny_gpt2_64: Any, seed: int) -> None:
    v = torch.randn(3, 32, dtype=torch.float64)
    reading = read_directions(tiny_gpt2_64, v, names=["a", "b", "c"], k=5)
    effects = token_effects(tiny_gpt2_64, v)
    for i in range(3):
        order = effects[i].argsort(descending=True)
        assert reading.raised_ids[i].tolist() == order[:5].tolist()
        assert reading.lowered_ids[i].tolist() == order.flip(0)[:5].tolist()
    assert reading.words("b")[0][1] == pytest.approx(float(effects[1].max()))
    text = reading.words("b")[2][0]
    assert "b" in dict(reading.promoting(text))
    assert len(reading.to_dataframe()) == 30
    assert "raised" in str(reading)


def test_lenses_push_directions_without_their_bias(tiny_gpt2_64: Any, seed: int) -> None:
    lens, site, v = random_lens(tiny_gpt2_64), mw.Site("resid_pre", 1), torch.randn(32, dtype=torch.float64)
    pushed = v + lens.parts["weight"][1].double() @ v
    torch.testing.assert_close(token_effects(tiny_gpt2_64, v, lens, site), token_effects(tiny_gpt2_64, pushed))
    torch.testing.assert_close(lens.matrix(site).double() @ v, pushed, rtol=1e-5, atol=1e-5)
    with pytest.raises(mw.errors.InputError, match="say where"):
        read_directions(tiny_gpt2_64, v, lens)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2"])
def test_neurons(family: str) -> None:
    model = build_model(family)
    reading = read_neurons(model, 1, [3, 5], k=4)
    assert reading.names == ("m1.n3", "m1.n5")
    tokens = torch.arange(8)[None]
    write = cached(model, tokens)["blocks.1.hook_mlp_out"]

    def double(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation = activation.clone()
        activation[..., 5] += 1.0
        return activation

    moved: list[torch.Tensor] = []
    with torch.no_grad():
        model.run_with_hooks(
            tokens,
            fwd_hooks=[("blocks.1.mlp.hook_post", double), ("blocks.1.hook_mlp_out", lambda x, hook: moved.append(x))],
        )
    change = (moved[0] - write)[0, 3]
    columns = torch.stack([value_vectors(model, 1)[5], write[0, 3]], dim=1)  # a post-norm's scale moves too
    found = torch.linalg.lstsq(columns, change[:, None]).solution[:, 0]
    torch.testing.assert_close(columns @ found, change, rtol=1e-4, atol=1e-4)
    assert float(found[0]) > 0.1
    if family in ("gpt2", "llama"):
        torch.testing.assert_close(found, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=1e-4, atol=1e-4)
    best = find_neurons(model, [3, 7], k=3)
    layer, neuron = map(int, best[0][0][1:].split(".n"))
    own = token_effects(model, value_vectors(model, layer)[neuron])
    assert best[0][1] == pytest.approx(float((own[[3, 7]] / own.std()).min()), rel=1e-5)
    assert best[0][1] > best[2][1] > 0.5


def test_what_has_no_neurons_is_refused() -> None:
    with pytest.raises(mw.errors.InputError, match="mlp_post"):
        read_neurons(build_model("mixtral"), 0)
    with pytest.raises(mw.errors.InputError, match="neurons of layer"):
        read_neurons(build_model("gpt2"), 0, [999])


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "olmo2", "gemma2", "falcon", "olmoe"])
def test_head_circuits_are_the_literal_ones(family: str) -> None:
    """Tables from the activations of real runs: values and keys of one-token prompts, heads' writes as vectors.

    RMS norms of the wrapped modules compute in float32.
    """
    model = build_model(family)
    layer, head, k = 1, 2, 5
    circuits = read_head(model, layer, head, list(range(20)), k=k)
    group = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
    cache = cached(model, torch.arange(D_VOCAB)[:, None])
    states = cache["blocks.0.hook_resid_post"][:, 0]
    torch.testing.assert_close(token_states(model, layer), states, rtol=1e-9, atol=1e-9)
    values = cache[f"blocks.{layer}.attn.hook_v"][:, 0, head // group]
    bias = model.blocks[layer].attn.b_V
    values = values if bias is None else values - bias[head // group]
    writes = values @ model.blocks[layer].attn.W_O[head]
    post = mw.models.anatomy.block_norm(model, layer, "ln1_post")
    table = token_effects(model, writes if post is None else post.gain * writes)
    torch.testing.assert_close(circuits.ov, table[:20, :20], rtol=1e-5, atol=1e-5)
    order = table.argsort(dim=1, descending=True)
    assert torch.equal(circuits.top_ids, order[:20, :k])
    own = torch.arange(D_VOCAB)[:, None]
    assert circuits.copies == pytest.approx(float((order[:, :k] == own).any(1).double().mean()))
    assert circuits.suppresses == pytest.approx(float((order[:, -k:] == own).any(1).double().mean()))
    last = mw.models.anatomy.final_norm(model)
    assert last is not None
    whole = (last.gain * last.centre(writes if post is None else post.gain * writes)) @ model.W_U
    eigenvalues = torch.linalg.eigvals(whole)
    assert circuits.copying == pytest.approx(float(eigenvalues.real.sum() / eigenvalues.abs().sum()), abs=1e-4)
    if "q_norm" not in model.blocks[layer].attn.submodules:
        queries, keys = (cache[f"blocks.{layer}.attn.hook_{kind}"][:, 0] for kind in "qk")
        torch.testing.assert_close(
            circuits.qk, (queries[:, head] @ keys[:, head // group].T)[:20, :20], rtol=1e-5, atol=1e-5
        )
    assert float(circuits.qk.std()) > 0.01
    assert len(circuits.to_dataframe()) == 400


def test_scores_of_a_copying_and_a_suppressing_head_made_by_hand() -> None:
    """Without norms, with W_V W_O = +-1 on an orthogonal embedding that is also the unembedding."""
    from tests.families import build_native

    model = build_native("attention only")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        basis = torch.linalg.qr(torch.randn(D_VOCAB, D_VOCAB, dtype=torch.float64)).Q[:, :32]
        model.embed.weight.copy_(basis)
        model.unembed.weight.copy_(basis)
        for head, sign in ((0, 1.0), (1, -1.0)):
            model.blocks[0].attn.W_V.data[head] = torch.eye(32, 8, dtype=torch.float64)
            model.blocks[0].attn.W_O.data[head] = sign * torch.eye(8, 32, dtype=torch.float64)
            model.blocks[0].attn.W_Q.data[head] = torch.eye(32, 8, dtype=torch.float64)
            model.blocks[0].attn.W_K.data[head] = torch.eye(32, 8, dtype=torch.float64)
    if float(model.blocks[0].attn.W_V[0].abs().sum()) == 0:
        pytest.skip("this bridge hands out copies of its weights")
    copier, suppressor = (read_head(model, 0, head, k=3) for head in (0, 1))
    assert copier.copying == pytest.approx(1.0)
    assert suppressor.copying == pytest.approx(-1.0)
    assert copier.copies > 0.5 > copier.suppresses
    assert suppressor.suppresses > 0.5 > suppressor.copies
    assert copier.attends_to_predicted > 0.5


def test_singular_directions() -> None:
    model = build_model("gpt2")
    vectors, values = singular_directions(model, "OV", 1, 2, n=3)
    norm = model.blocks[1].ln1.original_component
    product = (norm.weight[:, None] * model.blocks[1].attn.W_V[2]) @ model.blocks[1].attn.W_O[2]
    torch.testing.assert_close((product @ vectors[0]).norm(), values[0], rtol=1e-6, atol=1e-6)
    assert float(values[0]) == pytest.approx(float(torch.linalg.matrix_norm(product, 2)), rel=1e-6)
    reads, _ = singular_directions(model, "OV_in", 1, 2, n=3)
    torch.testing.assert_close((reads[0] @ product).norm(), values[0], rtol=1e-6, atol=1e-6)
    out, sizes = singular_directions(model, "W_out", 1, n=2)
    torch.testing.assert_close((model.blocks[1].mlp.W_out.float() @ out[0]).norm(), sizes[0], rtol=1e-5, atol=1e-5)
    assert read_singular(model, "W_in", 0, n=2, k=3).names[1].startswith("W_in 0 #1")
    reading = read_singular(model, "OV", 1, 2, n=2, k=3, lens=random_lens(model))
    assert reading.raised_ids.shape == (2, 3)
    with pytest.raises(mw.errors.InputError, match="belongs to a head"):
        singular_directions(model, "OV", 1)
    with pytest.raises(mw.errors.InputError, match="unknown weight"):
        singular_directions(model, "QK", 1, 0)


def test_singular_directions_are_the_hosts_without_gains() -> None:
    """On a model whose norms have gain one the host's SVD tool reads the same tokens."""
    model = build_model("gpt2", torch.float32)
    with torch.no_grad():
        for norm in (model.blocks[1].ln1, model.ln_final):
            norm.original_component.weight.fill_(1.0)
    host = SVDInterpreter(model).get_singular_vectors("OV", 1, num_vectors=1, head_index=2)[:, 0, 0]
    vectors, _ = singular_directions(model, "OV", 1, 2, n=1)
    ours = vectors[0] @ model.W_U
    sign = torch.sign((ours * host).sum())
    torch.testing.assert_close(ours, sign * host, rtol=1e-3, atol=1e-4)


def test_the_hosts_jacobian_lens_plugs_in(bundled_model: Any) -> None:
    prompts = [
        (
            "When Mary and John went to the shop, John gave a drink to Mary and then they went to the park and John "
            "gave "
            "a drink to Mary."
        )
    ]
    fitted = HostLens.fit(
        bundled_model, prompts, corpus="test", show_progress=False, dim_batch=64, skip_first_positions=2
    )
    lens = JacobianLens(fitted)
    prompt = "Mary and John went to the"
    table = read_lens(bundled_model, prompt, lens, top_k=4)
    assert table.places == tuple(f"resid_post.{i}" for i in range(6))
    host = fitted.readout(bundled_model, table.tokens, top_k=4)
    for layer in range(5):
        assert torch.equal(table.top_ids[layer, 0], host.lens_topk_indices[layer])
    v = torch.randn(128)
    assert read_directions(bundled_model, v, lens, site=mw.Site("resid_post", 2)).lens == "Jacobian lens"
    torch.testing.assert_close(
        Readout.of(bundled_model).logits(lens.translate(v, mw.Site("resid_post", 2))),
        bundled_model.unembed(bundled_model.ln_final((fitted.jacobians[2].float() @ v)[None, None]))[0, 0],
        rtol=1e-4,
        atol=1e-3,
    )
    with pytest.raises(mw.errors.ArtefactError, match="does not fit"):
        read_lens(build_model("gpt2", torch.float32), torch.tensor([[1, 2]]), lens)
    with pytest.raises(mw.errors.InputError, match="wraps the host's"):
        JacobianLens(3)
