"""A plan: which stages run, on how many pairs, and what each costs in forwards, seconds and bytes. Made before any.

Depth: the least plan (`LEAST`) always; then stages are added in the order `MORE`, `MOST` while the sum stays within the
budget. Where the short plan does not fit, the number of pairs is halved first, down to `FEWEST` per half.

Seconds = forwards x seconds of one forward. A budget that the user gives is compared with the timed forward of this
machine. Without one the depth is chosen by counted work, `DEFAULT` seconds at a nominal `SPEED`, so that the same
command gives the same bytes on any machine; and where a forward is not short (`SHORT`), of `FORWARDS` at most.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from ..models.anatomy import device_of
from ..result import Result, Table
from ..tasks.task import Task
from .settings import Mode, Settings
from .shape import Shape
from .size import N_CHOOSE
from .stages import CARD, GLANCE, LEAST, MORE, MOST, STAGES

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT, FORWARDS, SHORT = 280.0, 145.0, 0.75
SPEED = 6e10
"""Multiplications and additions per second of a small machine, for plans without a budget."""
FEWEST = 8


@dataclass(frozen=True)
class Step:
    """A stage of a plan with its predicted cost."""

    stage: str
    forwards: float
    seconds: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Plan(Result, what="discovery plan"):
    """Stages in order. `n_train` pairs score edges, `n_size` others help to choose the circuit's size, `n_test`
    test it; `forward` is the seconds of one forward of the first.
    """

    rows: tuple[Step, ...]
    n_train: int
    n_test: int
    forward: float
    n_size: int = 0

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(row.stage for row in self.rows)

    @property
    def forwards(self) -> float:
        return sum(row.forwards for row in self.rows)

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    def facts(self) -> dict[str, float]:
        """The numbers of pairs, and the seconds of one forward."""
        return {"n_train": self.n_train, "n_size": self.n_size, "n_test": self.n_test, "forward": self.forward}

    def cut(self, task: Task) -> Task:
        """The pairs of the task that the plan uses."""
        if not task.splits:
            return task[: self.n_train]
        rows = {split: [i for i, s in enumerate(task.splits) if s == split] for split in ("train", "test")}
        n_train, n_size, n_test = (task.pairs.whole(n) if n else 0 for n in (self.n_train, self.n_size, self.n_test))
        kept = [("train", rows["train"][:n_train]), ("size", rows["train"][n_train : n_train + n_size])]
        kept.append(("test", rows["test"][:n_test]))
        return replace(task[[i for _, part in kept for i in part]], splits=tuple(s for s, part in kept for _ in part))

    def _table(self) -> Table:
        """One row per stage."""
        return [{**asdict(row), "gives": _gives(row.stage)} for row in self.rows]

    def __repr__(self) -> str:
        lines = [
            f"{'stage':<13}{'forwards':>9}{'time':>10}{'memory':>9}  gives",
            *(
                f"{row.stage:<13}{row.forwards:>9.1f}{duration(row.seconds):>10}{row.bytes / 1e9:>6.1f} GB  "
                f"{_gives(row.stage)}"
                for row in self.rows
            ),
            f"{'all':<13}{self.forwards:>9.1f}{duration(self.seconds):>10}",
            f"{self.n_train} pairs to find the circuit, "
            + (f"{self.n_size} others to choose its size too, " if self.n_size else "")
            + f"{self.n_test} to test it; one forward {duration(self.forward)}",
        ]
        return "\n".join(lines)


def _gives(stage: str) -> str:
    return ", ".join(STAGES[stage].gives) if stage in STAGES else ""


def duration(seconds: float) -> str:
    """Two digits and a unit."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def time_forward(model: TransformerBridge, task: Task) -> float:
    """Seconds of one batched forward of the clean prompts: of up to 8 pairs, the fastest of three, scaled."""
    few = task.pairs.clean_tokens[: min(8, len(task))].to(device_of(model))
    spent = []
    with torch.no_grad():
        for _ in range(3):
            begun = time.perf_counter()
            model(few)
            if few.device.type == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - begun)
    return min(spent) * len(task) / len(few)


def make_plan(
    model: TransformerBridge, task: Task, settings: Settings, *, mode: Mode = "default", budget: float | None = None,
    again: bool = False, seconds: float | None = None, card: bool = False,
) -> Plan:  # fmt: skip
    """The deepest plan that fits. `seconds`: of one forward of all train pairs, where it is known. `card` adds what a
    referee asks, within a budget last.

    Raises `InputError` for a budget that the least plan exceeds (it says what that costs), and sizes the graph lacks.
    """
    full = Shape.of(model, task, settings, again=again)
    forward = time_forward(model, task.train) if seconds is None else seconds
    unit = forward if budget is not None else full.flops / SPEED
    limit = DEFAULT if budget is None else budget
    if mode == "thorough":
        return _plan((*LEAST, *MORE, *MOST, *(CARD if card else ())), full, forward)
    if mode == "quick":
        short, extra = GLANCE, ()
    else:
        short, extra = (*LEAST, *MORE[:5]), (*MORE[5:], *MOST)
    shape = full
    while _cost(short, shape) * unit > limit and shape.n_train > _fewest(shape):
        shape, unit, forward = _halve(shape), unit / 2, forward / 2
        left = min(N_CHOOSE, shape.n_train, full.n_train - shape.n_train)
        shape = replace(shape, n_size=left if task.splits and full.scored and left >= FEWEST else 0)
    if budget is None and unit > SHORT:
        limit = min(limit, FORWARDS * unit)
    names = [name for name in short if name in LEAST]
    if _cost(names, shape) * unit > limit:
        least = duration(_cost(names, shape) * unit)
        raise InputError(
            f"the least plan ({', '.join(names)} on {shape.n_train} pairs) takes about {least}; the budget is "
            f"{duration(limit)}. Give at least --budget {ceil(1.1 * _cost(names, shape) * unit)}s, or fewer pairs."
        )
    for name in (*(n for n in short if n not in LEAST), *extra):
        wanted = [*(n for n in names if n != STAGES[name].instead), name]
        if _cost(wanted, shape) * unit <= limit:
            names = wanted
    for name in CARD if card else ():
        if budget is None or _cost([*names, name], shape) * unit <= limit:
            names = [*names, name]
    return _plan(names, shape, forward)


def extend_plan(old: Plan, new: Plan, done: tuple[str, ...]) -> Plan:
    """`old` with the stages that `new` adds; what is done stays, also where a fuller stage takes its place. A folder's
    ledger, given as `done`, has what is no stage too (its task).
    """
    done = tuple(name for name in done if name in STAGES)
    names = {*done, *old.stages, *new.stages}
    dropped = {STAGES[n].instead for n in names} - set(done)
    rows = {row.stage: row for row in (*new.rows, *old.rows)}
    return replace(old, rows=tuple(rows[name] for name in STAGES if name in names - dropped))


def _plan(names: Any, shape: Shape, forward: float) -> Plan:
    superfluous = {STAGES[name].instead for name in names}
    rows = tuple(
        Step(stage.name, round(f := stage.forwards(shape), 2), f * forward, stage.bytes(shape))
        for stage in STAGES.values()
        if stage.name in names and stage.name not in superfluous and stage.possible(shape)
    )
    return Plan(rows, shape.n_train, shape.n_test, forward, shape.n_size)


def _cost(names: Any, shape: Shape) -> float:
    return sum(STAGES[name].forwards(shape) for name in names if STAGES[name].possible(shape))


def _halve(shape: Shape) -> Shape:
    n_train, n_test = (max(_fewest(shape), n // 2) for n in (shape.n_train, shape.n_test))
    return replace(shape, n_train=n_train, n_test=min(n_test, shape.n_test))


def _fewest(shape: Shape) -> int:
    """Pairs of `FEWEST` questions: answers of several tokens can have several pairs each."""
    return FEWEST * shape.n_per_question
