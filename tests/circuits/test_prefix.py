"""Runs that share first columns, and circuits that differ in edges that cannot matter, against runs that do neither."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import EdgeSpace
from mechwork.circuits.graph.budget import layers_per_product
from mechwork.circuits.graph.circuit import prune
from mechwork.circuits.graph.prune import effective
from mechwork.circuits.graph.select import select_random
from mechwork.circuits.testing.evaluate import measure_circuits
from mechwork.errors import UnsupportedModelError
from mechwork.runs.frame import CACHE_ARGUMENTS
from mechwork.runs.prefix import count_shared, record_prefix
from mechwork.runs.record import record_run
from mechwork.tasks.task import Task
from tests.families import D_VOCAB


def late_task() -> Task:
    """Pairs of ten tokens that are equal up to the sixth."""
    clean = torch.randint(D_VOCAB, (3, 10), generator=torch.Generator().manual_seed(3))
    corrupt = clean.clone()
    corrupt[:, 6] = (clean[:, 6] + 1) % D_VOCAB
    return Task.from_tokens(clean, corrupt, [1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize("corrupt", [False, True])
def test_columns_after_a_shared_prefix_run_as_in_the_whole_prompt(family_model64: Any, corrupt: bool) -> None:
    task = late_task()
    prefix = record_prefix(family_model64, task, task.pairs)
    assert prefix is not None
    assert prefix.n == 6
    kinds = ("resid_pre", "q", "k", "z")
    whole = record_run(family_model64, task.pairs, kinds, corrupt=corrupt, n_tail=1)
    for _ in range(2):  # a prefix serves many runs
        after = record_run(family_model64, task.pairs, kinds, corrupt=corrupt, n_tail=1, prefix=prefix)
        # Softmax and some norms compute in float32 inside, whatever the weights.
        assert float((after.logits - whole.logits).abs().max()) <= 2e-5
        for kind in kinds:
            assert float((after[kind] - whole[kind][:, :, 6:]).abs().max()) <= 2e-5


def test_columns_that_the_metric_reads_or_that_differ_are_not_shared(tiny_gpt2: Any) -> None:
    task = late_task()
    assert count_shared(tiny_gpt2, task, task.pairs) == 6
    assert count_shared(tiny_gpt2, task, task.pairs.corrupt_as_host()) == 6
    first = Task.from_tokens([[1, 2, 3]], [[2, 2, 3]], [1], [2])
    assert record_prefix(tiny_gpt2, first, first.pairs) is None


def test_a_host_that_does_not_fill_its_cache_is_refused(tiny_gpt2: Any) -> None:
    """As transformers 5.24 under transformer-lens 4.3, which calls the argument by another name."""

    def lose(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {name: value for name, value in kwargs.items() if name not in CACHE_ARGUMENTS}

    hooks = [block.attn.register_forward_pre_hook(lose, with_kwargs=True) for block in tiny_gpt2.blocks]
    try:
        with pytest.raises(UnsupportedModelError, match=r"would be wrong. Install transformers<5\.24"):
            record_prefix(tiny_gpt2, late_task(), late_task().pairs)
    finally:
        for hook in hooks:
            hook.remove()


def literal_prune(space: EdgeSpace, mask: torch.Tensor) -> torch.Tensor:
    """One writer after another, every edge looked at each time."""
    alive = torch.zeros(space.n_writers, dtype=torch.bool)
    alive[: space.n_inputs] = True
    for row in range(space.n_inputs, space.n_writers):
        alive[row] = bool((space.feeds[row] & (mask & alive[:, None]).any(dim=0)).any())
    heard = torch.zeros(space.n_readers, dtype=torch.bool)
    heard[space.logits_reader] = True
    for row in range(space.n_writers - 1, space.n_inputs - 1, -1):
        if bool((mask[row] & heard).any()):
            heard |= space.feeds[row]
    return mask & alive[:, None] & heard[None, :]


@pytest.mark.parametrize(
    "space",
    [EdgeSpace(4, 4, 2), EdgeSpace(4, 4, 4, parallel=True), EdgeSpace(3, 4, 2, attn_only=True, split_input=True)],
)
def test_pruning_equals_its_literal_form(space: EdgeSpace) -> None:
    sizes = set()
    for seed in range(12):
        mask = select_random(space, max(2, space.n_edges * (seed + 1) // 40), seed)
        pruned = prune(space, mask)
        assert torch.equal(pruned, literal_prune(space, mask))
        assert torch.equal(effective(space, mask, (False,) * space.n_layers, paired=True), pruned)
        sizes.add(int(pruned.sum()))
    assert len(sizes) > 3


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_equal_circuits_run_once_and_edges_that_cannot_matter_do_not(tiny_gpt2: Any, ablation: str) -> None:
    from mechwork.circuits.testing.evaluate import EvaluationSettings

    task = late_task()
    space = EdgeSpace(3, 4, 4)
    assert (space.n_writers, space.n_readers) == (16, 40)
    mask = prune(space, select_random(space, space.n_edges * 2 // 3, 1))
    head = int(mask[space.head_writers(2), space.logits_reader].int().argmax())
    row = space.head_writers(2).start + head
    assert bool(mask[row, space.logits_reader])
    muted = mask.clone()
    muted[row] = False
    query = space.attention_readers(2, "q").start + head
    more = muted.clone()
    more[: int(space.n_seen[query]), query] = True  # into a head that writes to nothing
    assert not torch.equal(more, muted)
    steps: list[tuple[int, int]] = []
    settings = EvaluationSettings(ablation, progress=lambda done, total, what: steps.append((done, total)))
    found = measure_circuits(tiny_gpt2, task, space, [space.mask, mask, mask.clone(), muted, more], settings)
    assert torch.equal(found.metric[1], found.metric[2])
    assert torch.equal(found.metric[3], found.metric[4])
    assert steps[-1] == (3, 3)
    assert float((found.metric[0] - found.metric[1]).abs().max()) > 1e-6


def test_layers_share_a_product_by_shape() -> None:
    deep, wide = EdgeSpace(48, 9, 3), EdgeSpace(2, 32, 32)
    assert layers_per_product(deep) > layers_per_product(wide) == 1
    assert layers_per_product(EdgeSpace(1, 2, 2)) == 1
