"""Learned masks: edge pruning with hard-concrete gates and a target sparsity (Louizos et al. 2018; Bhaskar et al.
2024).

    z = clamp(sigmoid((log u - log(1 - u) + a) / beta) (zeta - gamma) + gamma, 0, 1),   u uniform,  one gate a per edge
    loss = KL(model ‖ circuit(z)) + l1 (s - t) + l2 (s - t)^2,   s = 1 - mean P(z > 0),   t = target sparsity, ramped up

The multipliers l1, l2 ascend while the gates descend, so that the sparsity is met. At the end the n edges of largest
gate are kept. Gates may start from any scores. Cost: one (forward + backward) of a circuit per step, about 4 of the
plain model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...artefact import read_artefact, write_artefact
from ...errors import InputError
from ...execute.memory import MemoryBudget, items_that_fit, parse_budget
from ...execute.progress import Progress
from ...files import reading
from ...models.anatomy import device_of, read_anatomy
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import build_provenance, hash_json, hash_tensors
from ...shapes import EdgeMask, EdgeMatrix
from ...statistics import kl_nats
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from ..graph.ablated import find_ablation
from ..graph.circuit import Circuit
from ..graph.run import as_circuit
from ..graph.select import select_top
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from ..scoring.scores import EdgeScores

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch of the hard-concrete distribution, as in Louizos et al."""


@dataclass(eq=False)
class _Training:
    """Everything that a run needs to go on: gates, multipliers, their Adam moments, and how many steps are done."""

    gates: Tensor
    multipliers: Tensor
    moments: list[Tensor]
    step: int = 0


def pairs_within(model: TransformerBridge, task: Task, memory_budget: MemoryBudget) -> int:
    """Pairs of a step that fit a budget, at least one: what all writers wrote and its gradient, what every reader reads
    (with its norm), and what the pass itself keeps.
    """
    anatomy, space = read_anatomy(model), edge_space(model, task)
    n_pos = task.pairs.clean_tokens.shape[1]
    edges = (2 * space.n_writers + 3 * space.n_readers) * n_pos * anatomy.d_model
    graph = anatomy.n_layers * n_pos * (40 * anatomy.d_model + 4 * anatomy.n_heads * n_pos)
    one = 4 * (edges + graph + 3 * task.pairs.n_tail * anatomy.d_vocab)
    return items_that_fit(parse_budget(memory_budget), one, len(task))


@borrows
def learn_circuit(
    model: TransformerBridge,
    task: Task,
    n_edges: int,
    *,
    start: EdgeScores | None = None,
    ablation: str = "corrupt",
    n_steps: int = 200,
    batch_size: int = 16,
    rate: float = 0.1,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 20,
    avoid: Sequence[Circuit] = (),
    penalty: float = 10.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Circuit:
    """The circuit of `n_edges` edges whose gates end up largest; `scores` of the circuit are the probabilities P(z >
    0).

    `start`: scores of the same graph from whose ranks the gates begin (else all open). With `checkpoint` (a file), an
    interrupted run goes on where it was saved and gives the circuit of an uninterrupted one; raises `InputError` for a
    checkpoint of another model, task or setting, a size outside the graph, or scores of another graph. With `avoid`,
    `penalty` times the mean P(z > 0) of those circuits' edges is added to the loss: see `testing.rivals`.

    >>> learn_circuit(model, task.train, 80, start=score_edges(model, task.train))
    """
    space = edge_space(model, task)
    identity = identify_model(model)
    if not 0 < n_edges <= space.n_edges:
        raise InputError(f"the size of a circuit is 1 to {space.n_edges} edges for this graph; got {n_edges}")
    if n_steps < 0 or batch_size < 1 or not 0 < rate < 1e6:
        raise InputError(
            f"n_steps is at least 0, batch_size at least 1 and rate above 0; got {n_steps}, {batch_size} and {rate}"
        )
    if not 0 <= penalty < 1e9:
        raise InputError(f"penalty is a finite weight of at least 0; got {penalty}")
    if start is not None:
        if start.space != space:
            raise InputError(
                f"the scores to start from belong to another graph, {start.space}; this model's is {space}"
            )
        start.require_model(identity["weights_sha256"])
    settings = {
        "n_edges": n_edges, "ablation": ablation, "n_steps": n_steps, "batch_size": batch_size, "rate": rate,
        "seed": seed,
        "warm_start": None if start is None else str(start.provenance.get("preset") or start.rules),
        "warm_start_sha256": None if start is None else hash_tensors({"values": start.values}),
    }  # fmt: skip
    shared = torch.zeros_like(space.mask)
    for other in avoid:
        if other.space != space:
            raise InputError(f"the circuits to avoid are of this model's graph {space}; got one of {other.space}")
        shared |= other.mask
    if avoid:
        settings |= {"penalty": penalty, "avoid_sha256": hash_tensors({"mask": shared})}
    key = hash_json({**settings, "weights": identity["weights_sha256"], "task": task.provenance()})
    state = _load(checkpoint, key) or _begin(space, start)
    source = find_ablation(model, task, space, ablation, seed=seed)
    while state.step < n_steps:
        rows = _rows(len(task), batch_size, seed, state.step)
        pairs = task.pairs[rows].to(device_of(model))
        target = (1 - n_edges / space.n_edges) * min(1.0, (state.step + 1) / (0.6 * n_steps))
        _descend(model, space, pairs, source.writes(pairs, rows.start), state, target, rate, seed, shared, penalty)
        if checkpoint is not None and (state.step % checkpoint_every == 0 or state.step == n_steps):
            _save(checkpoint, key, state)
        if progress is not None:
            progress(state.step, n_steps, "learning a mask")
    probability = _open_probability(state.gates) * space.mask
    provenance = build_provenance(method="learned mask", **settings, model=identity, task=task.provenance())
    mask = select_top(space, probability, n_edges)
    return Circuit(space, mask, probability, n_requested=n_edges, provenance=provenance).pruned()


def _begin(space: EdgeSpace, start: EdgeScores | None) -> _Training:
    """Gates all open, or open by rank: the strongest edge at +3, the weakest at -1."""
    gates = torch.full((space.n_writers, space.n_readers), 2.0)
    if start is not None:
        edges = start.values[space.mask].abs()
        ranks = torch.empty(len(edges))
        ranks[edges.argsort(stable=True)] = torch.linspace(-1, 3, len(edges))
        gates[space.mask] = ranks
    moments = [torch.zeros_like(gates), torch.zeros_like(gates), torch.zeros(2), torch.zeros(2)]
    return _Training(gates, torch.zeros(2), moments)


def _rows(n: int, size: int, seed: int, step: int) -> slice:
    """A run of consecutive pairs, which one drawn from (seed, step): the same in a resumed run."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    first = int(torch.randint(max(1, n - size + 1), (), generator=generator))
    return slice(first, min(first + size, n))


def _sample(gates: EdgeMatrix, seed: int, step: int) -> EdgeMatrix:
    """One draw of the hard-concrete gates."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step + 7) % 2**63)
    u = torch.rand(gates.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((u.log() - (1 - u).log() + gates) / BETA)
    return (soft * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def _open_probability(gates: EdgeMatrix) -> EdgeMatrix:
    """P(z > 0)."""
    return torch.sigmoid(gates - BETA * math.log(-GAMMA / ZETA))


def _descend(
    model: TransformerBridge,
    space: EdgeSpace,
    pairs: PromptPairs,
    ablated: Float[Tensor, "..."],
    state: _Training,
    target: float,
    rate: float,
    seed: int,
    shared: EdgeMask,
    penalty: float,
) -> None:
    """One step of Adam: down for the gates, up for the multipliers."""
    with torch.no_grad():
        reference = pairs.final(model(pairs.clean_tokens, logits_to_keep=pairs.n_tail)).log_softmax(dim=-1)
    gates, multipliers = state.gates.clone().requires_grad_(True), state.multipliers.clone().requires_grad_(True)
    with torch.enable_grad():
        z = _sample(gates, seed, state.step).to(ablated)
        with as_circuit(model, space, z, ablated, grad=True):
            logits = model(pairs.clean_tokens, logits_to_keep=pairs.n_tail)
        found = pairs.final(logits).log_softmax(dim=-1)
        distance = kl_nats(reference, found).mean()
        gap = target - (1 - _open_probability(gates)[space.mask].mean())
        loss = distance.cpu().float() + multipliers[0] * gap + multipliers[1] * gap**2
        if bool(shared.any()):
            loss = loss + penalty * _open_probability(gates)[shared].mean()
        downhill, uphill = torch.autograd.grad(loss, [gates, multipliers])
    state.step += 1
    _adam(state.gates, downhill, state.moments[0], state.moments[1], state.step, rate)
    _adam(state.multipliers, -uphill, state.moments[2], state.moments[3], state.step, rate)


def _adam(value: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, rate: float) -> None:
    """Kingma & Ba 2015, with the usual constants, in place: its state is what a checkpoint keeps."""
    first.mul_(0.9).add_(gradient, alpha=0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    value.sub_(rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))


WHAT = "learned mask"
_NAMES = ("gates", "multipliers", "moment0", "moment1", "moment2", "moment3")


def _save(path: str | Path, key: str, state: _Training) -> None:
    values = (state.gates, state.multipliers, *state.moments)
    write_artefact(path, WHAT, {"key": key, "step": state.step}, dict(zip(_NAMES, values, strict=True)))


def _load(path: str | Path | None, key: str) -> _Training | None:
    if path is None or not Path(path).is_file():
        return None
    found = read_artefact(path, WHAT)
    if found.facts.get("key") != key:
        raise InputError(
            f"{path} is not a checkpoint of this run (another model, task, size or setting). Name another file, or "
            "delete it."
        )
    with reading(path, WHAT):
        gates, multipliers, *moments = (found.tensors[name] for name in _NAMES)
        return _Training(
            gates.clone(), multipliers.clone(), [moment.clone() for moment in moments], int(found.facts["step"])
        )
