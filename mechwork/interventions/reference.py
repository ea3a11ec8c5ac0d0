"""What a reference set of prompts says about an activation: means and spreads over real tokens, and which other prompt
to use.

    mean               over all real tokens of all prompts
    mean by position   over prompts, at each absolute position
    mean by span       over the tokens of each named span of all prompts

Sums are kept in at least float32. A mean over fewer than `MIN_EXAMPLES` prompts is refused: each prompt would be a
large part of what it is compared with.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..models.pulse import beat
from ..tasks.task import Task

MIN_EXAMPLES = 8
"""The fewest prompts a mean is taken over."""


class Moments:
    """First and second moments over real tokens: of all positions together (`n_columns` 1), or position by position."""

    def __init__(self, n_columns: int = 1) -> None:
        self.n_columns = n_columns
        self.count = torch.zeros(n_columns, dtype=torch.float64)
        self.total: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, values: Float[Tensor, "batch pos ..."], mask: Bool[Tensor, "batch pos"]) -> None:
        """Take in one batch; `mask` says which tokens count."""
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        weights = mask.to(values)
        flat = values.flatten(2) if values.ndim > 2 else values[..., None]
        beat()
        sums = [torch.einsum("bpd,bp->pd", part, weights) for part in (flat, flat * flat)]
        beat()
        counted = mask.sum(dim=0).double().cpu()
        if self.n_columns == 1:
            sums, counted = [part.sum(dim=0, keepdim=True) for part in sums], counted.sum().reshape(1)
        else:
            missing = self.n_columns - values.shape[1]
            sums = [torch.nn.functional.pad(part, (0, 0, 0, missing)) for part in sums]
            counted = torch.nn.functional.pad(counted, (0, missing))
        total, squares = (part.reshape(self.n_columns, *values.shape[2:]) for part in sums)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.count = self.count + counted

    def mean(self) -> Float[Tensor, "column ..."]:
        """The mean of each column; zeros where nothing was counted."""
        return self._divided(self.total)

    def deviation(self) -> Float[Tensor, "column ..."]:
        """The standard deviation (of the population) of each column."""
        return (self._divided(self.squares) - self.mean().pow(2)).clamp(min=0).sqrt()

    def _divided(self, total: Tensor | None) -> Tensor:
        assert total is not None
        return total / self.count.clamp(min=1).to(total).reshape(-1, *[1] * (total.ndim - 1))


def require_examples(task: Task, *, by_position: bool = False) -> None:
    """Raises `InputError` when a mean over the task's clean prompts would rest on fewer than `MIN_EXAMPLES` of them."""
    per_column = task.pairs.mask.sum(dim=0)
    n = int(per_column[per_column > 0].min()) if by_position else len(task)
    if n < MIN_EXAMPLES:
        where = f"position {int(per_column.argmin())} of " if by_position else ""
        raise InputError(
            f"a mean over at least {MIN_EXAMPLES} prompts is needed; {where}task {task.name!r} has {n}. "
            "Use more pairs, ablation='mean' for prompts of different length, or ablation='corrupt'."
        )


def require_spans(task: Task) -> None:
    """Raises `InputError` when the task has no spans, or one that fewer than `MIN_EXAMPLES` prompts have."""
    if not task.pairs.spans:
        raise InputError(
            f"a mean by span needs named spans; task {task.name!r} has none. Give spans, or use 'mean' or "
            "'mean_by_position'."
        )
    for name, mask in task.pairs.spans.items():
        n = int(mask.any(dim=1).sum())
        if n < MIN_EXAMPLES:
            raise InputError(
                f"a mean over at least {MIN_EXAMPLES} prompts is needed; span {name!r} of task {task.name!r} is in "
                f"{n}. Use more pairs."
            )


def other_prompts(task: Task, seed: int) -> Int[Tensor, " batch"]:
    """For every pair another one of the same length; raises `InputError` when a length occurs once."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(len(task))
    for length in task.pairs.lengths.unique():
        rows = (task.pairs.lengths == length).nonzero().flatten()
        if len(rows) < 2:
            raise InputError(
                f"resampling needs at least two prompts of every length; length {int(length)} occurs once in task "
                f"{task.name!r}"
            )
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        order[shuffled] = shuffled.roll(1)
    return order
