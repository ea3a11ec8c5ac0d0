"""Tokens and positions as writers apart: against the literal graph, and against the graph with one input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.circuits import Circuit, evaluate, score_edges
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.graph.writers import edge_space, record_writers, writer_kinds
from mechwork.circuits.scoring.exact_edges import measure_edges
from mechwork.errors import InputError
from mechwork.runs import record_run
from mechwork.tasks.task import Task
from tests.circuits.test_edges import random_mask
from tests.families import borrowed, build_model, build_task
from tests.reference.edges import scores_against_constants
from tests.reference.literal import LiteralGraph


@pytest.fixture(scope="module", params=["gpt2", "opt"])
def model(request: pytest.FixtureRequest) -> Any:
    model = build_model(request.param)
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    return model


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_scores_equal_a_leaf_at_every_reader(model: Any, ablation: str) -> None:
    task = build_task(n=8)
    with borrowed(model):
        scores = score_edges(model, task, rules="gradient", ablation=ablation, split_input=True)
    space, tokens = scores.space, task.pairs.clean_tokens
    assert space.writers[:3] == ("embed", "pos_embed", "a0.h0")
    literal = LiteralGraph(model, split_input=True)
    own = literal.writes_of(tokens)
    constants = {
        name: torch.zeros_like(w) if ablation == "zero" else w.mean(dim=(0, 1), keepdim=True).expand_as(w)
        for name, w in own.items()
    }
    expected = scores_against_constants(
        model, tokens, constants, lambda x: task.metric(x, task.pairs), space.readers, space.writers, split_input=True
    )
    expected = expected * space.mask
    assert float(expected[:, 1].abs().max()) > 1e-4
    torch.testing.assert_close(scores.require_pairs(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("preset", ["eap", "eap-ig", "relp", "gim"])
def test_the_parts_add_up_to_the_input(model: Any, tiny_task: Task, preset: str) -> None:
    """Under corrupt ablation all of it is the tokens': both runs have the same positions."""
    with borrowed(model):
        whole = score_edges(model, tiny_task, preset=preset).require_pairs()
        parts = score_edges(model, tiny_task, preset=preset, split_input=True).require_pairs()
    torch.testing.assert_close(parts[:, 0], whole[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(parts[:, 2:], whole[:, 1:], rtol=0, atol=1e-12)
    assert not bool(parts[:, 1].abs().max() > 1e-12)
    assert float(whole[:, 0].abs().max()) > 1e-3


def test_a_circuit_runs_as_the_literal_graph(model: Any) -> None:
    task = build_task(n=8)
    pairs = task.pairs
    with borrowed(model):
        space = edge_space(model, task, split_input=True)
        ablated = torch.zeros_like(record_writers(model, space, record_run(model, pairs, writer_kinds(space))))
    literal = LiteralGraph(model, split_input=True)
    other = {name: torch.zeros_like(write) for name, write in literal.writes_of(pairs.clean_tokens).items()}
    mask = random_mask(space, 0.6, 5)
    mask[1] = False  # no positions anywhere
    with torch.no_grad():
        with as_circuit(model, space, mask, ablated):
            mine = model(pairs.clean_tokens)
        theirs = literal.run(
            pairs.clean_tokens, other, lambda w, r: bool(mask[space.writers.index(w), space.readers.index(r)])
        )
        whole = space.mask.clone()
        whole[1] = False
        with as_circuit(model, space, whole, ablated):
            without_positions = model(pairs.clean_tokens)
        plain = model.run_with_hooks(
            pairs.clean_tokens, fwd_hooks=[("hook_pos_embed", lambda value, hook: torch.zeros_like(value))]
        )
    assert float((mine - plain).abs().max()) > 1e-3
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(without_positions, plain, rtol=0, atol=1e-9)


def test_single_edges_measured(model: Any) -> None:
    task = build_task(n=4)
    with borrowed(model):
        effects = measure_edges(model, task, ablation="zero", split_input=True)
    space, literal, tokens = effects.space, LiteralGraph(model, split_input=True), task.pairs.clean_tokens
    other = {name: torch.zeros_like(write) for name, write in literal.writes_of(tokens).items()}
    with torch.no_grad():
        plain = task.metric(model(tokens), task.pairs)
        for name in ("pos_embed->a0.h1<q>", "pos_embed->m1", "embed->logits"):
            row, column = space.edge_index(name)
            cut = (space.writers[row], space.readers[column])
            changed = literal.run(tokens, other, lambda w, r, cut=cut: (w, r) != cut)
            expected = plain - task.metric(changed, task.pairs)
            torch.testing.assert_close(effects.per_example[:, row, column], expected, rtol=0, atol=1e-9)
            assert float(expected.abs().max()) > 1e-6


def test_evaluated_saved_and_drawn(model: Any, tmp_path: Path) -> None:
    task = build_task(n=8)
    with borrowed(model):
        scores = score_edges(model, task, preset="eap", ablation="mean", split_input=True)
        circuit = scores.circuit(30)
        found = evaluate(model, task, circuit, ablation="mean", n_random=1)
        with circuit.run(model, task, ablation="mean"):
            assert bool(model(task.pairs.clean_tokens).isfinite().all())
    assert len(found.per_example) == 8
    again = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert again.space == circuit.space
    assert torch.equal(again.mask, circuit.mask)
    whole = scores.circuit(scores.space.n_edges)
    page = whole.to_html()
    assert "pos_embed" in page
    with pytest.raises(InputError, match="split_input"):
        from mechwork.circuits.graph.files import write_mib

        write_mib(circuit, tmp_path / "mib.json", d_model=32)


def test_models_without_an_embedding_of_positions_have_one_input() -> None:
    with pytest.raises(InputError, match="Leave split_input out"):
        score_edges(build_model("llama"), build_task(n=2), split_input=True)
