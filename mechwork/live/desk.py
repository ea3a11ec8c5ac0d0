"""The desk: one model, one task as reference, and runs of one pair under a list of changes, restarted where they begin.

What a desk gives is what the public functions give, to the bit: it calls them, or runs the same operations from the
first changed block on (`runs.restart`). It keeps the streams of the pair that is looked at, and the values that changes
put in place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..ablation import Ablation, AblationSpec, fit_ablation
from ..directions import Direction, fit_direction
from ..directions.examples import Examples
from ..errors import InputError, check_whole
from ..features import FeatureSet
from ..models.anatomy import ModelAnatomy, check_ready, device_of
from ..models.borrow import hooked
from ..patching.execute import can_step
from ..runs.record import check_task, read_columns, record_run, run_to_metric
from ..runs.restart import StopForward, restart_at
from ..runs.room import d_mlp_of
from ..shapes import Tokens
from ..sites import Site, hook_name
from ..statistics import kl_nats
from ..tasks.build import from_text
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Install = Callable[[], AbstractContextManager[Any]]
"""Puts a change in; made before anything runs, from the unchanged model."""

Emit = Callable[[str, dict[str, Any]], None]
"""Told what is known so far ("progress") and how far work is ("working"); what it raises stops the work."""

KEPT_FITS = 256
"""Fitted ablations that a desk keeps."""
KEPT_BOUND = 256
"""Values of changes that a desk keeps of the pair that is looked at."""
KEPT_TOLD = 16
"""What the model said in the last states."""


@runtime_checkable
class Change(Protocol):
    """Something done to the model's run: an ablation, a patch, a scaling, a steering."""

    @property
    def key(self) -> str: ...

    @property
    def first_layer(self) -> int: ...

    def bind(self, desk: Desk, pair: Task) -> Install: ...


@dataclass(frozen=True)
class PairChoice:
    """The pair that is looked at: a row of the task, or a person's own texts (clean, corrupt, correct, incorrect)."""

    row: int = 0
    texts: tuple[str, str, str, str] | None = None


@dataclass(frozen=True, eq=False)
class Told:
    """What the model says at the end of a prompt: the task's metric, and the most probable next tokens.

    `kl`: KL(unchanged model ‖ this run) at the answer, in nats.
    """

    metric: float
    logits: Float[Tensor, " d_vocab"]
    kl: float = 0.0

    def top(self, k: int = 5) -> list[tuple[int, float]]:
        """The `k` most probable tokens' ids, with their probabilities."""
        best = self.logits.double().softmax(dim=0).topk(min(k, len(self.logits)))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


@dataclass(eq=False)
class _Streams:
    """The pair that is looked at, its unchanged run, and the values of changes bound to it."""

    choice: PairChoice
    task: Task
    resid: list[Tensor]
    plain: Tensor
    bound: OrderedDict[str, Install] = field(default_factory=OrderedDict)
    told: OrderedDict[tuple[str, ...], Told] = field(default_factory=OrderedDict)


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Among the last `most`."""
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)


class Desk:
    """A model and a task (and sparse `features`); see the module. Cost: 2 forwards of one pair.

    Raises what `check_task` and `FeatureSet.check` raise.
    """

    def __init__(
        self, model: TransformerBridge, task: Task, *, seed: int = 0, features: FeatureSet | None = None
    ) -> None:
        check_task(model, task)
        self.model, self.task, self.seed, self.features = model, task, seed, features
        if features is not None:
            features.check(model)
        self.anatomy: ModelAnatomy = check_ready(model)
        self.restarts = can_step(model, task)
        self._fits: OrderedDict[str, Ablation] = OrderedDict()
        self._directions: dict[int, Direction] = {}
        self._streams: _Streams | None = None

    def check(self, choice: PairChoice) -> Task:
        """The pair as a task of one question; raises `InputError` for a row or texts that are none."""
        if choice.texts is None:
            row = check_whole("row", choice.row, least=0)
            if row >= len(self.task):
                raise InputError(f"task {self.task.name!r} has pairs 0 to {len(self.task) - 1}; got row {row}")
            return self.task[row : row + 1]
        clean, corrupt, correct, incorrect = choice.texts
        pair = from_text(self.model, clean, corrupt, correct, incorrect, metric=self.task.metric, name="own prompts")
        check_task(self.model, pair)
        return pair

    def pair(self, choice: PairChoice) -> Task:
        """The pair, recorded: 1 forward when it is a new one."""
        return self._recorded(choice).task

    def _recorded(self, choice: PairChoice) -> _Streams:
        if self._streams is None or self._streams.choice != choice:
            task = self.check(choice)
            pairs = task.pairs.to(device_of(self.model))
            run = record_run(self.model, pairs, ["resid_pre"], n_tail=read_columns(task, pairs))
            self._streams = _Streams(choice, task, run.layers["resid_pre"], run.logits)
        return self._streams

    def forget(self) -> None:
        """Drop what is kept: the weights or the prompts may have changed."""
        self._streams = None
        self._fits.clear()
        self._directions.clear()

    # ---- runs ------------------------------------------------------------------------------------------------------

    def tell(self, choice: PairChoice, changes: Sequence[Change] = ()) -> Told:
        """What the model says under `changes`. Cost: the blocks from the first changed one on; nothing without any, or
        for what was asked a moment ago.
        """
        kept = self._recorded(choice)
        pairs = kept.task.pairs.to(device_of(self.model))
        with torch.no_grad():
            if not changes:
                return self._told(kept, pairs, kept.plain, 0.0)
            key = tuple(change.key for change in changes)
            if key not in kept.told:
                with self.changed(choice, changes):
                    logits = run_to_metric(self.model, kept.task, pairs)
                before, now = (pairs.read(x).log_softmax(dim=-1) for x in (kept.plain, logits))
                _keep(kept.told, key, self._told(kept, pairs, logits, float(kl_nats(before, now).mean())), KEPT_TOLD)
            return kept.told[key]

    def changed(self, choice: PairChoice, changes: Sequence[Change], *, restart: bool = True) -> ExitStack:
        """Inside, forwards of the pair's clean prompt run under `changes` (from the first changed block on)."""
        kept = self._recorded(choice)
        installs = [self._bound(kept, change) for change in changes]
        first = min((change.first_layer for change in changes), default=0)
        stack = ExitStack()
        try:
            if restart and self.restarts and first > 0:
                stack.enter_context(restart_at(self.model, first, kept.resid[first]))
            for install in installs:
                stack.enter_context(install())
        except BaseException:
            stack.close()
            raise
        return stack

    def _bound(self, kept: _Streams, change: Change) -> Install:
        if change.key not in kept.bound:
            _keep(kept.bound, change.key, change.bind(self, kept.task), KEPT_BOUND)
        return kept.bound[change.key]

    def _told(self, kept: _Streams, pairs: Any, logits: Tensor, kl: float) -> Told:
        metric = float(kept.task.measure(logits, pairs).mean())
        return Told(metric, pairs.read(logits)[0, 0].cpu(), kl)

    # ---- what changes put in place ---------------------------------------------------------------------------------

    def fitted(self, spec: AblationSpec) -> Ablation:
        """The spec fitted to the task's clean prompts; tables are kept by the sites they are of.

        Cost: 1 forward per batch of prompts for the first place of a site.
        """
        for target in spec.parsed:
            target.check(self.anatomy, d_mlp_of(self.model))
        parts = sorted({(kind, target.layer) for target in spec.parsed for kind, _ in target.parts})
        if any(target.kind == "expert" for target in spec.parsed):
            parts = list(spec.targets)
        key = f"{spec.kind} {spec.positions} {parts}"  # a table holds all heads of a layer, all neurons of an MLP
        if key not in self._fits:
            _keep(self._fits, key, fit_ablation(self.model, spec, self.task), KEPT_FITS)
        self._fits.move_to_end(key)
        return replace(self._fits[key], spec=spec)

    def value_at(self, tokens: Tokens, site: Site) -> Float[Tensor, "batch pos d"]:
        """What a run of `tokens` has at a site (of its head alone). Cost: 1 forward as far as the site."""
        found: list[Tensor] = []

        def keep(activation: Tensor, hook: Any) -> None:
            found.append(activation.detach())
            raise StopForward

        hooks = [(hook_name(Site(site.kind, site.layer)), keep)]
        with torch.no_grad(), hooked(self.model, hooks), suppress(StopForward):
            self.model(tokens)
        return found[0] if site.head is None else found[0][:, :, site.head]

    def direction(self, layer: int) -> Direction:
        """Clean minus corrupt prompts of the task at the end, after block `layer`; fitted once."""
        if layer not in self._directions:
            site = Site("resid_post", layer)
            self._directions[layer] = fit_direction(self.model, Examples.of_task(self.task), site)
        return self._directions[layer]

    def word(self, token: int) -> str:
        """A token as text."""
        tokenizer = getattr(self.model, "tokenizer", None)
        return str(token) if tokenizer is None else str(tokenizer.decode([token]))
