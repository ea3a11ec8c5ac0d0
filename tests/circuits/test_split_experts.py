"""Experts as writers apart: against the literal graph, and against the graph whose MLPs are one node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.circuits import Circuit, evaluate, score_edges, score_nodes
from mechwork.circuits.graph.files import write_mib
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.graph.writers import edge_space, record_writers, writer_kinds
from mechwork.circuits.scoring.exact_edges import measure_edges
from mechwork.errors import InputError
from mechwork.execute import executor
from mechwork.interventions import Add, Write, steered_pairs
from mechwork.runs import record_run
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.circuits.test_edges import random_mask
from tests.families import borrowed, build_hard_task, build_model, build_task
from tests.gate import fewer
from tests.reference import literal

FAMILIES = ["mixtral", "olmoe", "qwen3_moe"]


@pytest.fixture(scope="module", params=fewer(FAMILIES, FAMILIES[:1]))
def model(request: pytest.FixtureRequest) -> Any:
    model = build_model(request.param)
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    return model


def expert_by_expert(model: Any, layer: int, x: Tensor) -> dict[str, Tensor]:
    """Softmax, top two, and each expert's gated product, token by token."""
    block = model.blocks[layer].mlp.original_component
    top, experts = int(block.gate.original_component.top_k), block.experts
    rows = {e: torch.zeros_like(x) for e in range(4)}
    for b, p in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1])).tolist():
        token = x[b, p]
        share = (block.gate.weight @ token).float().softmax(dim=-1)  # in float32, as the routers have it
        chosen = share.argsort(descending=True)[:top].tolist()
        summed = "Mixtral" in type(block).__name__ or "Qwen3" in type(block).__name__  # as the families have it
        total = share[chosen].sum() if summed else torch.ones(())
        for e in chosen:
            gate, up = (experts.gate_up_proj[e] @ token).chunk(2)
            rows[e][b, p] = experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up) * (share[e] / total)
    return {f"m{layer}.e{e}": row for e, row in rows.items()}


class ExpertGraph(literal.LiteralGraph):
    """The literal graph in which an MLP's write is the sum of its experts', each kept or not on its own."""

    def writes_of(self, tokens: Tensor) -> dict[str, Tensor]:
        cache, found = literal.cached(self.model, tokens), {}
        for name, write in super().writes_of(tokens).items():
            layer = name.removeprefix("m")
            if not layer.isdigit():
                found[name] = write
                continue
            parts = expert_by_expert(self.model, int(layer), cache[f"blocks.{layer}.mlp.hook_in"])
            torch.testing.assert_close(sum(parts.values()), write, rtol=0, atol=1e-9)
            found |= parts
        return found


def through_hooks(model: Any, space: Any, mask: Tensor, other: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The circuit once more, reader by reader: what each cut edge's source writes live is taken off, the other's put
    in its place. Only edges into the unembedding and into MLPs are cut in `mask`, so that the stream is what changes.
    """
    live: dict[str, Tensor] = {}
    streams: dict[int, Tensor] = {}

    def change(reader: str) -> Tensor:
        column, total = space.readers.index(reader), torch.zeros(())
        for name, write in live.items():
            row = space.writers.index(name)
            if bool(space.mask[row, column]) and not bool(mask[row, column]):
                total = total + other[name] - write
        return total

    hooks: list[tuple[str, Any]] = [("blocks.0.hook_resid_pre", lambda x, hook: live.update(input=x))]
    for layer in range(space.n_layers):

        def heads(z: Tensor, hook: Any, layer: int = layer) -> None:
            weight = model.blocks[layer].attn.W_O
            live.update({f"a{layer}.h{h}": z[:, :, h] @ weight[h] for h in range(space.n_heads)})

        def middle(x: Tensor, hook: Any, layer: int = layer) -> None:
            streams[layer] = x

        def read(x: Tensor, hook: Any, layer: int = layer) -> Tensor:
            norm = model.blocks[layer].ln2
            y = streams[layer] + change(f"m{layer}")
            y = norm.weight * y / (y.pow(2).mean(-1, keepdim=True) + norm.original_component.variance_epsilon).sqrt()
            live.update(expert_by_expert(model, layer, y))
            return y

        hooks += [(f"blocks.{layer}.attn.hook_z", heads), (f"blocks.{layer}.hook_resid_mid", middle)]
        hooks.append((f"blocks.{layer}.mlp.hook_in", read))
    hooks.append((f"blocks.{space.n_layers - 1}.hook_resid_post", lambda x, hook: x + change("logits")))
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks)


@pytest.mark.parametrize("preset", fewer(["eap", "eap-ig", "relp"], ["relp"]))
def test_experts_add_up_to_their_mlp(model: Any, tiny_task: Task, preset: str) -> None:
    with borrowed(model):
        whole = score_edges(model, tiny_task, preset=preset)
        parts = score_edges(model, tiny_task, preset=preset, split_experts=True)
        nodes = score_nodes(model, tiny_task, preset=preset, split_experts=True)
    a, b = whole.require_pairs(), parts.require_pairs()
    assert parts.space.writers[5:9] == ("m0.e0", "m0.e1", "m0.e2", "m0.e3")
    assert parts.space.readers == whole.space.readers
    for layer in range(3):
        mine, one = parts.space.mlp_writers(layer), whole.space.mlp_writers(layer).start
        torch.testing.assert_close(b[:, mine].sum(dim=1), a[:, one], rtol=0, atol=1e-9)
        same = [w.space.head_writers(layer) for w in (parts, whole)]
        torch.testing.assert_close(b[:, same[0]], a[:, same[1]], rtol=0, atol=1e-9)
        assert int((b[:, mine].abs().sum(dim=(0, 2)) > 1e-6).sum()) >= 2
    torch.testing.assert_close(nodes.per_example, b.sum(dim=2), rtol=0, atol=1e-9)


def test_scores_and_measured_edges_are_those_of_each_experts_write(model: Any) -> None:
    task = build_task(n=3)
    tokens, donor = task.pairs.corrupt_tokens, task.pairs.clean_tokens
    with borrowed(model):
        scores = score_edges(model, task, rules="gradient", ig_steps=1, split_experts=True)
        effects = measure_edges(model, task, direction="denoise", split_experts=True)
    space, graph = scores.space, ExpertGraph(model)
    own, other = graph.writes_of(tokens), graph.writes_of(donor)
    with torch.no_grad():
        plain = task.metric(model(tokens), task.pairs)
    seen = 0.0
    for layer in range(3):
        gradient = literal.gradient_at(model, tokens, "resid_post", 2, lambda x: task.metric(x, task.pairs))
        for e in range(4):
            name = f"m{layer}.e{e}"
            row, column = space.edge_index(f"{name}->logits")
            expected = ((other[name] - own[name]) * gradient).sum(dim=(1, 2))
            torch.testing.assert_close(scores.require_pairs()[:, row, column], expected, rtol=0, atol=1e-9)
            put = [("blocks.2.hook_resid_post", lambda x, hook, n=name: x + other[n] - own[n])]
            with torch.no_grad():
                changed = task.metric(model.run_with_hooks(tokens, fwd_hooks=put), task.pairs)
            torch.testing.assert_close(effects.per_example[:, row, column], changed - plain, rtol=0, atol=1e-9)
            seen = max(seen, float(expected.abs().max()))
    assert seen > 1e-2


def test_a_circuit_runs_as_the_literal_graph(model: Any) -> None:
    task = build_hard_task()
    pairs, corrupt = task.pairs, task.pairs.corrupt_as_host()
    with borrowed(model):
        space = edge_space(model, task, split_experts=True, aligned=None)
        found = record_writers(model, space, record_run(model, corrupt, writer_kinds(space)))
        mask = space.mask.clone()
        into = [i for i, name in enumerate(space.readers) if "<" not in name]
        mask[:, into] &= random_mask(space, 0.6, 5)[:, into]
        with torch.no_grad(), as_circuit(model, space, mask, found):
            mine = model(pairs.clean_tokens)
        with torch.no_grad(), as_circuit(model, space, space.mask, found):
            whole = model(pairs.clean_tokens)
        plain = model(pairs.clean_tokens)
    other = dict(zip(space.writers, found, strict=True))
    expected = through_hooks(model, space, mask, other, pairs.clean_tokens)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-8)
    assert torch.equal(whole, plain)
    assert float((mine - plain).abs().max()) > 1e-2


def test_evaluated_saved_drawn_and_refused(model: Any, tmp_path: Path) -> None:
    task = build_task(n=4)
    with borrowed(model):
        scores = score_edges(model, task, preset="eap", split_experts=True)
        with executor("forked", workers=2):
            again = score_edges(model, task, preset="eap", split_experts=True)
        circuit = scores.circuit(40)
        found = evaluate(model, task, circuit, n_random=1)
        full = evaluate(model, task, scores.circuit(scores.space.n_edges))
    assert torch.equal(again.require_pairs(), scores.require_pairs())
    torch.testing.assert_close(full.per_example, full.model_per_example, rtol=0, atol=1e-9)
    assert len(found.per_example) == 4
    assert any(".e" in node for node in circuit.nodes)
    loaded = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert loaded.space == circuit.space
    assert torch.equal(loaded.mask, circuit.mask)
    page = circuit.to_html()
    assert all(f'"{node}"' in page for node in circuit.nodes)
    with pytest.raises(InputError, match="split_experts"):
        write_mib(circuit, tmp_path / "mib.json", d_model=32)
    vector = torch.ones(32, dtype=torch.float64)
    with (
        steered_pairs(model, task, [Write(Site("resid_post", 1), Add(vector))]) as pairs,
        pytest.raises(InputError, match="without split_experts"),
    ):
        score_edges(model, pairs, split_experts=True)


def test_models_without_experts_have_none_to_split(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="has no experts"):
        score_edges(tiny_gpt2_64, tiny_task, split_experts=True)
