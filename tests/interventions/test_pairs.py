"""One prompt without and with writes as a pair: against plain hooks on plain tokens, in float64, on three families."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.circuits import evaluate, score_edges
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.graph.writers import record_writers, writer_kinds
from mechwork.errors import InputError, UnknownNameError
from mechwork.execute import executor
from mechwork.interventions import Add, Along, Value, Write, Zero, intervene, steered_pairs
from mechwork.lenses import attribute_logits, read_lens
from mechwork.patching import attribute, patch, patch_paths
from mechwork.patching.exact import plan_sweep
from mechwork.patching.sweep import Tricks
from mechwork.runs import record_run
from mechwork.sites import Site
from mechwork.tasks.pairs import PromptPairs
from mechwork.tasks.task import Task
from tests.families import UNLIKE, borrowed, build_hard_task, build_model, build_native, build_task, rounding
from tests.reference import literal

LAYER = 1
NAME = f"blocks.{LAYER}.hook_mlp_out"


@cache
def ready(family: str) -> Any:
    """A model that has run once, as the tests' fixtures lend them."""
    model = build_model(family)
    literal.cached(model, build_task().pairs.clean_tokens)
    return model


def vector(seed: int = 0) -> Tensor:
    return 2 * torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def write(seed: int = 0) -> Write:
    return Write(Site("resid_post", LAYER), Add(vector(seed)))


def added(share: float = 1.0, where: Any = None, seed: int = 0) -> list[tuple[str, Any]]:
    """The literal form: the vector added to what the MLP writes."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        mask = torch.ones(activation.shape[:2], dtype=torch.bool) if where is None else where
        return activation + share * vector(seed).to(activation) * mask[..., None]

    return [(NAME, put)]


@contextmanager
def with_writes(model: Any, **settings: Any) -> Iterator[None]:
    with model.hooks(fwd_hooks=added(**settings)):
        yield


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("family", UNLIKE)
def test_cells_equal_one_hooked_forward_each(family: str, direction: str) -> None:
    model, task = ready(family), build_task()
    tokens, kinds = task.pairs.clean_tokens, ["resid_pre", "attn_out", "mlp_out", "z"]
    with borrowed(model), steered_pairs(model, task, [write()]) as pairs:
        assert pairs.texts == task.texts
        effects = patch(model, pairs, kinds, direction=direction)
        assert effects["z"].provenance["task"]["sha256"] != task.pairs.fingerprint()
    plain = literal.cached(model, tokens)
    with with_writes(model):
        steered = literal.cached(model, tokens)
    with torch.no_grad(), intervene(model, [write()]):
        ends = task.metric(model(tokens), task.pairs)
    torch.testing.assert_close(effects["z"].baseline.clean_per_example, ends, rtol=0, atol=1e-6)
    donor, host_hooks = (steered, []) if direction == "denoise" else (plain, added())
    with torch.no_grad():
        reference = task.metric(model.run_with_hooks(tokens, fwd_hooks=host_hooks), task.pairs)
    largest = 0.0
    for kind in kinds:
        for layer in range(3):
            for cell in (0, 3):
                where = {"head": cell} if kind == "z" else {"pos": cell}

                def measured(logits: Tensor) -> Tensor:
                    return task.metric(logits, task.pairs)

                with model.hooks(fwd_hooks=host_hooks):
                    value = donor[literal.hook(kind, layer)]
                    new = literal.patch_cell(model, tokens, value, kind, layer, measured, **where)
                change = new - reference if direction == "denoise" else reference - new
                found = effects[kind].per_example[:, layer, cell]
                torch.testing.assert_close(found, change, rtol=0, atol=rounding(model))
                largest = max(largest, float(change.abs().max()))
    assert largest > 1e-2


@pytest.mark.parametrize("family", UNLIKE)
def test_estimates_take_gradients_between_no_writes_and_all(family: str) -> None:
    """(with - without) . the mean gradient where the vector is added to a quarter and to three quarters."""
    model, task = ready(family), build_task()
    tokens = task.pairs.clean_tokens
    with steered_pairs(model, task, [write()]) as pairs:
        found = attribute(model, pairs, ["attn_out", "mlp_out"], rules="gradient", ig_steps=2, positions="all")
        paths = score_edges(model, pairs, rules="gradient", ig_steps=2)
    plain = literal.cached(model, tokens)
    with with_writes(model):
        steered = literal.cached(model, tokens)
    for kind in ("attn_out", "mlp_out"):
        for layer in range(3):
            total = torch.zeros(len(task), dtype=torch.float64)
            for share in (0.25, 0.75):
                with with_writes(model, share=share):
                    gradient = literal.gradient_at(
                        model, tokens, kind, layer, lambda logits: task.metric(logits, task.pairs)
                    )
                name = literal.hook(kind, layer)
                total += ((steered[name] - plain[name]) * gradient).sum(dim=(1, 2)) / 2
            torch.testing.assert_close(found[kind].per_example[:, layer], total, rtol=0, atol=2e-5)
            if kind == "mlp_out":
                summed = paths.require_pairs()[:, paths.space.writers.index(f"m{layer}")].sum(dim=-1)
                torch.testing.assert_close(summed, total, rtol=0, atol=2e-5 * max(1, float(total.abs().max())))
    assert float(found["mlp_out"].values[LAYER].abs().max()) > 1e-2


class SteeredGraph(literal.LiteralGraph):
    """The literal graph; `writes_of` of the donor's tokens runs with the vector added."""

    donor: Tensor

    def writes_of(self, tokens: Tensor) -> dict[str, Tensor]:
        with with_writes(self.model, share=float(tokens is self.donor)):
            return super().writes_of(tokens)


@pytest.mark.parametrize("family", UNLIKE)
def test_edges_and_circuits_equal_the_literal_graph(family: str) -> None:
    model, task = ready(family), build_task()
    host = task.pairs.clean_tokens
    graph, donor = SteeredGraph(model), host.clone()
    graph.donor = donor
    with borrowed(model), steered_pairs(model, task, [write()]) as pairs:
        scores = score_edges(model, pairs, rules="gradient", batch_size=2)
        space, found = scores.space, []
        generator = torch.Generator().manual_seed(3)
        mask = space.mask & (torch.rand(space.mask.shape, generator=generator) < 0.6)
        other = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
        for kept in (mask, space.mask, torch.zeros_like(mask)):
            with torch.no_grad(), as_circuit(model, space, kept, other):
                found.append(model(pairs.pairs.clean_tokens))
        circuit = scores.circuit(n_edges=6)
        curve = evaluate(model, pairs, circuit)
    expected = graph.edge_scores(
        host, donor, lambda logits: task.metric(logits, task.pairs), space.readers, space.writers
    )
    expected = expected * space.mask
    scale = float(expected.abs().max())
    assert scale > 1e-2
    assert float((scores.require_pairs() - expected).abs().max()) <= 2e-5 * max(scale, 1)
    kept_edges = {(w, r): bool(mask[i, j]) for i, w in enumerate(space.writers) for j, r in enumerate(space.readers)}
    with torch.no_grad():
        plain = model(host)
        others = graph.writes_of(host)
        with with_writes(model):
            whole, part = model(host), graph.run(host, others, lambda w, r: kept_edges[w, r])
            chosen = graph.run(host, others, lambda w, r: f"{w}->{r}" in circuit.edges)
    for name, one, two in zip(("part", "whole", "empty"), found, (part, whole, plain), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5, msg=name)
    assert float((part - plain).abs().max()) > 1e-2 < float((part - whole).abs().max())
    torch.testing.assert_close(curve.model_per_example, task.metric(whole, task.pairs), rtol=0, atol=2e-5)
    torch.testing.assert_close(curve.per_example, task.metric(chosen, task.pairs), rtol=0, atol=2e-5)
    assert space.sources == ("m1",)
    assert any(edge.startswith("m1->") for edge in circuit.edges)
    assert not any(edge.startswith("input->") for edge in circuit.edges)  # paths begin where the writes are
    assert float((curve.per_example - curve.empty_per_example).abs().max()) > 1e-2
    torch.testing.assert_close(curve.empty_per_example, task.metric(plain, task.pairs), rtol=0, atol=2e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_rows_of_any_length_at_a_span_and_from_either_prompt(aligned: bool) -> None:
    model, task = ready("gpt2"), build_hard_task(aligned=aligned)
    host = task.pairs.corrupt_as_host()
    with steered_pairs(model, task, [write()], prompts="corrupt", positions="V") as pairs:
        assert len(pairs[1:3]) == 2
        effects = patch(model, pairs, ["mlp_out"], positions="spans")
        few = patch(model, pairs[1:3], ["mlp_out"], positions="spans")
    where = host.spans["V"]
    with torch.no_grad(), with_writes(model, where=where):
        steered = task.metric(model(host.clean_tokens), host)
    at = effects["mlp_out"].labels["pos"].index("V")
    torch.testing.assert_close(effects["mlp_out"].baseline.clean_per_example, steered, rtol=0, atol=1e-9)
    torch.testing.assert_close(  # the place of the write has all of it
        effects["mlp_out"].per_example[:, LAYER, at] + effects["mlp_out"].baseline.corrupt_per_example, steered,
        rtol=0, atol=1e-9,
    )  # fmt: skip
    torch.testing.assert_close(few["mlp_out"].per_example, effects["mlp_out"].per_example[1:3], rtol=0, atol=1e-9)


def test_two_writes_and_moves_of_all_kinds() -> None:
    """Clean with one write, corrupt with another; a projection at the stream entering layer 0, and at heads."""
    model, task = ready("gpt2"), build_task()
    tokens, basis = task.pairs.clean_tokens, torch.nn.functional.normalize(vector(4), dim=0)[None]
    away = [Write(Site("resid_pre", 0), Along(basis, Zero())), Write(Site("z", 2, head=1), Value(vector(5)[:8]))]
    with steered_pairs(model, task, away, without=[write(1)]) as pairs:
        effects = patch(model, pairs, ["resid_pre"], positions="all", direction="noise")
        both = patch(model, pairs, ["resid_pre"], positions="all", direction="denoise")
        with executor("forked", workers=2):
            again = patch(model, pairs, ["resid_pre"], positions="all")
        assert "forked workers" in str(plan_sweep(model, pairs, ["z"]).work.here_only)
        table, terms = read_lens(model, pairs, lens="logit"), attribute_logits(model, pairs)
    with torch.no_grad():
        with intervene(model, away):
            clean = task.metric(model(tokens), task.pairs)
        with intervene(model, [write(1)]):
            corrupt = task.metric(model(tokens), task.pairs)
    assert torch.equal(again["resid_pre"].per_example, both["resid_pre"].per_example)
    assert torch.equal(table.tokens, tokens)
    torch.testing.assert_close(terms.total, clean, rtol=0, atol=1e-9)  # the metric is a difference of two logits
    with torch.no_grad(), intervene(model, away):
        surprise = -model(tokens)[:, -1].log_softmax(dim=-1).gather(1, task.pairs.correct)[:, 0] / math.log(2)
    torch.testing.assert_close(table.surprisal[-1, :, -1].double(), surprise, rtol=0, atol=1e-5)
    for found in (effects, both):
        torch.testing.assert_close(found["resid_pre"].baseline.clean_per_example, clean, rtol=0, atol=1e-9)
        torch.testing.assert_close(found["resid_pre"].baseline.corrupt_per_example, corrupt, rtol=0, atol=1e-9)
    assert float((clean - corrupt).abs().max()) > 1e-2


def test_what_cannot_be_a_pair_says_so(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    model, task = tiny_gpt2_64, tiny_task
    good = [write()]

    def refused(words: str, *args: Any, error: Any = InputError, **settings: Any) -> None:
        with pytest.raises(error, match=words), steered_pairs(model, *args, **settings):
            pass

    def own(activation: Tensor) -> Tensor:
        return activation

    refused("at least one write", task, [])
    refused("was it fitted", task, [Write(Site("resid_post", 1), Add(vector()[:31]))])
    refused("both got the same", task, good, without=good)
    refused("through one node", task, [Write(Site("q", 1), Zero())])
    refused("leave out the mask", task, [Write(Site("z", 1), Zero(), task.pairs.mask)])
    refused("writes", task, Zero(), error=(InputError, TypeError))  # the second by the tests' own type checker
    refused("side of a pair", task, good, prompts="both", error=UnknownNameError)
    refused("span", task, good, positions="NOWHERE", error=UnknownNameError)
    refused("holds a function", task, [Write(Site("z", 1), own)])
    with steered_pairs(model, task, good) as pairs:
        refused("one pair of writes at a time", task, good)
        with pytest.raises(InputError, match="whole forwards"):
            patch(model, pairs, ["z"], direction="noise", tricks=Tricks())
        with pytest.raises(InputError, match="whole forwards"):
            patch_paths(model, pairs, ["m1"], ["logits"], direction="noise")
    for use in (lambda: patch(model, pairs, ["z"]), lambda: pairs.accuracy(model)):
        with pytest.raises(InputError, match="inside the context"):
            use()
    with steered_pairs(model, task, [write(7)]), pytest.raises(InputError, match="inside the context"):
        patch(model, pairs, ["z"])
    bare = build_native("attention only")
    with pytest.raises(InputError, match="carried by the MLP"), steered_pairs(bare, task, good):
        pass
    alone = PromptPairs.from_tokens([[1, 2, 3]], [[1, 2, 3]], [4], [5], alone=True)
    with steered_pairs(model, Task("one", alone), good) as single:  # one prompt alone is enough
        assert float(patch(model, single, ["mlp_out"])["mlp_out"].values.abs().max()) > 0
    refused("corrupt prompt", Task("one", alone), good, prompts="corrupt")
