"""Automatic circuit discovery (Conmy et al. 2023): cut every edge that the output can do without, from the logits back.

    an edge goes when  D(circuit without it) - D(circuit) < threshold,   D = mean KL(model ‖ circuit), or |metric
    change|

Edges are tried reader by reader, last reader first, and last writer first. What runs before the reader is still the
whole model, so every trial begins at the reader's block with the clean stream. Trials are stacked on the guess that all
will go: copy k lacks the first k of the next edges; everything up to the first that must stay is settled by one pass.
The outcome
is that of one trial after another. Cost: at most one part of a forward per edge; per pass, one edge that stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...artefact import read_artefact, write_artefact
from ...errors import InputError
from ...execute.progress import Progress
from ...files import reading
from ...models.anatomy import device_of
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...models.pulse import beat
from ...provenance import build_provenance, hash_json
from ...runs.record import Run, record_run, run_to_metric
from ...runs.restart import restart_at
from ...shapes import EdgeMask
from ...statistics import kl_nats
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from ..graph.ablated import find_ablation
from ..graph.circuit import Circuit
from ..graph.run import AblatedWrites, Resume, as_circuit
from ..graph.space import EdgeSpace
from ..graph.writers import Writes, edge_space, record_writers, writer_kinds

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@borrows
def find_acdc(
    model: TransformerBridge,
    task: Task,
    threshold: float,
    *,
    measure: str = "kl",
    ablation: str = "corrupt",
    n_copies: int = 8,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Circuit:
    """The circuit that is left when every edge whose loss costs less than `threshold` is cut, pruned.

    `measure`: ``"kl"`` in nats, or ``"metric"``: the absolute change of the mean metric. All pairs run in one batch,
    `n_copies` trials at a time. With `checkpoint` (a file), progress is saved after every reader, and a run that was
    interrupted goes on there; raises `InputError` for a checkpoint of another model, task or setting.

    >>> find_acdc(model, task.train[:16], threshold=0.01)
    """
    if measure not in ("kl", "metric"):
        raise InputError(f"trials are measured by 'kl' or 'metric'; got {measure!r}")
    if not threshold > 0 or n_copies < 1:
        raise InputError(f"a positive threshold and at least one copy are needed; got {threshold}, {n_copies}")
    space = edge_space(model, task)
    settings = {"threshold": threshold, "measure": measure, "ablation": ablation, "seed": seed}
    identity = identify_model(model)
    key = hash_json({**settings, "weights": identity["weights_sha256"], "task": task.provenance()})
    bench = _Trials.of(model, task, space, ablation, measure, seed)
    state = _load(checkpoint, key) or _State(space.mask.clone(), space.n_readers, 0.0)
    while state.next_reader > 0:
        state = _cut_reader(bench, state, state.next_reader - 1, threshold, n_copies)
        _save(checkpoint, key, state)
        if progress is not None:
            progress(space.n_readers - state.next_reader, space.n_readers, "cutting edges")
    provenance = build_provenance(
        method="acdc", **settings, model=identity, task=task.provenance(), distance=state.distance
    )
    return Circuit(space, state.mask, n_requested=int(state.mask.sum()), provenance=provenance).pruned()


@dataclass(frozen=True, eq=False)
class _State:
    """What is settled: the mask, readers from `next_reader` on, the distance of the circuit so far."""

    mask: EdgeMask
    next_reader: int
    distance: float


def _cut_reader(bench: _Trials, state: _State, column: int, threshold: float, n_copies: int) -> _State:
    """Tries all edges into one reader, last writer first."""
    mask, distance = state.mask.clone(), state.distance
    rows = list(range(int(bench.space.n_seen[column]) - 1, -1, -1))
    while rows:
        chunk = rows[:n_copies]
        trials = mask.repeat(len(chunk), 1, 1)
        for k, row in enumerate(chunk):
            trials[k:, row, column] = False
        found = bench.distances(trials, column)
        settled = 0
        for row, value in zip(chunk, found, strict=True):
            settled += 1
            if value - distance >= threshold:  # the edge stays, and the trials after it were wrong guesses
                break
            mask[row, column], distance = False, value
        rows = rows[settled:]
    return _State(mask, column, distance)


@dataclass(frozen=True, eq=False)
class _Trials:
    """Measures stacked circuits that differ from the whole model only from some reader on."""

    model: TransformerBridge
    task: Task
    space: EdgeSpace
    pairs: PromptPairs
    clean: Run
    ablated: AblatedWrites
    difference: Writes
    measure: str
    stacks: dict[int, AblatedWrites] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: TransformerBridge, task: Task, space: EdgeSpace, ablation: str, measure: str, seed: int
    ) -> _Trials:
        pairs = task.pairs.to(device_of(model))
        clean = record_run(model, pairs, writer_kinds(space), n_tail=pairs.n_tail if task.metric.reads_final else None)
        ablated = find_ablation(model, task, space, ablation, seed=seed).writes(pairs, 0)
        difference = ablated - record_writers(model, space, clean)
        return cls(model, task, space, pairs, clean, ablated, difference, measure)

    def distances(self, masks: EdgeMask | Tensor, column: int) -> list[float]:
        """Distance to the whole model of each of the circuits ``[copy, writer, reader]``."""
        layer = min(column // self.space.readers_per_layer, self.space.n_layers - 1)
        n = len(masks)
        before = Resume(layer, self.difference[: self.space.n_seen_by_attention(layer)])
        ablated = self.ablated if self.ablated.shape[1] == 1 else self._stacked(n)
        stream = self.clean.layers["resid_pre"][layer].repeat(n, 1, 1)
        tokens = self.pairs.clean_tokens.repeat(n, 1)
        with (
            torch.no_grad(),
            restart_at(self.model, layer, stream),
            as_circuit(self.model, self.space, masks, ablated, resume=before),
        ):
            logits = run_to_metric(self.model, self.task, self.pairs, tokens)
        return [self._distance(part) for part in logits.split(len(self.pairs))]

    def _stacked(self, n: int) -> AblatedWrites:
        """The ablated writes `n` times, kept until another number of trials is asked for."""
        if n not in self.stacks:
            self.stacks.clear()
            rows = self.ablated.shape[1]
            self.stacks[n] = stack = self.ablated.new_empty(len(self.ablated), n * rows, *self.ablated.shape[2:])
            for copy in stack.split(rows, dim=1):
                copy.copy_(self.ablated)
                beat()
        return self.stacks[n]

    def _distance(self, logits: Float[Tensor, "batch tail d_vocab"]) -> float:
        if self.measure == "metric":
            change = self.task.measure(logits, self.pairs) - self.task.measure(self.clean.logits, self.pairs)
            return abs(float(change.mean()))
        reference, found = (self.pairs.final(x).log_softmax(dim=-1) for x in (self.clean.logits, logits))
        return float(kl_nats(reference, found).mean())


def _save(path: str | Path | None, key: str, state: _State) -> None:
    if path is None:
        return
    facts = {"key": key, "next_reader": state.next_reader, "distance": state.distance}
    write_artefact(path, "acdc", facts, {"mask": state.mask})


def _load(path: str | Path | None, key: str) -> _State | None:
    if path is None or not Path(path).is_file():
        return None
    found = read_artefact(path, "acdc")
    if found.facts.get("key") != key:
        raise InputError(
            f"{path} is not a checkpoint of this search (another model, task, threshold or ablation). Name another "
            "file, or delete it."
        )
    with reading(path, "acdc"):
        return _State(found.tensors["mask"], int(found.facts["next_reader"]), float(found.facts["distance"]))
