"""Rules against literal definitions, conservation on every family, and the context that borrows the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from mechwork.errors import InputError, UnknownNameError
from mechwork.models.anatomy import Norm, norm_modules, read_anatomy, read_norm
from mechwork.patching.attribution import find_coefficients
from mechwork.relevance import (
    CP_LRP,
    GRADIENT,
    PRESETS,
    RELP,
    RELP_AH,
    AHRule,
    Composite,
    GradientRule,
    IdentityRule,
    LNRule,
    find_composite,
    straight,
)
from mechwork.relevance.rules import norm_pull_back
from mechwork.runs import record_run
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model, build_task


def coefficients(
    model: Any, task: Task, composite: Composite, kinds: list[str]
) -> tuple[Any, dict[str, list[torch.Tensor]], float]:
    with composite.context(model):
        run = record_run(model, task.pairs, kinds, grad=True)
        value = task.metric(run.logits, task.pairs).sum()
    return run, find_coefficients(run, value, kinds), float(value.detach())


def test_straight_keeps_the_value_and_sends_the_gradient_elsewhere() -> None:
    x, y = torch.tensor(2.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    out = straight(3 * y, 7 * x)
    out.backward()
    assert float(out.detach()) == 15
    assert x.grad == 7
    assert y.grad is None


def test_identity_rule_at_zero_is_the_limit() -> None:
    for act, limit in ((torch.nn.functional.silu, 0.5), (torch.nn.functional.gelu, 0.5), (torch.tanh, 1.0)):
        x = torch.tensor([0.0, 1e-9, -1e-9, 1e-30], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(IdentityRule().surrogate(x, act).sum(), x)
        torch.testing.assert_close(grad, torch.full_like(grad, limit), rtol=0, atol=1e-6)
    x = torch.tensor([-3.0, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(IdentityRule().surrogate(x, torch.nn.functional.silu).sum(), x)
    torch.testing.assert_close(grad, torch.sigmoid(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rule", [None, LNRule(), GradientRule("norm")])
def test_pull_back_through_a_norm_is_its_vjp(rule: Any, centred: bool) -> None:
    torch.manual_seed(0)
    norm = Norm(centred, torch.randn(6).double(), torch.randn(6).double(), 1e-5)
    x = torch.randn(2, 3, 6).double()
    v = torch.randn(2, 3, 4, 6).double()
    leaf = x.unsqueeze(2).expand(2, 3, 4, 6).clone().requires_grad_(True)
    out = norm.linear(leaf, norm.scale(leaf).detach()) if isinstance(rule, LNRule) else norm(leaf)
    (expected,) = torch.autograd.grad(out, leaf, v)
    torch.testing.assert_close(norm_pull_back(rule, norm, x, v), expected, rtol=0, atol=1e-12)


def test_norms_as_numbers_equal_the_modules(family_model64: Any) -> None:
    for _, module in norm_modules(family_model64):
        width = int(read_norm(module).gain.shape[0])
        x = torch.randn(2, 3, width).double() * 3 + 1
        with torch.no_grad():
            torch.testing.assert_close(read_norm(module)(x), module(x).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(PRESETS))
def test_forward_is_unchanged_to_the_bit(family_model: Any, tiny_task: Task, name: str) -> None:
    tokens = tiny_task.pairs.clean_tokens
    with borrowed(family_model) as model, torch.no_grad():
        plain = model(tokens)
        with PRESETS[name].context(model), torch.enable_grad():
            run = record_run(model, tiny_task.pairs, ["resid_pre"], grad=True)
        assert torch.equal(run.logits, plain)
        assert torch.equal(model(tokens), plain)


CONSERVING = {"llama", "mistral", "qwen3", "gemma2", "gemma3", "olmo2", "mixtral", "olmoe", "qwen3_moe", "phi3"}


def test_relevance_is_conserved_without_biases(family_model64: Any, family: str, tiny_task: Task) -> None:
    """With constant scales, patterns, gates and routers the metric is linear in the stream: R is the same at every
    layer.
    """
    run, found, value = coefficients(family_model64, tiny_task, RELP_AH, ["resid_pre", "resid_post"])
    relevance = [
        float((run.layers[k][layer] * found[k][layer]).sum().detach())
        for k in ("resid_pre", "resid_post")
        for layer in range(3)
    ]
    if family in CONSERVING:
        assert relevance == pytest.approx([value] * 6, abs=2e-5 * max(1, abs(value)))
    else:  # biases carry relevance away
        assert any(abs(r - value) > 1e-3 for r in relevance)
    _, plain, _ = coefficients(family_model64, tiny_task, GRADIENT, ["resid_post"])
    assert abs(float((run.layers["resid_post"][-1].detach() * plain["resid_post"][-1]).sum())) < 1e-3 * abs(
        value
    ) or family in {
        "gpt2",
        "neox",
    }


def test_biases_account_for_what_is_not_conserved(tiny_task: Task) -> None:
    """metric = stream . coefficient + sum over all biases of bias . d metric / d bias, at the embedding, to 1e-9."""
    model = build_model("gpt2")
    biases = [p.requires_grad_(True) for name, p in model.named_parameters() if p.ndim == 1 and name.endswith("bias")]
    with RELP_AH.context(model):
        run = record_run(model, tiny_task.pairs, ["resid_pre"], grad=True)
        value = tiny_task.metric(run.logits, tiny_task.pairs).sum()
    stream = run.layers["resid_pre"][0]
    grads = torch.autograd.grad(value, [stream, *biases], allow_unused=True)
    account = sum(float((p.detach() * g).sum()) for p, g in zip(biases, grads[1:], strict=True) if g is not None)
    relevance = float((stream.detach() * grads[0]).sum())
    assert abs(account) > 1e-2
    assert relevance + account == pytest.approx(float(value.detach()), abs=1e-9)


def test_each_rule_changes_the_coefficients_it_should(family_model64: Any, tiny_task: Task) -> None:
    _, plain, _ = coefficients(family_model64, tiny_task, GRADIENT, ["resid_pre"])
    for composite in (RELP, RELP_AH, CP_LRP):
        _, other, _ = coefficients(family_model64, tiny_task, composite, ["resid_pre"])
        assert float((plain["resid_pre"][0] - other["resid_pre"][0]).abs().max()) > 1e-4


def test_attention_rule_stops_queries_and_keys(family_model64: Any, tiny_task: Task) -> None:
    _, found, _ = coefficients(family_model64, tiny_task, Composite("ah", (("*", AHRule()),)), ["q", "k", "v"])
    for layer in range(3):
        assert float(found["q"][layer].abs().max()) == float(found["k"][layer].abs().max()) == 0
        assert float(found["v"][layer].abs().max()) > 0


def test_first_match_wins_and_gradient_exempts(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    binding = RELP.prepend(("ln_final", GradientRule("norm"))).bind(tiny_gpt2_64)
    assert binding.rule("ln_final", "norm") is None
    assert binding.rule("blocks.0.ln1", "norm") == LNRule()
    assert "gradient (no rule)" in binding.report()
    exempt = RELP.prepend(("*", GradientRule("norm")), ("*", GradientRule("activation")))
    _, a, _ = coefficients(tiny_gpt2_64, tiny_task, exempt, ["resid_pre"])
    _, b, _ = coefficients(tiny_gpt2_64, tiny_task, GRADIENT, ["resid_pre"])
    torch.testing.assert_close(a["resid_pre"], b["resid_pre"], rtol=0, atol=0)


def test_survives_reset_hooks_and_leaves_nothing(family_model64: Any, tiny_task: Task) -> None:
    with borrowed(family_model64) as model:
        with RELP.context(model):
            model.reset_hooks()
            run = record_run(model, tiny_task.pairs, ["resid_pre"], grad=True)
            value = tiny_task.metric(run.logits, tiny_task.pairs).sum()
            inside = find_coefficients(run, value, ["resid_pre"])["resid_pre"][0]
        _, again, _ = coefficients(model, tiny_task, RELP, ["resid_pre"])
        torch.testing.assert_close(inside, again["resid_pre"][0], rtol=0, atol=0)
        with pytest.raises(KeyboardInterrupt), RELP_AH.context(model):
            raise KeyboardInterrupt


def test_innermost_context_alone_is_active(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    _, plain, _ = coefficients(tiny_gpt2_64, tiny_task, GRADIENT, ["resid_pre"])
    with RELP.context(tiny_gpt2_64):
        _, inner, _ = coefficients(tiny_gpt2_64, tiny_task, GRADIENT, ["resid_pre"])
    torch.testing.assert_close(inner["resid_pre"], plain["resid_pre"], rtol=0, atol=0)


def test_an_interrupted_forward_leaves_no_softmax_rule() -> None:
    """Attention inside the wrapped module gets its rule from a mode of the thread; Ctrl-C in it must not leave the mode
    on.
    """
    model, task = build_model("opt"), build_task()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    inside = model.blocks[1].attn.original_component
    handle = next(inside.children()).register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt), find_composite("gim").context(model):
        model(task.pairs.clean_tokens)
    handle.remove()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(x.softmax(dim=-1)[:, 0].sum(), x)[0]
    p = x.detach().softmax(dim=-1)
    torch.testing.assert_close(found, p * (torch.eye(5, dtype=p.dtype)[0] - p[:, :1]), rtol=0, atol=1e-12)
    assert all("forward" not in vars(module) for module in model.modules())


def test_cleanup_that_fails_is_finished(tiny_gpt2: Any, tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt inside the removal of a hook still takes off that hook and all others."""
    from torch.utils.hooks import RemovableHandle

    plain, calls = RemovableHandle.remove, []

    def remove(self: RemovableHandle) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        plain(self)

    with pytest.raises(KeyboardInterrupt), RELP.context(tiny_gpt2):
        tiny_gpt2(tiny_task.pairs.clean_tokens)
        monkeypatch.setattr(RemovableHandle, "remove", remove)
    monkeypatch.undo()
    assert len(calls) > 3
    assert not any(point.fwd_hooks for point in tiny_gpt2.hook_dict.values())  # `borrowed` looks at torch's own tables


def test_bad_composites_are_refused(tiny_gpt2: Any) -> None:
    with pytest.raises(UnknownNameError, match="nearest: relp"):
        find_composite("relp+")
    with pytest.raises(InputError, match="matches none"):
        Composite("x", (("blocks.9.ln1", LNRule()),)).bind(tiny_gpt2)
    # The shape checker of the test suite refuses these earlier; without it the classes themselves do.
    for wrong in (lambda: Composite("x", (LNRule(),)), lambda: GradientRule("norms")):  # pyright: ignore[reportArgumentType]
        with pytest.raises((InputError, TypeCheckError), match=r"pairs|one family|Type-check"):
            wrong()
    assert read_anatomy(tiny_gpt2).n_layers == 3
