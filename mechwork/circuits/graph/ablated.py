"""What cut edges carry: the ablated writes of every writer, by kind of ablation.

| ablation | a cut edge carries |
|---|---|
| ``corrupt`` | the source's write in the paired corrupt run, at the corresponding token |
| ``zero`` | nothing |
| ``mean`` | its mean over the task's clean prompts and their real positions |
| ``mean_by_position`` | its mean over the clean prompts at the same position |
| ``resample`` | its write on another, randomly drawn clean prompt of the task |
| ``optimal`` | a constant vector per writer, learned so that cutting edges hurts least (Li & Janson 2024) |

Constant writes are ``[writer, 1, 1, d_model]`` (or with positions), those of runs ``[writer, batch, pos, d_model]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ...errors import UnknownNameError
from ...interventions import Moments, other_prompts, require_examples
from ...models.anatomy import device_of
from ...runs.prefix import Prefix
from ...runs.record import record_run
from ...runs.room import prompts_that_fit
from ...statistics import kl_nats
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from .run import AblatedWrites, as_circuit
from .select import select_random
from .space import EdgeSpace
from .writers import move_run, record_writers, writer_kinds

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ABLATIONS = ("corrupt", "zero", "mean", "mean_by_position", "resample", "optimal")
CONSTANT = ("zero", "mean", "optimal")
"""Ablations that exist for prompts outside the task and of any length."""

PAIRED = ("corrupt", "resample")
"""Ablations whose writes are those of one other run of as many tokens."""

PAIRS_PER_STEP = 16


@dataclass(frozen=True, eq=False)
class CutWrites:
    """Gives the ablated writes of the pairs in rows `start` to `start + n` of a task.

    `shares_prefix`: whether first columns that both prompts share are the same under every circuit; `after` gives the
    writes at the columns after them. `constant`: the writes that are the same for all prompts, of the kinds that have
    such.
    """

    kind: str
    writes: Callable[[PromptPairs, int], AblatedWrites]
    after: Callable[[PromptPairs, Prefix | None], AblatedWrites] | None = None
    constant: AblatedWrites | None = None

    @property
    def shares_prefix(self) -> bool:
        return self.after is not None

    @property
    def paired(self) -> bool:
        """Whether all writes are those of one other run, so that a circuit without edges computes that run."""
        return self.kind in PAIRED


def find_ablation(
    model: TransformerBridge, task: Task, space: EdgeSpace, kind: str, *, seed: int = 0, source: Task | None = None
) -> CutWrites:
    """The ablation of that name for a task; means and constants come from the prompts of `source` (default: the task's
    own).

    Cost: nothing for zero, 1 forward per batch of pairs for corrupt and resample, 1 forward per batch once for means,
    about 60 (forward + backward) once for optimal. Raises `InputError` for a mean over fewer than 8 prompts.
    """
    if kind not in ABLATIONS:
        raise UnknownNameError("ablation", kind, ABLATIONS)
    constant = None if kind in PAIRED else _constant(model, source or task, space, kind, seed)
    return restore_ablation(model, task, space, kind, constant, seed=seed)


def restore_ablation(
    model: TransformerBridge, task: Task, space: EdgeSpace, kind: str, constant: AblatedWrites | None, *, seed: int = 0
) -> CutWrites:
    """The ablation that `find_ablation` gave, from its constant writes (`Ablation.constant`)."""
    if kind == "corrupt":
        return CutWrites(
            kind,
            lambda pairs, _start: _writes_of(model, space, pairs, corrupt=True),
            lambda pairs, prefix: _writes_of(model, space, pairs, corrupt=True, prefix=prefix),
        )
    if kind == "resample":
        order = other_prompts(task, seed)
        return CutWrites(kind, lambda pairs, start: _resampled(model, space, task, order, start, pairs))
    assert constant is not None
    return CutWrites(kind, lambda pairs, _start: _cut_to(constant, pairs), constant=constant)


def _constant(model: TransformerBridge, source: Task, space: EdgeSpace, kind: str, seed: int) -> AblatedWrites:
    if kind == "zero":
        like = next(model.parameters())
        return torch.zeros(space.n_writers, 1, 1, int(model.cfg.d_model), dtype=like.dtype, device=like.device)
    if kind == "optimal":
        return learn_constants(model, source, space, seed=seed)
    return mean_writes(model, source, space, by_position=kind == "mean_by_position")


def mean_writes(
    model: TransformerBridge, task: Task, space: EdgeSpace, *, by_position: bool
) -> Float[Tensor, "writer 1 #pos d_model"]:
    """Mean write of every writer over the clean prompts' real tokens, at all positions together or at each. 1 forward
    per batch.
    """
    require_examples(task, by_position=by_position)
    moments = Moments(task.pairs.clean_tokens.shape[1] if by_position else 1)
    writes_of_one = 4 * space.n_writers * task.pairs.clean_tokens.shape[1] * int(model.cfg.d_model)
    for pairs in task.pairs.batches(prompts_that_fit(model, task.pairs, n_tail=1, extra=2 * writes_of_one)):
        pairs = pairs.to(device_of(model))
        writes = _writes_of(model, space, pairs, corrupt=False)
        moments.add(rearrange(writes, "writer batch pos d_model -> batch pos writer d_model"), pairs.mask)
    return rearrange(moments.mean(), "pos writer d_model -> writer 1 pos d_model")


def learn_constants(
    model: TransformerBridge, task: Task, space: EdgeSpace, *, n_steps: int = 60, rate: float = 0.1, seed: int = 0
) -> Float[Tensor, "writer 1 1 d_model"]:
    """Constants that make cutting edges hurt least: minimise KL(model ‖ random circuit) at the answers over random
    circuits.

    Starts from the means; Adam with steps relative to each writer's spread. Circuits keep between 20 % and 98 % of the
    edges.
    """
    start = mean_writes(model, task, space, by_position=False)
    generator = torch.Generator().manual_seed(seed)
    spread = start.pow(2).mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-3)
    shift = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=rate)
    for step in range(n_steps):
        rows = torch.randperm(len(task), generator=generator)[:PAIRS_PER_STEP].tolist()
        pairs = task.pairs[rows].to(device_of(model))
        share = 0.2 + 0.78 * float(torch.rand((), generator=generator))
        mask = select_random(space, max(1, int(share * space.n_edges)), seed * 1000 + step)
        reference = pairs.final(_last_logits(model, pairs)).log_softmax(dim=-1)
        with torch.enable_grad(), as_circuit(model, space, mask, start + shift * spread, grad=True):
            logits = model(pairs.clean_tokens, logits_to_keep=pairs.n_tail)
            found = pairs.final(logits).log_softmax(dim=-1)
            loss = kl_nats(reference, found).mean()
            (shift.grad,) = torch.autograd.grad(loss, shift)
        optimiser.step()
    return (start + shift * spread).detach()


def _last_logits(model: TransformerBridge, pairs: PromptPairs) -> Float[Tensor, "batch tail d_vocab"]:
    """Logits of the last columns of the clean prompts."""
    with torch.no_grad():
        return model(pairs.clean_tokens, logits_to_keep=pairs.n_tail)


def _writes_of(
    model: TransformerBridge, space: EdgeSpace, pairs: PromptPairs, *, corrupt: bool, prefix: Prefix | None = None
) -> AblatedWrites:
    run = record_run(model, pairs, writer_kinds(space), corrupt=corrupt, n_tail=1, prefix=prefix)
    if corrupt and not pairs.aligned:
        run = move_run(run, record_run(model, pairs, writer_kinds(space), n_tail=1), pairs)
    return record_writers(model, space, run)


def _resampled(
    model: TransformerBridge, space: EdgeSpace, task: Task, order: Tensor, start: int, pairs: PromptPairs
) -> AblatedWrites:
    others = task.pairs[order[start : start + len(pairs)].tolist()].to(device_of(model))
    return _writes_of(model, space, others, corrupt=False)


def _cut_to(constant: AblatedWrites, pairs: PromptPairs) -> AblatedWrites:
    return constant if constant.shape[2] == 1 else constant[:, :, : pairs.clean_tokens.shape[1]]
