"""Record a run: one forward pass over one side of the pairs, keeping the activations of some kinds of site.

Activations are stacked over layers, ``[layer, batch, pos, ...]``, on the model's device. With `grad=True` they stay in
the autograd graph, each as its own node, so that `torch.autograd.grad` with respect to an activation is the
coefficient through that place alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError, MetricError
from ..models.anatomy import ModelAnatomy, check_ready, device_of, layer_devices
from ..models.borrow import borrows, hooked, run_tail
from ..shapes import Logits, PerExample, Tokens
from ..sites import SITE_KINDS, Site, hook_name, site_kind
from ..tasks.encode import tokenise
from ..tasks.marks import check_marks, plain_tokens
from ..tasks.pairs import ABSENT, PromptPairs
from ..tasks.task import Task
from .prefix import Prefix

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

EDITS_ONE_BRANCH = frozenset({"resid_mid"})
"""Kinds whose hook feeds only one of the branches that read the tensor: recorded as it is, never replaced by a node."""


@dataclass(frozen=True, eq=False)
class Run(Readable):
    """One recorded forward pass: `layers[kind]` is a list of per-layer activations ``[batch, pos, ...]``."""

    logits: Logits
    layers: dict[str, list[Tensor]]

    def __getitem__(self, kind: str) -> Float[Tensor, "layer ..."]:
        """Activations of a kind, stacked over layers (kinds outside the blocks: as they are)."""
        if kind not in self.layers:
            raise InputError(f"this run has not recorded {kind!r}; it has {', '.join(self.layers)}")
        return torch.stack(self.layers[kind]) if SITE_KINDS[kind].per_layer else self.layers[kind][0]

    @property
    def n_bytes(self) -> int:
        """Memory of the recorded activations."""
        return sum(t.numel() * t.element_size() for ts in self.layers.values() for t in ts)


@borrows
def record_run(
    model: TransformerBridge,
    pairs: PromptPairs | Task | str,
    kinds: Sequence[str | Site] = ("resid_pre",),
    *,
    corrupt: bool = False,
    grad: bool = False,
    n_tail: int | None = None,
    prefix: Prefix | None = None,
    keep: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Run:
    """Run the clean (or corrupt) prompts of pairs or a task, or one text, once and keep the activations of `kinds` at
    every layer. Cost: 1 forward.

    A `Site` among `kinds` is recorded at its layer alone. With `grad`, run inside whatever composite of rules is
    active;
    gradients start at the embedding. `n_tail`: unembed the last columns only (for metrics that read no others).
    `prefix`: columns that have run already; only those after them run and are kept. `keep` says by kind what of an
    activation is kept (some queries of a pattern, say), so that no layer's whole one outlives its block; not with
    `grad`.
    """
    anatomy = check_ready(model)
    if isinstance(kinds, str | Site):
        raise InputError(f"kinds is a list of kinds of site, e.g. ['resid_pre', 'pattern']; got {kinds!r}")
    if isinstance(pairs, Task):
        check_task(model, pairs)
        pairs = pairs.pairs
    if isinstance(pairs, str):
        if corrupt or not pairs:
            raise InputError("one prompt is a text of at least one token, and has no corrupt side")
        tokens = torch.tensor([tokenise(model, pairs)], device=device_of(model))
    else:
        tokens = (pairs.corrupt_tokens if corrupt else pairs.clean_tokens).to(device_of(model))
    sites = [site for kind in kinds for site in ([kind] if isinstance(kind, Site) else sites_of(anatomy, kind))]
    store: dict[str, list[Tensor]] = {site.kind: [] for site in sites}
    part = dict(keep or {})
    homes = layer_devices(model)  # what is kept of a layer lies with its weights, wherever it was handed over

    def keeps(site: Site) -> Any:
        def hook(activation: Tensor, hook: Any) -> Tensor | None:
            if site.layer is not None and not (grad and site.kind in EDITS_ONE_BRANCH):
                activation = activation.to(homes[site.layer])
            if not grad:
                of = part.get(site.kind)
                store[site.kind].append(activation.detach() if of is None else of(activation.detach()))
                return None
            node = activation if site.kind in EDITS_ONE_BRANCH else activation.view_as(activation)
            store[site.kind].append(node)
            return None if site.kind in EDITS_ONE_BRANCH else node

        return hook

    hooks = [(hook_name(site), keeps(site)) for site in sites]
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(grad))
        if grad:
            stack.enter_context(leaf_at_embedding(model))
        stack.enter_context(hooked(model, hooks))
        logits = _run_tail(model, tokens, n_tail, prefix)
    return Run(logits, store)


def run_to_metric(
    model: TransformerBridge,
    task: Task,
    pairs: PromptPairs,
    tokens: Tokens | None = None,
    prefix: Prefix | None = None,
) -> Float[Tensor, "batch tail d_vocab"]:
    """Logits as far as the task's metric needs them: of the last columns only, when it reads nothing else.

    `tokens` are one or several copies of the clean prompts of `pairs`, one after another (default: these). Cost: 1
    forward (of the columns after `prefix`), the unembedding at ``pairs.n_tail`` columns.
    """
    with torch.no_grad():
        tokens = pairs.clean_tokens if tokens is None else tokens
        return _run_tail(model, tokens, read_columns(task, pairs), prefix)


def _run_tail(
    model: TransformerBridge, tokens: Tokens, n_tail: int | None, prefix: Prefix | None
) -> Float[Tensor, "batch tail d_vocab"]:
    """`run_tail`, of the columns after `prefix` alone where there is one."""
    if prefix is None:
        return run_tail(model, tokens, n_tail)
    extra = prefix.arguments(tokens.shape[1], tokens.device)
    return run_tail(model, prefix.rest(tokens), n_tail, **extra)


def read_columns(task: Task, pairs: PromptPairs) -> int | None:
    """How many last columns of the clean prompts the task's metric reads; None: all."""
    return pairs.n_tail if task.metric.reads_final else None


def metric_of(model: TransformerBridge, task: Task, pairs: PromptPairs | None = None) -> PerExample:
    """The task's metric of the clean prompts as the model now runs, on its device. Cost: 1 forward, see
    `run_to_metric`.
    """
    pairs = (task.pairs if pairs is None else pairs).to(device_of(model))
    return task.measure(run_to_metric(model, task, pairs), pairs)


@contextmanager
def leaf_at_embedding(model: TransformerBridge) -> Iterator[None]:
    """Makes the embedding the leaf of the graph, so that frozen models have gradients and parameters never get any."""

    def start(activation: Tensor, hook: Any) -> Tensor:
        return activation.detach().requires_grad_(True)

    with hooked(model, [(hook_name(Site("embed")), start)]):
        yield


def sites_of(anatomy: ModelAnatomy, kind: str) -> list[Site]:
    """The sites of a kind, layer by layer; raises `InputError` when the model has none."""
    site_kind(kind)
    sites = [Site(kind, layer) for layer in range(anatomy.n_layers)] if SITE_KINDS[kind].per_layer else [Site(kind)]
    anatomy.check_site(sites[0])
    return sites


def align_donor(
    donor: Float[Tensor, "batch pos *rest"], host: Float[Tensor, "batch pos *rest"], index: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos *rest"]:
    """Donor activations moved to the host's positions; the host's own where nothing corresponds.

    `index` says, for every host position, the donor's position or `ABSENT` (see `PromptPairs.alignment`).
    """
    shape = (*index.shape, *[1] * (donor.ndim - 2))
    present = (index != ABSENT).to(donor.device).reshape(shape)
    places = index.clamp(min=0).to(donor.device).reshape(shape).expand_as(donor)
    return torch.where(present, donor.gather(1, places), host.to(donor.device))


@borrows
def check_task(model: TransformerBridge, task: Task) -> ModelAnatomy:
    """Everything that can be refused before the first forward pass: readiness, token ids, context length."""
    anatomy = check_ready(model)
    if not isinstance(task, Task):
        raise InputError(f"a Task is needed; got {type(task).__name__}. See mw.tasks and Task.from_tokens.")
    pairs = task.pairs
    for name in ("clean_tokens", "corrupt_tokens", "correct", "incorrect"):
        tokens = getattr(pairs, name)
        if name.endswith("tokens"):
            check_marks(model, tokens)
            tokens = plain_tokens(tokens)
        if int(tokens.max()) >= anatomy.d_vocab:
            raise InputError(
                f"token ids of this model are below {anatomy.d_vocab}; {name} of task {task.name!r} has "
                f"{int(tokens.max())}. Was the task made for another model?"
            )
    if not anatomy.causal and not pairs.one_length:
        raise InputError(
            "in this model every position attends to all others, so padding would change results: prompts need one "
            "length"
        )
    if pairs.clean_tokens.shape[1] > anatomy.n_ctx:
        raise InputError(
            f"prompts must fit the context of {anatomy.n_ctx} tokens; the longest has {pairs.clean_tokens.shape[1]}"
        )
    return anatomy


@dataclass(frozen=True, eq=False)
class Baseline:
    """The metric of the two unpatched runs, per pair."""

    clean_per_example: PerExample
    corrupt_per_example: PerExample

    @property
    def clean(self) -> float:
        """Mean metric of the clean run."""
        return float(self.clean_per_example.mean())

    @property
    def corrupt(self) -> float:
        """Mean metric of the corrupt run."""
        return float(self.corrupt_per_example.mean())

    @property
    def gap(self) -> float:
        """m(clean) - m(corrupt)."""
        return self.clean - self.corrupt

    def by(self, function: Callable[[PerExample], PerExample]) -> Baseline:
        """Both runs' values through `function` (`PromptPairs.per_question`)."""
        return Baseline(function(self.clean_per_example), function(self.corrupt_per_example))

    def require_gap(self) -> float:
        """The gap; raises `MetricError` when clean and corrupt coincide, since nothing can be normalised by it."""
        spread = max(abs(self.clean), abs(self.corrupt), 1e-12)
        if abs(self.gap) <= 1e-6 * spread:
            raise MetricError(
                f"the clean and corrupt runs have the same metric ({self.clean:.6g} and {self.corrupt:.6g}), so "
                "effects cannot be "
                "expressed as a share of the gap. Choose corrupt prompts that change the answer."
            )
        return self.gap


def join_baselines(ends: Sequence[Baseline]) -> Baseline:
    """The baseline of all micro-batches."""
    return Baseline(torch.cat([b.clean_per_example for b in ends]), torch.cat([b.corrupt_per_example for b in ends]))
