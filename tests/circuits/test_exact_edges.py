"""Measured effects of single edges against one forward pass of the literal graph per edge, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import score_edges
from mechwork.circuits.scoring.exact_edges import measure_edges
from mechwork.errors import InputError, UnknownNameError
from mechwork.tasks.task import Task
from tests.circuits.test_edges import tolerance
from tests.families import NATIVE, borrowed, build_native, crossed
from tests.reference.literal import LiteralGraph


def edge_by_edge(
    model: Any, task: Task, edges: list[tuple[str, str]], *, ablation: str = "corrupt", direction: str = "noise"
) -> torch.Tensor:
    """The definition: one run of the literal graph per edge, in which that edge alone carries the other write."""
    literal, pairs = LiteralGraph(model), task.pairs
    ends = (pairs.clean_tokens, pairs.corrupt_tokens)
    host, donor = ends if direction == "noise" else ends[::-1]
    own = literal.writes_of(host)
    if ablation == "corrupt":
        other = literal.writes_of(donor)
    elif ablation == "zero":
        other = {name: torch.zeros_like(write) for name, write in own.items()}
    else:
        other = {name: write.mean(dim=(0, 1), keepdim=True).expand_as(write) for name, write in own.items()}
    effects = []
    with torch.no_grad():
        plain = task.metric(model(host), pairs)
        for writer, reader in edges:
            changed = literal.run(host, other, lambda w, r, cut=(writer, reader): (w, r) != cut)
            effects.append(task.metric(changed, pairs) - plain)
    return torch.stack(effects, dim=1) * (1 if direction == "denoise" else -1)


def some_edges(space: Any, seed: int, n: int = 10) -> list[tuple[int, int]]:
    index = space.mask.nonzero()
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:n]
    last = [(space.n_writers - 1, space.logits_reader), (0, 0)]
    return [tuple(cell) for cell in index[order].tolist()] + last


def check(model: Any, task: Task, seed: int, **settings: Any) -> None:
    with borrowed(model):
        effects = measure_edges(model, task, **settings)
    space = effects.space
    cells = some_edges(space, seed)
    expected = edge_by_edge(model, task, [(space.writers[r], space.readers[c]) for r, c in cells], **settings)
    mine = torch.stack([effects.per_example[:, r, c] for r, c in cells], dim=1)
    assert float(expected.abs().max()) > 1e-2
    assert float((mine - expected).abs().max()) <= tolerance(model) * max(1.0, float(expected.abs().max()))
    assert not bool(effects.per_example[:, ~space.mask].any())


@pytest.mark.parametrize(("family", "direction"), crossed(["denoise", "noise"], ["noise"]))
def test_equals_one_forward_per_edge(family_model64: Any, tiny_task: Task, seed: int, direction: str) -> None:
    check(family_model64, tiny_task, seed, direction=direction)


@pytest.mark.parametrize("name", list(NATIVE))
@pytest.mark.parametrize("ablation", ["corrupt", "zero", "mean"])
def test_equals_one_forward_per_edge_on_native_models(name: str, ablation: str, tiny_task: Task, seed: int) -> None:
    check(build_native(name), tiny_task, seed, ablation=ablation)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_other_ablations(tiny_gpt2_64: Any, tiny_task: Task, seed: int, ablation: str) -> None:
    check(tiny_gpt2_64, tiny_task, seed, ablation=ablation)


def test_scores_are_the_first_order_of_effects(tiny_gpt2_64: Any) -> None:
    """For a change that goes to zero the estimate becomes the effect: the two share sign and direction."""
    model = build_native("attention only")
    model.original_model.tok_embed.weight.data[1] = model.original_model.tok_embed.weight.data[2] + 1e-5
    task = Task.from_tokens([[5, 1, 7, 9]], [[5, 2, 7, 9]], [3], [4])
    for direction in ("denoise", "noise"):
        measured = measure_edges(model, task, direction=direction).values
        estimated = score_edges(model, task, rules="gradient", direction=direction).values
        assert float(measured.abs().max()) > 1e-6
        assert float((measured - estimated).abs().max()) < 1e-3 * float(measured.abs().max())


def test_strongest_first(tiny_gpt2: Any, tiny_task: Task) -> None:
    effects = measure_edges(tiny_gpt2, tiny_task)
    top = effects.top(5)
    assert [abs(value) for _, value in top] == sorted((abs(value) for _, value in top), reverse=True)
    assert top[0][1] == pytest.approx(float(effects.values.flatten()[effects.values.abs().argmax()]))
    frame = effects.to_dataframe()
    assert len(frame) == effects.space.n_edges
    assert f"{frame.loc[0, 'source']}->{frame.loc[0, 'target']}" == top[0][0]
    assert float(frame["effect"].to_list()[0]) == pytest.approx(top[0][1])
    assert bool((effects.magnitude >= effects.values.abs() - 1e-6).all())


def test_what_is_refused(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(UnknownNameError, match="nearest: zero"):
        measure_edges(tiny_gpt2, tiny_task, ablation="zeros")
    with pytest.raises(InputError, match="direction='noise'"):
        measure_edges(tiny_gpt2, tiny_task, ablation="mean", direction="denoise")
