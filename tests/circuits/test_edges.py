"""Edge scores and circuit runs against literal forms, in float64, on every architecture family.

The literal graph sums every reader's input writer by writer. Families whose norms or attention compute in float32
inside agree to that precision, the others to 1e-9.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import Circuit, EdgeSpace, evaluate, score_edges
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.graph.writers import record_writers, writer_kinds
from mechwork.circuits.testing.evaluate import EvaluationSettings, measure_circuits
from mechwork.models.anatomy import norm_modules, read_anatomy, read_norm
from mechwork.patching import attribute
from mechwork.relevance import Composite, EpsilonRule, GammaRule, find_composite
from mechwork.runs import record_run
from mechwork.tasks.task import Task
from tests.families import borrowed, build_task, crossed, rounding
from tests.reference.edges import grad_drop_scores
from tests.reference.literal import LiteralGraph


def tolerance(model: Any) -> float:
    return 2e-5 if read_anatomy(model).norm_kind == "rms" else rounding(model)


def random_mask(space: EdgeSpace, share: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return space.mask & (torch.rand(space.mask.shape, generator=generator) < share)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_scores_equal_a_leaf_at_every_reader(family_model64: Any, tiny_task: Task, direction: str) -> None:
    model, pairs = family_model64, tiny_task.pairs
    scores = score_edges(model, tiny_task, rules="gradient", direction=direction, batch_size=2)
    space = scores.space
    ends = (pairs.corrupt_tokens, pairs.clean_tokens)
    host, donor = ends if direction == "denoise" else ends[::-1]
    expected = LiteralGraph(model).edge_scores(
        host, donor, lambda x: tiny_task.metric(x, pairs), space.readers, space.writers
    )
    expected = expected * space.mask * (1 if direction == "denoise" else -1)
    scale = float(expected.abs().max())
    assert scale > 1e-2
    assert float((scores.require_pairs() - expected).abs().max()) <= tolerance(model) * max(scale, 1)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_grad_drop_equals_passes_with_a_layer_held_constant(
    family_model64: Any, tiny_task: Task, direction: str
) -> None:
    model, pairs = family_model64, tiny_task.pairs
    scores = score_edges(model, tiny_task, preset="atp_star", direction=direction)
    space = scores.space
    ends = (pairs.corrupt_tokens, pairs.clean_tokens)
    host, donor = ends if direction == "denoise" else ends[::-1]
    expected = grad_drop_scores(model, host, donor, lambda x: tiny_task.metric(x, pairs), space.readers, space.writers)
    expected = expected * space.mask * (1 if direction == "denoise" else -1)
    scale = float(expected.abs().max())
    assert scale > 1e-2
    assert float((scores.require_pairs() - expected).abs().max()) <= tolerance(model) * max(scale, 1)


LINEAR = find_composite("relp").prepend(
    ("blocks.1.attn.v", EpsilonRule(0.05)), ("blocks.*.attn.[qkv]", GammaRule(0.3)), name="linear"
)
"""Rules on the weights that heads read through."""


@pytest.mark.parametrize(
    ("family", "rules"),
    crossed(["gradient", "relp", "relp_ah", "attnlrp", "gim", LINEAR], ("relp", LINEAR)),
    ids=lambda value: getattr(value, "name", value),
)
def test_edges_of_a_writer_add_up_to_its_node_score(
    family_model64: Any, tiny_task: Task, rules: str | Composite
) -> None:
    """At the writes themselves; a head under a post-norm is scored by its share of the write, not through z."""
    model = family_model64
    anatomy = read_anatomy(model)
    kinds = ["resid_pre", "mlp_out", "attn_out", "z"]
    nodes = attribute(model, tiny_task, kinds, rules=rules, positions="all")
    scores = score_edges(model, tiny_task, rules=rules)
    space, values = scores.space, scores.node_values
    bound = tolerance(model) * max(1.0, float(values.abs().max()))
    assert abs(float(values[0] - nodes["resid_pre"].values[0])) <= bound
    for layer in range(3):
        heads = values[space.head_writers(layer)]
        assert abs(float(values[space.mlp_writers(layer).start] - nodes["mlp_out"].values[layer])) <= bound
        assert abs(float(heads.sum() - nodes["attn_out"].values[layer])) <= bound
        if anatomy.norm_place == "pre":
            assert float((heads - nodes["z"].values[layer]).abs().max()) <= bound
    assert float(values.abs().max()) > 1e-3


def test_grouped_readers_sum_their_query_heads(tiny_task: Task) -> None:
    """A llama with grouped keys and values equals one whose key/value heads are written out per query head."""
    import transformers as hf

    from mechwork.models.load import load_model
    from tests.families import build_module

    grouped = build_module("llama").double()
    config = hf.LlamaConfig(**{**grouped.config.to_dict(), "num_key_value_heads": 4})
    full = hf.LlamaForCausalLM(config).double().eval()
    weights = grouped.state_dict()
    for name in weights:
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weights[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    small = score_edges(load_model(grouped), tiny_task, rules="relp")
    large = score_edges(load_model(full), tiny_task, rules="relp")
    for layer in range(3):
        for kind in "kv":
            mine = small.require_pairs()[:, :, small.space.attention_readers(layer, kind)]
            theirs = large.require_pairs()[:, :, large.space.attention_readers(layer, kind)]
            torch.testing.assert_close(mine, theirs.unflatten(2, (2, 2)).sum(dim=3), rtol=0, atol=1e-6)
            assert float(mine.abs().max()) > 1e-3 or layer == 0


def test_a_circuit_runs_as_the_literal_graph(family_model64: Any, tiny_task: Task) -> None:
    model, pairs = family_model64, tiny_task.pairs
    literal, space = LiteralGraph(model), EdgeSpace.of(read_anatomy(model))
    other = literal.writes_of(pairs.corrupt_tokens)
    ablated = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
    for seed, share in ((0, 0.5), (1, 0.9), (2, 0.1)):
        mask = random_mask(space, share, seed)

        def keep(writer: str, reader: str, mask: torch.Tensor = mask) -> bool:
            return bool(mask[space.writers.index(writer), space.readers.index(reader)])

        with torch.no_grad():
            with as_circuit(model, space, mask, ablated):
                mine = model(pairs.clean_tokens)
            theirs = literal.run(pairs.clean_tokens, other, keep)
            plain = model(pairs.clean_tokens)
        assert float((mine - plain).abs().max()) > 1e-3
        assert float((mine - theirs).abs().max()) <= tolerance(model) * float(theirs.abs().max())


def test_full_circuit_is_the_clean_run_and_empty_the_corrupt_one(family_model64: Any, tiny_task: Task) -> None:
    model, pairs = family_model64, tiny_task.pairs
    space = EdgeSpace.of(read_anatomy(model))
    with borrowed(model), torch.no_grad():
        ablated = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
        with as_circuit(model, space, space.mask, ablated):
            full = model(pairs.clean_tokens)
        with as_circuit(model, space, torch.zeros_like(space.mask), ablated):
            empty = model(pairs.clean_tokens)
        clean, corrupt = model(pairs.clean_tokens), model(pairs.corrupt_tokens)
    assert torch.equal(full, clean)
    assert float((empty - corrupt).abs().max()) <= 1e-5
    assert float((clean - corrupt).abs().max()) > 1e-2


def test_pruning_changes_no_metric(family_model64: Any, tiny_task: Task) -> None:
    """A head that leads nowhere still moves a scale it shares with the others (post-norms, q/k-norms over all heads):
    there it may.
    """
    model = family_model64
    anatomy = read_anatomy(model)
    widest = max((read_norm(m).gain.numel() for name, m in norm_modules(model) if name.endswith("_norm")), default=0)
    if anatomy.norm_place != "pre" or widest > anatomy.d_head:
        pytest.skip("a norm that heads share")
    space = EdgeSpace.of(read_anatomy(model))
    circuit = Circuit(space, random_mask(space, 0.4, 3))
    pruned = circuit.pruned()
    assert 0 < pruned.n_edges < circuit.n_edges
    metrics = measure_circuits(model, tiny_task, space, [circuit.mask, pruned.mask]).metric
    assert float((metrics[0] - metrics[1]).abs().max()) <= tolerance(model)


def test_zero_and_mean_ablation_cut_what_they_say(tiny_gpt2_64: Any) -> None:
    """Everything but the input cut at the logits: the stream there is input plus, per head, MLP and bias, the ablated
    write.
    """
    tiny_task = build_task(n=8)
    model, pairs = tiny_gpt2_64, tiny_task.pairs
    space = EdgeSpace.of(read_anatomy(model))
    mask = space.mask.clone()
    mask[1:, space.logits_reader] = False
    writes = record_writers(model, space, record_run(model, pairs, writer_kinds(space)))
    biases = sum(block.attn.b_O for block in model.blocks)
    mean = writes.flatten(1, 2).mean(dim=1)
    for ablation, added in (("zero", torch.zeros_like(mean)), ("mean", mean)):
        metrics = measure_circuits(model, tiny_task, space, [mask], EvaluationSettings(ablation)).metric
        stream = writes[0] + added[1:].sum(dim=0) + biases
        with torch.no_grad():
            expected = tiny_task.metric(model.unembed(model.ln_final(stream)), pairs)
        torch.testing.assert_close(metrics[0], expected, rtol=0, atol=1e-9)


def test_evaluation_of_scores_and_of_one_circuit_agree(tiny_gpt2: Any, tiny_task: Task) -> None:
    scores = score_edges(tiny_gpt2, tiny_task, rules="gradient")
    curve = evaluate(tiny_gpt2, tiny_task, scores, n_random=2)
    assert curve.faithfulness[-1] == pytest.approx(1.0, abs=1e-9)
    assert curve.random[-1] == pytest.approx(1.0, abs=1e-9)
    area = float(torch.trapezoid(curve.faithfulness, torch.tensor(curve.fractions, dtype=torch.float64)))
    assert area + curve.cmd >= 0.999 - 1e-9  # |1 - f| >= 1 - f
    one = evaluate(tiny_gpt2, tiny_task, scores.circuit(curve.sizes[6]))
    assert one.faithfulness == pytest.approx(float(curve.faithfulness[6]), abs=1e-5)
    low, high = one.interval()
    assert low <= one.faithfulness <= high
    assert len(one.random) == 3
