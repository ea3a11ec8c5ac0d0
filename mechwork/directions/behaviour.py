"""Behaviours along a way through activation space: does steering pass through what the model says of its own accord?

A behaviour is the distribution over the labels' tokens, and one outcome for all other tokens, where a prompt is read.
Between behaviours the metric is Hellinger's, H(p, q) = norm(sqrt p - sqrt q) / sqrt 2, in [0, 1].

    behaviour manifold   B_k: mean of sqrt p over fitted prompts of class k, made a distribution. For a graph the
                         shortest ways between neighbours' B_k (arcs of a sphere: Fisher-Rao geodesics); for a curve
                         the spline through the B_k, open or closed as the curve is, made distributions too
    off                  distance of a steered prompt's behaviour from the manifold, mean over held-out prompts of the
                         class where the way starts and over its steps; `natural`: the same of held-out prompts alone
    energy               n_steps * sum_i H(q_i, q_i+1)^2 of the mean behaviour: least for a way without detours or jumps
    visited              share of the classes between start and end that are the most probable label at some step
    reached              probability of the end's token at the end

Ways from a to b, all added to the state at the marked position as gamma(s) - gamma(0):

    shape      along the curve or the graph's edges
    straight   the line to the same end
    detour i   to the same end, as long as `shape`, with what is not straight turned into random directions
    random i   as long as `shape` and bent alike, turned into random directions as a whole: it ends elsewhere

Source: manifold steering, with a behaviour manifold beside the one of activations. Cost: 1 forward of all prompts, and
(2 + 2 n_random) n_steps of one class's held-out prompts per way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, check_whole
from ..execute.memory import cut
from ..interventions import Curve, Write, intervene
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows, run_tail
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table, table_rows
from ..runs.room import rows_that_fit
from ..shapes import PositionMask, Tokens
from ..sites import Site
from .graph_manifold import GraphFit, class_means, neighbour_ratio, shortest_way
from .labelled import Labelled
from .manifold import CurveFit

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


PIECES = 32
"""Arcs between two knots of a curve of behaviours."""


@dataclass(frozen=True)
class BehaviourRow:
    """One way from one class to another; `length` in activation space (see the module)."""

    start: str
    end: str
    way: str
    length: float
    off: float
    worst: float
    energy: float
    visited: float
    reached: float
    n: int


@dataclass(frozen=True, eq=False)
class BehaviourStudy(Result, what="behaviours along a way"):
    """`behaviours` ``[class outcome]``: mean distribution per class, the last outcome all other tokens; `natural`: how
    far held-out prompts are off the manifold; `neighbours`, `by_lot`, `p`: whether behaviours lie as the labels say.
    """

    rows: tuple[BehaviourRow, ...]
    behaviours: Float[Tensor, "n_class outcome"]
    classes: tuple[str, ...]
    site: Site
    natural: float
    neighbours: float
    by_lot: float
    p: float
    provenance: Provenance

    def mean(self, way: str, measure: str = "off") -> float:
        """A measure's mean over all starts and ends; of ``detour`` and ``random``, over their draws too."""
        found = [float(getattr(row, measure)) for row in self.rows if row.way.split()[0] == way]
        if not found:
            raise InputError(f"ways are {', '.join(dict.fromkeys(row.way for row in self.rows))}; got {way!r}")
        return sum(found) / len(found)

    def _table(self) -> Table:
        """One row per start, end and way."""
        return table_rows(self.rows)

    def __str__(self) -> str:
        names = ("length", "off", "worst", "energy", "visited", "reached")
        n = len({(row.start, row.end) for row in self.rows})
        ways = dict.fromkeys(row.way.split()[0] for row in self.rows)
        head = (
            f"behaviours of {len(self.classes)} classes, steered at {self.site}; unsteered held-out prompts are "
            f"{self.natural:.3f} off the manifold. Neighbours' behaviours are {self.neighbours:.2f} times as far apart "
            f"as other pairs' (by lot {self.by_lot:.2f}, p {self.p:.3f})"
        )
        lines = [f"{way:<18}" + "".join(f"{self.mean(way, name):9.3f}" for name in names) for way in ways]
        return "\n".join([head, f"{f'means over {n} ways':<18}" + "".join(f"{name:>9}" for name in names), *lines])


@borrows
def study_behaviour(
    model: TransformerBridge,
    data: Labelled,
    shape: CurveFit | GraphFit,
    answers: Sequence[int] | Sequence[Sequence[int]],
    ways: Sequence[tuple[str, str]],
    *,
    read: PositionMask | None = None,
    n_steps: int = 9,
    n_random: int = 2,
    seed: int = 0,
) -> BehaviourStudy:
    """Steer prompts of one class to another along `shape`, and look at what the model says on the way.

    `answers`: the token (or tokens, whose probabilities are added) of every class, in the order of `data.classes`;
    `ways`: (start, end) by name. A curve has been fitted to the classes' numbers (`data.targets`). Prompts are written
    at one position each, that of `data.where`; the next token is read there too, or at the positions `read`.

    Raises:
        InputError: labels that are numbers, no answers of its own for a class, a shape of other classes, prompts that
            are read or written at several positions or read before they are written, no ways or one from a class to
            itself, a class without fitted or held-out prompts, fewer than three steps or no random way.
        UnknownNameError: a way to or from a class that is not there.

    >>> ring = fit_curve(model, data.tokens, data.where, data.targets.double(), Site("resid_post", 12), period=7)
    >>> print(study_behaviour(model, data, ring, day_tokens, [("Monday", "Thursday")]))
    """
    tokens = [[int(t) for t in one] if isinstance(one, Sequence) else [int(one)] for one in answers]
    read = data.where if read is None else read
    pairs = _check(model, data, shape, tokens, ways, read, n_steps, n_random)
    fitted, tested = data.split_rows(seed=seed)
    p = _behaviours(model, data.tokens, read, tokens)
    roots = p.sqrt()
    nodes = class_means(roots[fitted], data.targets[fitted], data.classes)
    nodes = nodes / nodes.norm(dim=1, keepdim=True)
    starts, ends = behaviour_manifold(nodes, shape)
    natural = float(hellinger_to_arcs(roots[tested], starts, ends).mean())
    near, lot, chance = neighbour_ratio(nodes, shape.edges, seed)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for (a, b), (start, end) in zip(pairs, ways, strict=True):
        own = tested[data.targets[tested] == a]
        if not len(own):
            raise InputError(f"a way starts at held-out prompts of its class; {start!r} has none. Give more prompts")
        path = shape.path(start, end, n_steps) if isinstance(shape, GraphFit) else shape.path(a, b, n_steps)
        between = shortest_way(nodes, shape.edges, a, b)[1:-1]
        for name, shifts in make_ways(path.double(), n_random, generator).items():
            q = _steered(model, data, read, own, shape.site, shifts, tokens)
            off = hellinger_to_arcs(q.sqrt(), starts, ends)
            mean = q.mean(dim=1).sqrt()
            said = set(q.mean(dim=1)[:, :-1].argmax(dim=1).tolist())
            visited = sum(k in said for k in between) / len(between) if between else float("nan")
            energy = float((mean.diff(dim=0).pow(2).sum(dim=1) / 2).sum() * (n_steps - 1))
            rows.append(
                BehaviourRow(
                    start, end, name, float(shifts.diff(dim=0).norm(dim=1).sum()), float(off.mean()),
                    float(off.mean(dim=1).max()), energy, visited, float(q[-1, :, b].mean()), len(own),
                )
            )  # fmt: skip
    facts = build_provenance(
        method="behaviours along a way", model=identify_model(model), seed=seed, n_steps=n_steps, n_random=n_random,
        examples={"name": data.name, "sha256": data.sha256()}, answers=tokens,
    )  # fmt: skip
    behaviours = class_means(p[fitted], data.targets[fitted], data.classes)
    return BehaviourStudy(tuple(rows), behaviours, data.classes, shape.site, natural, near, lot, chance, facts)


def _check(
    model: TransformerBridge, data: Labelled, shape: CurveFit | GraphFit, answers: list[list[int]],
    ways: Sequence[tuple[str, str]], read: PositionMask, n_steps: int, n_random: int,
) -> list[tuple[int, int]]:  # fmt: skip
    n = len(data.classes)
    if not n:
        raise InputError("behaviours are of classes with a token each; these labels are numbers, not classes")
    every = [t for one in answers for t in one]
    unknown = not all(0 <= t < int(model.cfg.d_vocab) for t in every)
    if len(answers) != n or not all(answers) or len(set(every)) != len(every) or unknown:
        raise InputError(
            f"every one of {n} classes has tokens of its own, in the order of the classes; got {answers} (ids of this "
            f"model are 0 to {int(model.cfg.d_vocab) - 1})"
        )
    nodes = len(shape.classes) if isinstance(shape, GraphFit) else len(shape.curve.knots)
    named = shape.classes == data.classes if isinstance(shape, GraphFit) else nodes == n
    if not named:
        raise InputError(f"the shape is fitted to the same classes; it has {nodes} nodes, the data {n} classes")
    if read.shape != data.where.shape or bool((data.where.sum(dim=1) != 1).any() | (read.sum(dim=1) != 1).any()):
        raise InputError("prompts are written at one position each and read at one; got several, none or another shape")
    if bool((read.int().argmax(dim=1) < data.where.int().argmax(dim=1)).any()):
        raise InputError("prompts are read at the position that is written or after it; got one that is read before")
    if check_whole("n_steps", n_steps) < 3 or check_whole("n_random", n_random) < 1:
        raise InputError(f"a way has three steps or more, and a random one beside; got {n_steps} and {n_random}")
    check_ready(model).check_writable(shape.site)
    pairs = [(data.number_of(start), data.number_of(end)) for start, end in ways]
    if not pairs or any(a == b for a, b in pairs):
        raise InputError(f"ways lead from one class to another; got {list(ways)}")
    return pairs


def behaviour_manifold(
    nodes: Float[Tensor, "n_class k"], shape: CurveFit | GraphFit
) -> tuple[Float[Tensor, "edge k"], Float[Tensor, "edge k"]]:
    """Starts and ends of the arcs that it is made of, unit vectors with entries of at least 0."""
    if isinstance(shape, GraphFit):
        return nodes[[edge[0] for edge in shape.edges]], nodes[[edge[1] for edge in shape.edges]]
    knots, period = shape.curve.knots.double(), shape.curve.period
    basis = torch.eye(nodes.shape[1], dtype=nodes.dtype)
    spline = Curve(knots, nodes, basis, torch.zeros_like(nodes[0]), period)
    last = knots[-1:] if period is None else knots[:1] + period
    ends = torch.cat([knots, last]) if period is not None else knots
    t = torch.cat([torch.linspace(float(a), float(b), PIECES + 1, dtype=knots.dtype)[:-1] for a, b in pairwise(ends)])
    places = spline.at(torch.cat([t, last])).clamp(min=0)
    places = places / places.norm(dim=1, keepdim=True)
    return places[:-1], places[1:]


def hellinger_to_arcs(
    x: Float[Tensor, "*batch k"], starts: Float[Tensor, "edge k"], ends: Float[Tensor, "edge k"]
) -> Float[Tensor, "*batch"]:
    """Distance of unit vectors from the nearest of some arcs between unit vectors (less than half a circle each)."""
    close = (starts * ends).sum(dim=1)
    aside = ends - close[:, None] * starts
    aside = aside / aside.norm(dim=1, keepdim=True).clamp(min=1e-30)
    along, across = x @ starts.T, x @ aside.T
    angle = torch.atan2(across, along)
    inside = (angle >= 0) & (angle <= close.clamp(-1, 1).acos())
    cosine = torch.where(inside, (along.pow(2) + across.pow(2)).sqrt(), torch.maximum(along, x @ ends.T))
    return (1 - cosine.amax(dim=-1)).clamp(min=0).sqrt()


def make_ways(
    path: Float[Tensor, "step d"], n_random: int, generator: torch.Generator
) -> dict[str, Float[Tensor, "step d"]]:
    """Shifts from the start of a path, by name: itself, the straight line, detours and random paths as long."""
    shifts = path - path[0]
    along = shifts[-1] / shifts[-1].norm()
    level = shifts @ along
    aside = shifts - level[:, None] * along
    steps = torch.linspace(0, 1, len(path), dtype=shifts.dtype)
    found = {"shape": shifts, "straight": steps[:, None] * shifts[-1]}
    for i in range(n_random):
        found[f"detour {i}"] = level[:, None] * along + _turned(aside, along[None], generator)
        found[f"random {i}"] = _turned(shifts, along[None][:0], generator)
    return found


def _turned(
    rows: Float[Tensor, "step d"], across: Float[Tensor, "k d"], generator: torch.Generator
) -> Float[Tensor, "step d"]:
    """The rows with their span turned into a random one, orthogonal to `across`: all lengths and angles stay."""
    found = torch.linalg.svd(rows, full_matrices=False)
    rank = int((found.S / found.S.amax().clamp(min=1e-30) > 1e-9).sum())
    draw = torch.randn(rank, rows.shape[1], generator=generator, dtype=rows.dtype)
    draw = draw - draw @ across.T @ across
    basis = torch.linalg.qr(draw.T).Q.T
    return rows @ found.Vh[:rank].T @ basis


@torch.no_grad()
def _behaviours(
    model: TransformerBridge, tokens: Tokens, read: PositionMask, answers: list[list[int]],
    writes: Callable[[slice], list[Write]] | None = None,
) -> Float[Tensor, "batch outcome"]:  # fmt: skip
    """Distributions over the answers and everything else, where each prompt is read, in float64, under some writes."""
    ends = read.int().argmax(dim=1) - tokens.shape[1]
    found = []
    for block in cut(len(tokens), rows_that_fit(model, tokens)):
        with intervene(model, [] if writes is None else writes(block)):
            logits = run_tail(model, tokens[block].to(device_of(model)), -int(ends.min()))
        rows = torch.arange(len(logits), device=logits.device)
        whole = logits[rows, ends[block].to(logits.device)].double().softmax(dim=-1).cpu()
        p = torch.stack([whole[:, one].sum(dim=1) for one in answers], dim=1)
        found.append(torch.cat([p, (1 - p.sum(dim=1, keepdim=True)).clamp(min=0)], dim=1))
    return torch.cat(found)


def _steered(
    model: TransformerBridge, data: Labelled, read: PositionMask, rows: Tensor, site: Site,
    shifts: Float[Tensor, "step d"], answers: list[list[int]],
) -> Float[Tensor, "step own outcome"]:  # fmt: skip
    n, k = len(shifts), len(rows)
    tokens, where, ends = (part[rows].repeat(n, 1) for part in (data.tokens, data.where, read))
    each = shifts.repeat_interleave(k, dim=0)

    def writes(block: slice) -> list[Write]:
        def move(activation: Tensor) -> Tensor:
            return activation + where[block].to(activation)[..., None] * each[block].to(activation)[:, None]

        return [Write(site, move)]

    return _behaviours(model, tokens, ends, answers, writes).reshape(n, k, -1)
