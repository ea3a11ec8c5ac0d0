"""TransformerLens' own small models, with and without norms and MLPs: the comparisons that hold on every family hold
here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from mechwork import study_heads
from mechwork.circuits import EdgeSpace, evaluate, score_edges
from mechwork.errors import InputError, UnsupportedModelError
from mechwork.models.anatomy import final_norm, read_anatomy
from mechwork.models.load import load_model
from mechwork.relevance import find_composite
from mechwork.runs import record_run
from mechwork.runs.restart import restart_at
from mechwork.tasks.task import Task
from tests.circuits import test_edges
from tests.families import NATIVE, borrowed, build_native, build_task
from tests.patching import test_attribution, test_exact

_build = cache(build_native)


@pytest.fixture(params=list(NATIVE))
def native(request: pytest.FixtureRequest) -> Any:
    with borrowed(_build(request.param)) as model:
        yield model


def test_anatomy_tells_them_apart() -> None:
    facts = {name: read_anatomy(_build(name)) for name in NATIVE}
    assert {name: f.norm_kind for name, f in facts.items()} == {
        "no norms": "none", "attention only": "none", "attention only, "
                                                      "norms": "layer", "bidirectional": "none", "gated": "rms",
    }  # fmt: skip
    assert [name for name, f in facts.items() if f.attn_only] == ["attention only", "attention only, norms"]
    assert [name for name, f in facts.items() if not f.causal] == ["bidirectional"]
    assert facts["gated"].group_size == 2
    assert not facts["attention only"].has_site("mlp_out")
    assert final_norm(_build("no norms")) is None


def test_attention_only_graph_has_no_mlps() -> None:
    space = EdgeSpace(n_layers=2, n_heads=2, n_kv_heads=2, attn_only=True)
    assert space.writers == ("input", "a0.h0", "a0.h1", "a1.h0", "a1.h1")
    assert space.readers[-1] == "logits"
    assert len(space.readers) == space.n_readers == 13
    assert space.n_edges == 6 * 1 + 6 * 3 + 5
    assert [space.layer_of_writer(row) for row in range(5)] == [-1, 0, 0, 1, 1]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_and_attribution_equal_their_literal_forms(native: Any, tiny_task: Task, direction: str) -> None:
    test_exact.test_equals_one_forward_per_cell(native, tiny_task, direction)
    test_attribution.test_equals_the_gradient_at_a_leaf(native, tiny_task, direction)
    test_edges.test_scores_equal_a_leaf_at_every_reader(native, tiny_task, direction)


def test_circuits_equal_their_literal_forms(native: Any, tiny_task: Task) -> None:
    test_edges.test_a_circuit_runs_as_the_literal_graph(native, tiny_task)
    test_edges.test_full_circuit_is_the_clean_run_and_empty_the_corrupt_one(native, tiny_task)
    test_edges.test_pruning_changes_no_metric(native, tiny_task)


@pytest.mark.parametrize("rules", ["gradient", "relp", "relp_ah"])
def test_edges_of_a_writer_add_up_to_its_node_score(native: Any, tiny_task: Task, rules: str) -> None:
    if not read_anatomy(native).attn_only:
        test_edges.test_edges_of_a_writer_add_up_to_its_node_score(native, tiny_task, rules)


def test_rules_change_the_coefficients_and_nothing_else(native: Any, tiny_task: Task) -> None:
    with torch.no_grad():
        plain = native(tiny_task.pairs.clean_tokens)
    with find_composite("relp").context(native), torch.enable_grad():
        assert torch.equal(record_run(native, tiny_task.pairs, ["resid_pre"], grad=True).logits, plain)
    gradient, relp = (score_edges(native, tiny_task, rules=rules).values for rules in ("gradient", "relp"))
    anatomy = read_anatomy(native)
    no_rule_bends = anatomy.norm_kind == "none" and (anatomy.attn_only or native.cfg.act_fn == "relu")
    # Without norms RelP has only the identity rule left, and for a ReLU act(x) / x is the derivative.
    assert (float((gradient - relp).abs().max()) < 1e-12) == no_rule_bends


def test_restarting_is_exact(native: Any, tiny_task: Task) -> None:
    run = record_run(native, tiny_task.pairs, ["resid_pre"])
    for layer in range(3):
        with torch.no_grad(), restart_at(native, layer, run["resid_pre"][layer]):
            assert torch.equal(native(tiny_task.pairs.clean_tokens), run.logits)


def test_every_method_runs(native: Any, tiny_task: Task) -> None:
    curve = evaluate(native, tiny_task, score_edges(native, tiny_task), n_random=1)
    assert float(curve.faithfulness[-1]) == pytest.approx(1.0, abs=1e-9)
    assert len(study_heads(native, tiny_task).rows) == 12


def test_padding_under_bidirectional_attention_is_refused() -> None:
    task = Task.from_tokens([[1, 2, 3], [1, 2]], [[1, 4, 3], [1, 4]], [5, 5], [6, 6])
    with pytest.raises(InputError, match="prompts need one length"):
        score_edges(_build("bidirectional"), task)
    assert score_edges(_build("no norms"), task).values.abs().max() > 0


def test_native_parts_without_a_literal_form_are_refused() -> None:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import boot_native

    settings: dict[str, Any] = NATIVE["no norms"]
    for change, message in (({"normalization_type": "LNPre"}, "normalization_type"), ({"act_fn": "solu"}, "act_fn")):
        model: Any = boot_native(TransformerBridgeConfig(**{**settings, **change}))
        with pytest.raises(UnsupportedModelError, match=message):
            load_model(model)


def test_sites_of_mlps_are_refused_without_mlps() -> None:
    from mechwork.patching import patch

    with pytest.raises(InputError, match="have no MLP"):
        patch(_build("attention only"), build_task(), ["mlp_out"])
