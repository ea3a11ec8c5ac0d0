"""A task with nothing to find: what every test of a circuit is run on beside the real one.

| kind | what is destroyed | what stays |
|---|---|---|
| ``answers`` | right and wrong answers change places in a random half of the pairs: no behaviour | prompts |
| ``corruption`` | a pair gets another pair's corrupt prompt: cut edges carry unrelated runs | clean prompts, answers |
| `shuffled_weights` | every weight matrix of the model has its entries shuffled: nothing learned | sizes, norms, task |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ...errors import InputError, UnknownNameError, check_seed
from ...models.borrow import surely
from ...tasks.pairs import ABSENT
from ...tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NULLS = ("answers", "corruption")


def null_task(task: Task, kind: str = "answers", *, seed: int = 0) -> Task:
    """`task` with shuffled answers or unrelated corruption, drawn with `seed`. No forward pass.

    Raises `InputError` when it cannot be built: answers of several tokens or fewer than two pairs (``answers``); pairs
    of unequal length, or a length that occurs once (``corruption``).

    >>> null_task(task.test, "answers").metric
    """
    if kind not in NULLS:
        raise UnknownNameError("null task", kind, NULLS)
    if task.pairs.continuations is not None:
        raise InputError("a null task shuffles pairs of one-token answers; these answers have several tokens")
    if kind == "answers":
        return _swap(task, (draw_signs(len(task), seed) < 0).nonzero().flatten())
    pairs = task.pairs
    pairs.require_corrupt()
    if not pairs.aligned:
        raise InputError("unrelated corruption needs pairs of equal length; use the null task 'answers'")
    order = torch.arange(len(pairs))
    generator = torch.Generator().manual_seed(check_seed(seed))
    for length in pairs.lengths.unique():
        rows = (pairs.lengths == length).nonzero().flatten()
        if len(rows) < 2:
            raise InputError(f"unrelated corruption needs two pairs of every length; length {int(length)} occurs once")
        drawn = rows[torch.randperm(len(rows), generator=generator)]
        order[drawn] = drawn.roll(1)
    moved = replace(
        pairs, corrupt_tokens=pairs.corrupt_tokens[order],
        corrupt_spans={name: mask[order] for name, mask in pairs.corrupt_spans.items()},
    )  # fmt: skip
    return replace(task, name=f"{task.name} (unrelated corruption)", pairs=moved, texts=())


def draw_signs(n: int, seed: int) -> Int[Tensor, " batch"]:
    """+1 for one half of the pairs, -1 for the other."""
    if n < 2:
        raise InputError(f"answers are shuffled among at least two pairs; got {n}")
    signs = torch.ones(n, dtype=torch.long)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(check_seed(seed)))
    signs[order[: n // 2]] = -1
    return signs


def _swap(task: Task, rows: Tensor) -> Task:
    """Right and wrong answers exchanged in those rows."""
    pairs = task.pairs
    width = max(pairs.correct.shape[1], pairs.incorrect.shape[1])
    sides = [
        torch.cat([side, side.new_full((len(side), width - side.shape[1]), ABSENT)], dim=1)
        for side in (pairs.correct, pairs.incorrect)
    ]
    right, wrong = sides[0].clone(), sides[1].clone()
    right[rows], wrong[rows] = sides[1][rows], sides[0][rows]
    moved = replace(pairs, correct=right, incorrect=wrong)
    return replace(task, name=f"{task.name} (shuffled answers)", pairs=moved, answer_texts=())


@contextmanager
def shuffled_weights(model: TransformerBridge, seed: int = 0) -> Iterator[None]:
    """Inside, the entries of every matrix of the model (biases and norms stay) are shuffled: a random model of the same
    shape and the same sizes of weights. Afterwards the weights are what they were, to the bit, whatever happened.

    Takes a copy of the matrices meanwhile. Call inside a function that borrows the model.
    """
    weights = [p for p in model.parameters() if p.ndim > 1]
    before = [p.detach().clone() for p in weights]
    generator = torch.Generator().manual_seed(check_seed(seed))

    @torch.no_grad()
    def undo() -> None:
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)

    try:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                order = torch.randperm(old.numel(), generator=generator).to(old.device)
                weight.copy_(old.flatten()[order].view_as(old))
        yield
    finally:
        surely(undo)
