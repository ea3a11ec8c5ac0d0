"""Score every edge of the computational graph from a few passes.

    s(u -> v) = sum over positions of (write_u clean - write_u ablated) . coefficient at v's input

Edge attribution patching (Syed et al. 2023), EAP-IG (Hanna et al. 2024), relevance patching and others are points of
one grid (see `methods`). Positive = the clean value along the edge raises the metric. Note the sign and the run:
EAP-IG's own code takes (corrupt - clean) and gradients at the clean run; that is minus `direction="noise"` here.

Cost per batch of pairs: 1 forward, and 1 forward + 1 backward at one end; n points between the ends cost 2 forwards and
n (forward + backward); activation paths (2 layers + 1) n (forward + backward). First columns that are the same in both
prompts of every pair run once, as keys and values (see `runs.prefix`). Products of writes and coefficients add 2 x
batch x pos x d_model
x edges operations: once, since coefficients are averaged over the path first (activation paths: once per point).
Memory stays within `memory_budget` beside the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ...errors import InputError
from ...execute.progress import Progress
from ...models.anatomy import check_ready, dtype_of
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import build_provenance
from ...relevance import Composite, Rule
from ...runs.prefix import count_shared
from ...runs.record import Baseline, join_baselines
from ...tasks.task import Task
from ..graph.budget import DEFAULT_BUDGET, Fit, fit, parse_bytes
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from .estimate import Rows
from .methods import Method, find_method
from .sample import Stream
from .scores import EdgeScores
from .units import run_batches

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Keep = Literal["auto", "pairs", "moments"]

N_RESAMPLES = 200
"""Bootstrap resamples of streamed scores."""


@borrows
def score_edges(
    model: TransformerBridge,
    task: Task,
    *,
    preset: str | None = None,
    rules: str | Composite | Sequence[str | Rule] | None = None,
    ig_steps: int | None = None,
    path: str | None = None,
    direction: str | None = None,
    ablation: str = "corrupt",
    split_input: bool = False,
    split_experts: bool = False,
    memory_budget: int | str = DEFAULT_BUDGET,
    batch_size: int | None = None,
    keep: str = "auto",
    seed: int = 0,
    source: Task | None = None,
    progress: Progress | None = None,
) -> EdgeScores:
    """Scores of all edges, per pair or streamed to mean, variance and bootstrap.

    Say how with a `preset` (``"eap-ig"``, see `mechwork.circuits.scoring.methods`), or with `rules` (a composite or its
    name), `ig_steps` and `path` (``"inputs"``, ``"activations"``, ``"clean-corrupt"``); nothing said means
    ``preset="eap-ig"``. `ablation` is what the clean write is compared with: the paired ``"corrupt"`` run, ``"zero"``,
    the data's ``"mean"`` or ``"mean_by_position"`` (all but the first at the clean run), over the prompts of `source`
    (default: the task's own). One prompt without a corrupt one is scored under the latter.

    With `split_input` the input counts as two writers, ``embed`` of the tokens and ``pos_embed`` of the positions.
    Under ``corrupt`` ablation the edges of ``pos_embed`` are zero, since both runs have the same positions.

    Pairs run in micro-batches that fit `memory_budget` (bytes or ``"2GB"``; `batch_size` overrides). ``keep="pairs"``
    keeps a score per pair, ``"moments"`` mean, variance and 200 bootstrap means; ``"auto"`` keeps pairs while they fit
    a quarter of the budget.

    Works for grouped-query attention (k and v have one reader per key/value head, whose score is the sum over its query
    heads), parallel blocks, post-norms (linear at the live scale) and mixtures of experts (an MLP as one
    node; with `split_experts` a writer per expert, ``m3.e1``, whose scores add up to the MLP's).

    Pairs of unequal length are aligned by spans: writes of the other run are moved to the host's positions. A token of
    the host's prompt that corresponds to nothing keeps its own writes, and adds nothing to a score; a token that only
    the other prompt has is not looked at.

    Raises `InputError` for pairs of unequal length without spans (or with methods other than coefficients between the
    inputs), an unknown preset, or settings that exclude each other; `MetricError` when clean and corrupt metrics
    coincide; all before or at the first passes.

    >>> scores = score_edges(model, task.train, preset="eap-ig")
    >>> circuit = scores.circuit(n_edges=80)
    """
    method = find_method(preset, rules=rules, ig_steps=ig_steps, path=path, direction=direction, ablation=ablation)
    space = edge_space(model, task, split_input=split_input, split_experts=split_experts, aligned=None)
    check_correspondence(method, task)
    plan = plan_batches(model, task, space, method, memory_budget, batch_size)
    budget = parse_bytes(memory_budget)
    stream = Stream(
        len(task) // task.pairs.n_per_question,
        space.n_edges,
        keep=_keeps_pairs(keep, 4 * len(task) * space.mask.numel(), budget),
        n_resamples=N_RESAMPLES,
        seed=seed,
    )
    ends: list[Baseline] = []
    for rows in batch_rows(model, task, space, method, plan, seed, progress, source):
        stream.add(task.pairs.per_question(rows.values[:, space.mask.to(rows.values.device)]))
        ends.append(rows.baseline)
    baseline = join_baselines(ends).by(task.pairs.per_question)
    if not task.pairs.alone:
        baseline.require_gap()
    kept = stream.kept()
    return EdgeScores(
        space,
        None if kept is None else _spread(space, kept),
        method.direction,
        method.rules.name if method.estimator == "coefficients" else method.estimator,
        method.ig_steps,
        task.metric.name,
        baseline,
        build_provenance(
            method="edge scores", **method.to_json(), seed=seed, model=identify_model(model), task=task.provenance()
        ),
        path=method.path,
        ablation=method.ablation,
        templates=task.pairs.templates[:: task.pairs.n_per_question],
        streamed=stream.streamed(),
    )


@dataclass(frozen=True)
class BatchPlan:
    """How many pairs go through a pass, how many positions through a product, and whether blocks run again in the
    backward pass.
    """

    n_pairs: int
    n_positions: int
    remade: bool = False


def plan_batches(
    model: TransformerBridge,
    task: Task,
    space: EdgeSpace,
    method: Method,
    memory_budget: int | str,
    batch_size: int | None,
    n_cells: int = 1,
) -> BatchPlan:
    """Micro-batches of nearly one size that fit the budget; `batch_size` overrides how many pairs."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is the number of pairs in a pass and at least 1; got {batch_size}")
    n_pos = task.pairs.clean_tokens.shape[1]
    n_tail = task.pairs.n_tail if task.metric.reads_final else n_pos
    if method.ablation == "corrupt":
        n_pos -= count_shared(model, task, task.pairs)
    n_bytes = torch.empty((), dtype=dtype_of(model)).element_size()
    size: Fit = fit(
        check_ready(model),
        space,
        n_pos,
        n_tail,
        parse_bytes(memory_budget),
        n_bytes=n_bytes,
        n_cells=n_cells,
        averaged=method.averages,
    )
    n_batches = -(-len(task) // size.n_pairs)
    n_pairs = task.pairs.whole(min(batch_size or -(-len(task) // n_batches), len(task)))
    return BatchPlan(n_pairs, size.n_positions, size.remade)


def batch_rows(
    model: TransformerBridge,
    task: Task,
    space: EdgeSpace,
    method: Method,
    plan: BatchPlan,
    seed: int = 0,
    progress: Progress | None = None,
    source: Task | None = None,
    *,
    nodes: bool = False,
) -> Iterator[Rows]:
    """Scores and baselines of all pairs, micro-batch by micro-batch; of `nodes`, see `run_batches`."""
    batches = run_batches(
        model, task, space, method, plan.n_pairs, plan.n_positions, seed, source, nodes=nodes, remade=plan.remade
    )
    for unit, rows in batches:
        yield rows
        if progress is not None:
            progress(unit.rows[1], len(task), "scoring nodes" if nodes else "scoring edges")


def check_correspondence(method: Method, task: Task) -> None:
    """Raises `InputError` for methods that need positions to correspond one to one, when those of the task do not."""
    if method.ablation == "corrupt":
        task.pairs.require_corrupt()
    if task.pairs.aligned or method.ablation != "corrupt":
        return
    if method.estimator not in ("coefficients", "random") or method.path == "activations" or 1.0 in method.fractions:
        raise InputError(
            "pairs of unequal length are scored by coefficients at points between the inputs; this method needs equal "
            "length. Use preset='eap' or 'eap-ig' (or rules with path='inputs'), or reword the longer prompt."
        )


def _keeps_pairs(keep: str, n_bytes: int, budget: int) -> bool:
    if keep not in ("auto", "pairs", "moments"):
        raise InputError(f"keep is 'auto', 'pairs' or 'moments'; got {keep!r}")
    return keep == "pairs" or (keep == "auto" and n_bytes <= budget // 4)


def _spread(space: EdgeSpace, packed: Tensor) -> Tensor:
    full = packed.new_zeros(len(packed), space.n_writers, space.n_readers)
    full[:, space.mask] = packed
    return full
