"""What work on a large model would take, on paper: units, seconds, bytes, and how many workers pay. Nothing is loaded.

Counted, per forward F of all pairs (2 x parameters x tokens operations; blocks alone, the unembedding at one column):

    exact effects        cells (3 kinds of the stream by layer and position) x (L - l) / L x 1 / 2 F
    screened             6 % of these, and 4 F
    edges (EAP-IG, 5)    17 F, and writers x readers products at every position
    circuits             52 circuits x 1.5 F
    every edge           half of the edges' readers' layers: (L - l) / L F per edge

Units are cut as the real functions cut them (`patching.memory.fit`, `circuits.graph.budget.fit`), for the memory that
the weights leave. Seconds are operations by `flops` per second, which layers that take turns on several GPUs do not
raise. Workers, their start and the driver's overhead are played through by `execute.simulate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from ..circuits.graph.budget import fit as fit_edges
from ..circuits.graph.space import EdgeSpace
from ..circuits.testing.units import FEWEST, UNITS
from ..errors import InputError, UnknownNameError
from ..execute.memory import cut, parse_budget
from ..execute.simulate import Simulation, paying_workers, simulate
from ..models.anatomy import ModelAnatomy
from ..patching.memory import fit as fit_sweep
from ..result import Result, Table
from ..runs.room import Sizes
from .plan import duration

KINDS = ("resid_pre", "attn_out", "mlp_out")
CIRCUITS, WRITES = 52, 1.5
"""Circuits of a curve with three random ones per size, and what one costs in forwards."""
SCREENED, STEPS = 0.06, 5
FORKED, RAY = 3e-4, 1.15e-3
"""Seconds of the driver per unit, measured on two busy cores."""
START, PER_BYTE = 20.0, 2.3e-9
"""Seconds until a Ray worker is there, and per byte of weights that it reads and hashes."""
MOST_UNITS = 20_000
"""More are played through in groups of equal numbers."""


@dataclass(frozen=True)
class ModelShape:
    """A model by its sizes. `tied`: the unembedding is the embedding."""

    name: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_mlp: int
    d_vocab: int
    gated: bool = True
    tied: bool = False

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def blocks(self) -> int:
        """Parameters of all blocks, norms left out."""
        attention = self.d_model * self.d_head * (2 * self.n_heads + 2 * self.n_kv_heads)
        return self.n_layers * (attention + self.d_model * self.d_mlp * (3 if self.gated else 2))

    @property
    def parameters(self) -> int:
        """All weights, norms and positions left out."""
        return self.blocks + self.d_vocab * self.d_model * (1 if self.tied else 2)

    @property
    def anatomy(self) -> ModelAnatomy:
        """What the counts of memory ask for."""
        return ModelAnatomy(
            "LlamaForCausalLM", self.n_layers, self.n_heads, self.n_kv_heads, self.d_model, self.d_head, self.d_vocab,
            131_072, parallel=False, gated=self.gated, n_experts=None, norm_kind="rms", norm_place="pre",
            qk_norm=False, open_attention=True, attn_soft_cap=None, final_soft_cap=None,
        )  # fmt: skip


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("smollm2-135m", 30, 9, 3, 576, 1536, 49_152, tied=True),
        ModelShape("llama-1b", 16, 32, 8, 2048, 8192, 128_256, tied=True),
        ModelShape("llama-8b", 32, 32, 8, 4096, 14_336, 128_256),
        ModelShape("llama-70b", 80, 64, 8, 8192, 28_672, 128_256),
    )
}


@dataclass(frozen=True)
class Machine:
    """Of one worker: bytes of a GPU, operations per second that it does (40 % of an H100), bytes per number."""

    memory: int = 80 * 10**9
    flops: float = 4e14
    item: int = 2
    start: float | None = None
    overhead: float = RAY

    def gpus(self, shape: ModelShape, beside: int) -> int:
        """How many GPUs one worker takes for the weights and `beside` bytes."""
        return max(1, ceil((self.item * shape.parameters + beside) / self.memory))

    def seconds_to_start(self, shape: ModelShape) -> float:
        """Until a worker has loaded and hashed its weights."""
        return START + PER_BYTE * self.item * shape.parameters if self.start is None else self.start


@dataclass(frozen=True)
class ScaleRow:
    """One kind of work. `bytes`: of one worker beside the weights; `paying`: how many workers pay."""

    work: str
    units: int
    one: float
    all: float
    speed_up: float
    busy: float
    paying: int
    bytes: int
    gpus: int


@dataclass(frozen=True, eq=False)
class ScalePlan(Result, what="plan for many workers"):
    """A row per kind of work. `one` and `all`: seconds on one worker that is ready, and on `n_workers` from nothing."""

    rows: tuple[ScaleRow, ...]
    shape: ModelShape
    machine: Machine
    n_workers: int
    n_pairs: int
    n_pos: int
    n_edges: int

    def _table(self) -> Table:
        """One row per kind of work."""
        return [{**vars(row)} for row in self.rows]

    def __repr__(self) -> str:
        shape, machine = self.shape, self.machine
        weights, start = machine.item * shape.parameters, machine.seconds_to_start(shape)
        columns = (
            f"{'work':<22}{'units':>7}{'one worker':>12}{f'{self.n_workers} workers':>12}{'speed-up':>9}{'busy':>6}"
            f"{'beside weights':>15}{'GPUs':>5}  workers that pay"
        )
        head = (
            f"{shape.name}: {shape.parameters / 1e9:.2f}e9 parameters, {weights / 1e9:.1f} GB of weights, "
            f"{self.n_edges:,} edges; {self.n_pairs} pairs of {self.n_pos} tokens"
        )
        workers = (
            f"{self.n_workers} workers, GPUs of {machine.memory / 1e9:.0f} GB, {machine.flops / 1e12:.3g} TFLOP/s "
            f"each; a worker starts in {duration(start)}"
        )
        lines = [head, workers, columns]
        for row in self.rows:
            says = str(row.paying) if row.paying > 1 else "1: more do not pay"
            lines.append(
                f"{row.work:<22}{row.units:>7,}{duration(row.one):>12}{duration(row.all):>12}{row.speed_up:>8.1f}x"
                f"{row.busy:>6.0%}{row.bytes / 1e9:>12.1f} GB{row.gpus:>5}  {says}"
            )
        lines.append("Computed, not measured. GPUs: of one worker, whose layers take turns on them.")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Cut:
    """Seconds of every unit, bytes of a worker beside the weights, seconds of what each worker does for itself."""

    units: Sequence[float]
    bytes: int
    shared: float = 0.0


def find_shape(name: str) -> ModelShape:
    """The shape of that name; raises `UnknownNameError`."""
    if name not in SHAPES:
        raise UnknownNameError("model shape", name, SHAPES)
    return SHAPES[name]


def plan_workers(
    shape: ModelShape, *, n_workers: int = 1, n_pairs: int = 64, n_pos: int = 24, machine: Machine | None = None
) -> ScalePlan:
    """What each kind of work would take on `n_workers` workers. Cost: no forward; seconds of arithmetic at most.

    Raises `InputError` for counts below one, and a GPU that does not hold a pair beside its part of the weights.

    >>> print(plan_workers(find_shape("llama-8b"), n_workers=64, n_pos=256))
    """
    machine = machine or Machine()
    if min(n_workers, n_pairs, n_pos) < 1:
        raise InputError(f"workers, pairs and tokens are counts from 1; got {n_workers}, {n_pairs} and {n_pos}")
    paper = _Paper(shape, machine, n_pairs, n_pos)
    works: dict[str, Callable[[], _Cut]] = {
        "exact effects": paper.exact,
        "screened to 6 %": paper.screened,
        "edges, EAP-IG 5": paper.edges,
        "curve of 52 circuits": paper.circuits,
        "every edge exactly": paper.every_edge,
    }
    start = machine.seconds_to_start(shape)
    rows = []
    for name, how in works.items():
        found = how()
        played = _play(found, n_workers, start, machine.overhead)
        one = sum(found.units) + found.shared
        rows.append(
            ScaleRow(
                name,
                len(found.units),
                one,
                played.seconds,
                one / played.seconds,
                min(1.0, one / played.seconds / n_workers),
                paying_workers(found.units, start, 10**6),
                found.bytes,
                machine.gpus(shape, found.bytes),
            )
        )
    return ScalePlan(tuple(rows), shape, machine, n_workers, n_pairs, n_pos, EdgeSpace.of(shape.anatomy).n_edges)


def _play(found: _Cut, n_workers: int, start: float, overhead: float) -> Simulation:
    size = ceil(len(found.units) / MOST_UNITS)
    units = [sum(found.units[rows]) for rows in cut(len(found.units), size)]
    return simulate(units, n_workers, start=start, overhead=size * overhead, shared=found.shared)


@dataclass(frozen=True)
class _Paper:
    shape: ModelShape
    machine: Machine
    n_pairs: int
    n_pos: int

    def forward(self, n_pairs: float, n_pos: float | None = None) -> float:
        """Seconds of a forward; the unembedding at one column."""
        s, tokens = self.shape, n_pairs * (n_pos or self.n_pos)
        attention = 4 * s.n_layers * tokens * self.n_pos * s.d_model
        return (2 * s.blocks * tokens + attention + 2 * n_pairs * s.d_vocab * s.d_model) / self.machine.flops

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.shape.anatomy, self.shape.d_mlp, self.n_pos, 1, self.machine.item)

    @property
    def room(self) -> int:
        """Bytes beside the weights, on as many GPUs as hold these and one pair."""
        least = self.sizes.recorded(KINDS) + self.sizes.run(self.n_pos, 1)
        gpus = self.machine.gpus(self.shape, least)
        return gpus * self.machine.memory - self.machine.item * self.shape.parameters

    def exact(self) -> _Cut:
        """Every cell: a unit is a chunk of patched runs that leave at one layer."""
        sizes, shape = self.sizes, self.shape
        block, chunk = fit_sweep(sizes, KINDS, self.n_pairs, self.room, 1, "cuda")
        units: list[float] = []
        for rows in cut(self.n_pairs, block):
            n = rows.stop - rows.start
            per_chunk = max(1, chunk // (n * sizes.run(self.n_pos, 1)))
            one = self.forward(n, self.n_pos / 2)
            for layer in range(shape.n_layers):
                share = (shape.n_layers - layer) / shape.n_layers
                pieces = cut(len(KINDS) * self.n_pos, per_chunk)
                units += [(piece.stop - piece.start) * share * one for piece in pieces]
        recorded = block * sizes.recorded(KINDS)
        return _Cut(units, int(recorded + min(chunk, self.room - recorded)), 2 * self.forward(self.n_pairs))

    def screened(self) -> _Cut:
        """The promising cells alone, after an estimate of one backward pass."""
        found = self.exact()
        return _Cut(
            [SCREENED * unit for unit in found.units], found.bytes, found.shared + 4 * self.forward(self.n_pairs)
        )

    def edges(self) -> _Cut:
        """A unit is a batch of pairs."""
        space, item = EdgeSpace.of(self.shape.anatomy), self.machine.item
        size = fit_edges(self.shape.anatomy, space, self.n_pos, 1, self.room, n_bytes=item, averaged=True)
        units = [
            self._edges(rows.stop - rows.start, space) for rows in cut(self.n_pairs, min(size.n_pairs, self.n_pairs))
        ]
        return _Cut(units, min(self.room, int(self.room * min(1.0, self.n_pairs / size.n_pairs))))

    def _edges(self, n: int, space: EdgeSpace) -> float:
        products = 2 * n * self.n_pos * self.shape.d_model * space.n_writers * space.n_readers
        return (2 + 3 * STEPS) * self.forward(n) + products / self.machine.flops

    def circuits(self) -> _Cut:
        """A unit is some circuits on a batch of pairs; the ablated run is shared by a batch's."""
        space, s = EdgeSpace.of(self.shape.anatomy), self.shape
        per_pair = 4 * self.n_pos * s.d_model * (2 * space.n_writers + 2 * space.readers_per_layer)
        batches = cut(self.n_pairs, max(1, min(self.n_pairs, self.room // per_pair)))
        group = max(FEWEST, -(-CIRCUITS * len(batches) // UNITS))
        units = [
            WRITES * (part.stop - part.start) * self.forward(rows.stop - rows.start)
            for rows in batches
            for part in cut(CIRCUITS, group)
        ]
        return _Cut(units, batches[0].stop * per_pair, 2 * self.forward(self.n_pairs))

    def every_edge(self) -> _Cut:
        """A unit is a reader; each of the edges into it costs the blocks from its layer on."""
        return _Cut(
            list(self._readers()), int(self.n_pairs * self.sizes.recorded(KINDS)), 2 * self.forward(self.n_pairs)
        )

    def _readers(self) -> Iterator[float]:
        space, one = EdgeSpace.of(self.shape.anatomy), self.forward(self.n_pairs)
        for column in range(space.n_readers):
            layer = min(column // space.readers_per_layer, space.n_layers - 1)
            yield int(space.n_seen[column]) * one * (space.n_layers - layer) / space.n_layers


def parse_machine(memory: str, flops: float, start: float | None, *, forked: bool = False) -> Machine:
    """A machine from what is said on the command line; raises `InputError` for sizes that are none."""
    if not flops > 0 or (start is not None and not start >= 0):
        raise InputError(f"operations per second are above 0, seconds to start 0 or more; got {flops} and {start}")
    return Machine(parse_budget(memory, "gpu-memory"), flops, start=start, overhead=FORKED if forked else RAY)
