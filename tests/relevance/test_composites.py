"""Composites as values: names, aliases, JSON, precedence; binding reports; rules that would silently do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.errors import InputError, UnknownNameError
from mechwork.relevance import (
    ATTNLRP,
    GIM,
    PRESETS,
    RELP,
    BilinearRule,
    Composite,
    GammaRule,
    GradientRule,
    LNRule,
    PassRule,
    TemperatureRule,
    find_composite,
    fittings,
)
from mechwork.relevance.composite import build_rule
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model
from tests.relevance.test_rules import coefficients


@pytest.mark.parametrize("name", list(PRESETS))
def test_composites_survive_json(name: str) -> None:
    preset = PRESETS[name].prepend(
        ("mlp.*", GammaRule(0.1)), ("ln_final", PassRule("norm")), ("attn", GradientRule("attention"))
    )
    assert Composite.from_json(json.loads(json.dumps(preset.to_json()))) == preset


def test_names_and_lists_of_rules() -> None:
    assert find_composite("cp-lrp") is PRESETS["cp_lrp"]
    assert find_composite(["LN-rule", "Identity-rule", "Half-rule"]).entries == RELP.entries[:3]
    assert find_composite([LNRule(), "BilinearRule"]).entries == (("*", LNRule()), ("*", BilinearRule()))
    with pytest.raises(UnknownNameError, match="nearest: LN-rule"):
        find_composite(["LNrule"])
    with pytest.raises(UnknownNameError, match="rule 'Gamma'"):
        build_rule({"rule": "Gamma"})
    with pytest.raises(InputError, match="name and entries"):
        Composite.from_json({"name": "x"})


def test_a_rule_that_can_never_act_is_refused() -> None:
    with pytest.raises(InputError, match="can never act"):
        Composite("x", (("*", LNRule()), ("*", PassRule("norm"))))
    with pytest.raises(InputError, match="positive"):
        TemperatureRule(0.0)
    with pytest.raises(InputError, match="one family"):
        PassRule("linear")


def test_selectors_name_modules_or_kinds_of_modules(tiny_gpt2: Any) -> None:
    binding = Composite("x", (("blocks.[01].ln1", LNRule()), ("ln2", LNRule()), ("mlp.in", GammaRule()))).bind(
        tiny_gpt2
    )
    assert sorted(name for name, _ in binding.rules) == [
        "blocks.0.ln1", "blocks.0.ln2", "blocks.0.mlp.in", "blocks.1.ln1", "blocks.1.ln2", "blocks.1.mlp.in",
        "blocks.2.ln2", "blocks.2.mlp.in",
    ]  # fmt: skip
    report = RELP.bind(tiny_gpt2).report()
    assert "HalfRule matched nothing" in report
    assert "blocks.2.attn.o" in report
    assert "gradient (no rule)" in report


def test_a_rule_whose_output_is_thrown_away_is_found(tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fittings, "_fit_softmax", lambda bench, layer: None)
    assert GIM.bind(tiny_gpt2).rules
    with pytest.raises(InputError, match=r"do nothing: TemperatureRule\(temperature=2\) on blocks\.0\.attn"):
        GIM.bind(tiny_gpt2, strict=True)


def test_split_queries_bypass_norms_and_are_refused(tiny_gpt2: Any) -> None:
    with borrowed(tiny_gpt2) as model:
        model.cfg.use_split_qkv_input = True
        try:
            with pytest.raises(InputError, match="set_use_split_qkv_input"):
                RELP.bind(model)
        finally:
            model.cfg.use_split_qkv_input = False


def test_coefficients_inside_the_mlp_are_seen_under_rules(family_model64: Any, family: str, tiny_task: Task) -> None:
    """What a rule reads is the recorded tensor, so that pre-activations and scores have coefficients under every
    preset.
    """
    moe = "mix" in family or "moe" in family
    kinds = ["attn_scores", *([] if moe else ["mlp_pre", "mlp_post"])]
    if family in ("opt", "gptj"):
        kinds.remove("attn_scores")
    for composite in (RELP, ATTNLRP, GIM):
        _, found, _ = coefficients(family_model64, tiny_task, composite, kinds)
        for kind in kinds:
            assert min(float(c.abs().max()) for c in found[kind]) > 0


def test_rules_follow_interventions(family_model64: Any, family: str, tiny_task: Task) -> None:
    """A rule reads what an intervention has written, whenever that was installed: relevance is then that of the changed
    run.
    """
    if family in ("mixtral", "olmoe", "qwen3_moe"):
        pytest.skip("experts have no neurons before their activation")
    model, tokens = family_model64, tiny_task.pairs.clean_tokens
    kept: list[torch.Tensor] = []
    hooks = [
        ("blocks.0.hook_resid_pre", lambda x, **_: kept.append(x)),
        ("blocks.1.mlp.hook_pre", lambda x, **_: 1.5 * x),
        (
            "blocks.1.ln1.hook_in" if "blocks.1.ln1.hook_in" in model.hook_dict else "blocks.1.hook_resid_pre",
            lambda x, **_: 0.5 * x,
        ),
    ]
    with PRESETS["relp_ah"].context(model), model.hooks(fwd_hooks=hooks):
        value = tiny_task.metric(model(tokens), tiny_task.pairs).sum()
    grad = torch.autograd.grad(value, kept[0])[0]
    conserved = float((grad * kept[0].detach()).sum())
    if family in ("llama", "mistral", "qwen3", "gemma2", "gemma3", "olmo2", "phi3"):
        assert conserved == pytest.approx(float(value.detach()), rel=1e-5)
    assert float(grad.abs().max()) > 0


def test_pass_rule_leaves_a_norm_out(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    rules = Composite("pass", (("ln_final", PassRule("norm")),))
    _, found, _ = coefficients(tiny_gpt2_64, tiny_task, rules, ["resid_post"])
    pairs = tiny_task.pairs
    columns = tiny_gpt2_64.unembed.original_component.weight.detach()
    expected = columns[pairs.correct[:, 0]] - columns[pairs.incorrect[:, 0]]
    torch.testing.assert_close(found["resid_post"][-1][:, -1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family_name", ["gpt2", "llama", "gemma2"])
def test_half_precision_keeps_the_forward_and_nearly_the_coefficients(
    dtype: torch.dtype, family_name: str, tiny_task: Task
) -> None:
    half, full = build_model(family_name, dtype), build_model(family_name, torch.float32)
    with torch.no_grad():
        plain = half(tiny_task.pairs.clean_tokens)
    for name in ("relp", "attnlrp", "gim"):
        run, a, _ = coefficients(half, tiny_task, PRESETS[name], ["resid_pre"])
        _, b, _ = coefficients(full, tiny_task, PRESETS[name], ["resid_pre"])
        assert torch.equal(run.logits, plain)
        similarity = torch.cosine_similarity(a["resid_pre"][0].float().flatten(), b["resid_pre"][0].flatten(), dim=0)
        assert float(similarity) > 0.99


def test_frozen_models_have_gradients_inside_a_context(tiny_gpt2: Any, tiny_task: Task) -> None:
    kept: list[torch.Tensor] = []
    with (
        RELP.context(tiny_gpt2),
        tiny_gpt2.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, **_: kept.append(x))]),
    ):
        value = tiny_task.metric(tiny_gpt2(tiny_task.pairs.clean_tokens), tiny_task.pairs).sum()
    assert float(torch.autograd.grad(value, kept[0])[0].abs().max()) > 0


COMPILED = """
import torch
from mechwork.patching.attribution import find_coefficients
from mechwork.relevance import RELP
from mechwork.runs import record_run
from tests.families import build_model, build_task
model, task, kept = build_model("gpt2", torch.float32), build_task(), []
with RELP.context(model):
    run = record_run(model, task.pairs, ["resid_pre"], grad=True)
    expected = find_coefficients(run, task.metric(run.logits, task.pairs).sum(), ["resid_pre"])["resid_pre"][0]
compiled = torch.compile(model.forward, backend="eager")
with RELP.context(model), model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, **_: kept.append(x))]):
    value = task.metric(compiled(task.pairs.clean_tokens), task.pairs).sum()
    found = torch.autograd.grad(value, kept[0])[0]
print(float((found - expected).abs().max() / expected.abs().max()))
"""


def test_rules_hold_in_a_compiled_model() -> None:
    """With torch.compile's `eager` backend, in a process of its own, since the shape checks of this suite cannot be
    compiled.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 1e-5
