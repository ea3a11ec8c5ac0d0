"""Is anything missing from a circuit, and is anything in it superfluous? Completeness and minimality (Wang et al. 2022,
sec. 4).

Complete: knocking out the same edges K of the circuit C changes circuit and model alike,
    incompleteness(K) = |m(C - K) - m(M - K)| / |m(M) - m(empty)|,
for random K and for the K that gradient ascent finds to make it large; and the rest of the graph does not do the task,
    faithfulness of M - C near 0.
Minimal: every node v of C matters beside some knock-out K,
    minimality(v) = max over K of |m(C - (K + v)) - m(C - K)| / |m(M) - m(empty)|.
Knocked-out edges carry the ablated value, as edges outside C do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import InputError, check_seed
from ...models.anatomy import device_of
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...models.pulse import beat
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...shapes import EdgeMask
from ...tasks.task import Task
from ..graph.ablated import find_ablation
from ..graph.budget import DEFAULT_BUDGET, parse_bytes
from ..graph.circuit import Circuit
from ..graph.run import as_circuit
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from .curves import faithfulness
from .evaluate import EvaluationSettings, measure_circuits
from .units import SharedRuns

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

GRAPH_COPIES = 20
"""Tensors of the size of every reader's input that the backward pass of a circuit keeps, per pair."""


@dataclass(frozen=True, eq=False)
class Completeness(Result):
    """How differently circuit and model react to knock-outs of parts of the circuit, in shares of m(M) - m(empty).

    `random` are the incompleteness scores of random knock-outs, `learned` that of the knock-out found by gradient
    ascent (a lower bound on the worst), `knocked_out` its edges. `complement` is the faithfulness of everything but the
    circuit.
    """

    circuit: Circuit
    faithfulness: float
    complement: float
    random: tuple[float, ...]
    learned: float
    knocked_out: tuple[str, ...]
    provenance: Provenance

    def _table(self) -> Table:
        """One row per knock-out: its incompleteness score."""
        random = [{"knock_out": f"random {i}", "incompleteness": score} for i, score in enumerate(self.random)]
        return [*random, {"knock_out": "learned", "incompleteness": self.learned}]

    def __repr__(self) -> str:
        mean = sum(self.random) / len(self.random)
        return (
            f"complement faithfulness {self.complement:.3f}; incompleteness {mean:.3f} (mean) and "
            f"{max(self.random):.3f} (worst) over "
            f"{len(self.random)} random knock-outs, {self.learned:.3f} for a learned one of {len(self.knocked_out)} "
            f"of {self.circuit.n_edges} edges"
        )


@dataclass(frozen=True, eq=False)
class Minimality(Result):
    """How much each node of a circuit matters beside some knock-out: shares of m(M) - m(empty), smallest first."""

    circuit: Circuit
    nodes: tuple[str, ...]
    scores: tuple[float, ...]
    provenance: Provenance

    def superfluous(self, threshold: float = 0.01) -> tuple[str, ...]:
        """Nodes whose removal never changed the metric by more than `threshold` of the gap."""
        return tuple(node for node, score in zip(self.nodes, self.scores, strict=True) if score < threshold)

    def _table(self) -> Table:
        """One row per node."""
        return {"node": self.nodes, "minimality": self.scores}

    def __repr__(self) -> str:
        n, left_out = len(self.superfluous()), self.provenance.get("left_out", 0)
        among = f" (the weakest by estimate and some by lot, of {len(self.nodes) + left_out})" if left_out else ""
        least = f"smallest {self.scores[0]:.3f} ({self.nodes[0]})"
        return f"minimality of {len(self.nodes)} nodes{among}: {least}; {n} below 0.01"


@borrows
def measure_completeness(
    model: TransformerBridge,
    task: Task,
    circuit: Circuit,
    *,
    n_knockouts: int = 8,
    n_steps: int = 40,
    ablation: str = "corrupt",
    seed: int = 0,
    memory_budget: int | str = DEFAULT_BUDGET,
) -> Completeness:
    """Completeness of a circuit on a task's pairs.

    Random knock-outs remove a random half of the circuit's nodes or a random fifth to four fifths of its edges, in
    turn. Pairs run in batches that fit `memory_budget`, beside the weights.
    Cost per batch: 1 + 2 `n_knockouts` + 5 forwards, and 2 `n_steps` (forward + backward) on the first batch of 16
    pairs.

    Raises `InputError` for an empty circuit or one of another graph.
    """
    space = _check(model, task, circuit)
    generator = torch.Generator().manual_seed(check_seed(seed))
    knocked = [_random_knockout(circuit, i, generator) for i in range(n_knockouts)]
    budget = parse_bytes(memory_budget)
    learned = learn_knockout(model, task, circuit, n_steps=n_steps, ablation=ablation, seed=seed, memory_budget=budget)
    masks = [space.mask, torch.zeros_like(space.mask), circuit.mask, space.mask & ~circuit.mask]
    for cut in (*knocked, learned):
        masks += [circuit.mask & ~cut, space.mask & ~cut]
    settings = EvaluationSettings(ablation, memory_budget=budget, seed=seed)
    found = measure_circuits(model, task, space, masks, settings).metric
    whole, empty = found[0], found[1]
    gap = abs(float(whole.mean() - empty.mean()))
    inside = faithfulness(found[2], empty, whole)
    differences = (found[4::2].mean(dim=1) - found[5::2].mean(dim=1)).abs() / gap
    names = tuple(space.edge_name(i, j) for i, j in learned.nonzero().tolist())
    return Completeness(
        circuit, inside, faithfulness(found[3], empty, whole), tuple(differences[:-1].tolist()), float(differences[-1]),
        names, _provenance("completeness", model, task, circuit, ablation, seed),
    )  # fmt: skip


def learn_knockout(
    model: TransformerBridge,
    task: Task,
    circuit: Circuit,
    *,
    n_steps: int = 40,
    rate: float = 0.3,
    ablation: str = "corrupt",
    seed: int = 0,
    n_pairs: int = 16,
    memory_budget: int | str = DEFAULT_BUDGET,
) -> EdgeMask:
    """The knock-out K of the circuit's edges that gradient ascent on |m(C - K) - m(M - K)| finds, rounded to edges.

    Of all roundings met on the way the one with the largest difference is kept. Pairs run in pieces whose graphs fit
    `memory_budget`. Cost: 2 (forward + backward) + 2 forwards a step.
    """
    space = circuit.space
    task = task[: min(n_pairs, len(task))]
    ablated = find_ablation(model, task, space, ablation, seed=seed)
    n_pos, like = task.pairs.clean_tokens.shape[1], next(model.parameters())
    per_pair = GRAPH_COPIES * space.n_readers * n_pos * int(model.cfg.d_model) * like.element_size()
    size = task.pairs.whole(parse_bytes(memory_budget) // per_pair)
    pieces = [pairs.to(device_of(model)) for pairs in task.pairs.batches(size)]
    generator = torch.Generator().manual_seed(check_seed(seed))
    member = circuit.mask.to(like)
    logit = torch.zeros_like(member).add_(0.1 * torch.randn(member.shape, generator=generator).to(member) - 1.0)
    logit.requires_grad_(True)
    optimiser = torch.optim.Adam([logit], lr=rate)
    best, best_gap, shared = torch.zeros_like(circuit.mask), -1.0, SharedRuns()
    for _ in range(n_steps):
        difference, gradient = 0.0, torch.zeros_like(logit)
        for i, pairs in enumerate(pieces):
            source = ablated.writes(pairs, i * size)
            for sign, base in ((1, member), (-1, space.mask.to(member))):
                with torch.enable_grad():
                    with as_circuit(model, space, base - member * torch.sigmoid(logit), source, grad=True):
                        tail = {"logits_to_keep": pairs.n_tail} if task.metric.reads_final else {}
                        logits = model(pairs.clean_tokens, **tail)
                    share = sign * task.measure(logits, pairs).sum() / len(task)
                    gradient += torch.autograd.grad(share, logit)[0]
                difference += float(share.detach())
        gradient = gradient if difference >= 0 else -gradient
        logit.grad = -gradient
        hard = (circuit.mask & (logit.detach() > 0).cpu()).clone()
        found = measure_circuits(
            model, task, space, [circuit.mask & ~hard, space.mask & ~hard], EvaluationSettings(ablation), shared
        ).metric
        gap = abs(float(found[0].mean() - found[1].mean()))
        if gap > best_gap:
            best, best_gap = hard, gap
        optimiser.step()
    return best


@borrows
def measure_minimality(
    model: TransformerBridge,
    task: Task,
    circuit: Circuit,
    *,
    n_knockouts: int = 4,
    ablation: str = "corrupt",
    seed: int = 0,
    memory_budget: int | str = DEFAULT_BUDGET,
    screen: int | None = None,
) -> Minimality:
    """Minimality of every node of the circuit: beside no knock-out and beside `n_knockouts` random ones.

    With `screen`, of that many nodes at most: three quarters are those whose edges have the smallest scores, where what
    is superfluous is likely to be, and a quarter is drawn from the others as a check of that likelihood. Cost per
    batch: 2 + (1 + `n_knockouts`) (1 + nodes) forwards. Raises `InputError` as `measure_completeness`, and for a
    screen of a circuit without scores.
    """
    space = _check(model, task, circuit)
    generator = torch.Generator().manual_seed(check_seed(seed))
    everything = [node for node in circuit.nodes if node in space.writers[space.n_inputs :]]
    nodes = everything if screen is None else _suspects(circuit, everything, screen, generator)
    bases = [circuit.mask, *(circuit.mask & ~_random_knockout(circuit, i, generator) for i in range(n_knockouts))]
    masks = [space.mask, torch.zeros_like(space.mask)]
    for base in bases:
        masks += [base, *(without_node(space, base, node) for node in nodes)]
    settings = EvaluationSettings(ablation, memory_budget=parse_bytes(memory_budget), seed=seed)
    found = measure_circuits(model, task, space, masks, settings).metric.mean(dim=1)
    faithfulness(found[:1], found[1:2], found[:1])  # refuses when undefined
    rows = found[2:].view(len(bases), 1 + len(nodes))
    scores = ((rows[:, 1:] - rows[:, :1]).abs() / (found[0] - found[1]).abs()).amax(dim=0)
    order = scores.argsort(stable=True).tolist()
    return Minimality(
        circuit, tuple(nodes[i] for i in order), tuple(float(scores[i]) for i in order),
        _provenance("minimality", model, task, circuit, ablation, seed) | (
            {"left_out": len(everything) - len(nodes)} if len(nodes) < len(everything) else {}
        ),
    )  # fmt: skip


def _suspects(circuit: Circuit, nodes: list[str], n: int, generator: torch.Generator) -> list[str]:
    """`n` of the nodes: those with the weakest edges, and one in four by lot among the others."""
    if n < 4 or circuit.scores is None:
        raise InputError(
            f"a screen takes at least 4 nodes of a circuit with scores; got {n}"
            + (", and this circuit has none" if circuit.scores is None else "")
        )
    if len(nodes) <= n:
        return nodes
    space = circuit.space
    sizes = (circuit.scores.abs() * circuit.mask).double()
    strength = torch.stack([sizes[space.writers.index(node)].sum() for node in nodes])
    order = strength.argsort(stable=True).tolist()
    weakest, others = order[: n - n // 4], order[n - n // 4 :]
    drawn = [others[i] for i in torch.randperm(len(others), generator=generator)[: n // 4].tolist()]
    return [nodes[i] for i in sorted([*weakest, *drawn])]


def without_node(space: EdgeSpace, mask: EdgeMask, node: str) -> EdgeMask:
    """The mask without the node's outgoing edges, and without those into readers that it alone uses."""
    beat()
    row = space.writers.index(node)
    result = mask.clone()
    result[row] = False
    result[:, space.feeds[row] & (space.feeds.sum(dim=0) == 1)] = False
    return result


def _random_knockout(circuit: Circuit, turn: int, generator: torch.Generator) -> EdgeMask:
    """A random half of the nodes (even turns) or a random share of the edges (odd ones)."""
    space = circuit.space
    if turn % 2 == 0:
        nodes = [node for node in circuit.nodes if node in space.writers[space.n_inputs :]]
        kept = circuit.mask
        for i in torch.randperm(len(nodes), generator=generator)[: max(1, len(nodes) // 2)].tolist():
            kept = without_node(space, kept, nodes[i])
        return circuit.mask & ~kept
    share = 0.2 + 0.6 * float(torch.rand((), generator=generator))
    return circuit.mask & (torch.rand(circuit.mask.shape, generator=generator) < share)


def _check(model: TransformerBridge, task: Task, circuit: Circuit) -> EdgeSpace:
    space = edge_space(model, task, **circuit.space.splits)
    if circuit.space != space or not circuit.n_edges:
        raise InputError(f"a circuit of this model's graph {space} with at least one edge is needed; got {circuit}")
    return space


def _provenance(
    what: str, model: TransformerBridge, task: Task, circuit: Circuit, ablation: str, seed: int
) -> Provenance:
    return build_provenance(
        method=what, ablation=ablation, seed=seed, model=identify_model(model), task=task.provenance(),
        circuit=circuit.provenance,
    )  # fmt: skip
