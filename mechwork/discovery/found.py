"""A discovery: every result so far, by name, and what is still to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..circuits import Circuit, CircuitEvaluation, EdgeScores, FaithfulnessCurve
from ..display import Displayable
from ..errors import InputError
from ..lenses import LensTable, Trajectory, TrajectoryComparison, compare_trajectories, trajectory
from ..patching import Effects
from ..result import Result, Table
from ..tasks.task import Task
from .plan import Plan
from .settings import Settings

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Again = Callable[[int], Task]


@dataclass(frozen=True)
class Awaited:
    """A stage that has not run yet."""

    stage: str
    forwards: float


@dataclass(frozen=True, eq=False)
class Outlook(Result, what="discovery outlook"):
    """What is still to come; a page shows it until the plan is done."""

    rows: tuple[Awaited, ...]

    def _table(self) -> Table:
        """One row per stage."""
        return [vars(row) for row in self.rows]


@dataclass(frozen=True, eq=False)
class Discovery(Displayable):
    """What was found so far. `results` by name in the order they were found; `done` stages of the `plan`."""

    task: Task
    model_name: str
    settings: Settings
    plan: Plan
    named: Mapping[str, Any]
    done: tuple[str, ...]
    request: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    model: TransformerBridge | None = None
    again: Again | None = None
    audience: str = "research"

    def __getitem__(self, name: str) -> Any:
        if name not in self.named:
            raise InputError(f"this discovery has {', '.join(self.named)}; got {name!r}. Missing stages: {self.left}")
        return self.named[name]

    @property
    def left(self) -> tuple[str, ...]:
        """Stages of the plan that have not run."""
        return tuple(stage for stage in self.plan.stages if stage not in self.done)

    @property
    def finished(self) -> bool:
        return not self.left

    @property
    def held_out(self) -> bool:
        """Whether the circuit was tested on other pairs than it was found on."""
        return bool(self.task.splits)

    @property
    def scores(self) -> EdgeScores:
        return self["scores"]

    @cached_property
    def circuit(self) -> Circuit:
        """The circuit, its heads' roles filled in where they were studied."""
        circuit, study = self["circuit"], self.named.get("study")
        roles = {row.head: row.role for row in study.rows if row.role and row.head in circuit.nodes} if study else {}
        return replace(circuit, roles=roles)

    @property
    def evaluation(self) -> CircuitEvaluation:
        return self["evaluation"]

    @property
    def curve(self) -> FaithfulnessCurve:
        return self["curve"]

    @property
    def measured(self) -> Effects | None:
        """Exact effects; of a screen only those of the measured cells (NaN elsewhere)."""
        if "measured" in self.named:
            return self.named["measured"]
        return self.named["screened"].measured if "screened" in self.named else None

    @property
    def estimated(self) -> Effects:
        return self["estimated"]

    @property
    def page(self) -> Path | None:
        """The page in the folder, where there is one."""
        found = None if self.folder is None else self.folder / "report.html"
        return found if found is not None and found.is_file() else None

    @property
    def tables(self) -> tuple[LensTable, ...]:
        return tuple(self.named[name] for name in ("lens", "lens-tuned") if name in self.named)

    @property
    def paths(self) -> Trajectory | TrajectoryComparison | None:
        """How the answer forms from place to place: through the logit lens, beside the tuned lens where there is
        one.
        """
        if not self.tables:
            return None
        first, *others = (trajectory(table) for table in self.tables)
        return compare_trajectories(first, others[0]) if others else first

    @property
    def results(self) -> tuple[object, ...]:
        """Everything that a report shows, in its order."""
        names = (
            "estimated", "scores", "circuit", "curve", "evaluation", "under-zero", "under-mean", "under-resample",
            "stability-pairs", "stability-templates", "stability-seeds", "completeness", "minimality", "referee",
            "card", "mechanisms", "backups", "rivals", "study", "attention",
            "components", "positions", "movements", "direct", "lens", "lens-tuned", "check",
        )  # fmt: skip
        found: list[object] = [] if self.measured is None else [self.measured]
        for name in names:
            if name == "circuit" and "circuit" in self.named:
                found.append(self.circuit)
            elif name in self.named:
                found.append(self.named[name])
        if self.paths is not None:
            found.append(self.paths)
        if self.left:
            cost = {row.stage: row.forwards for row in self.plan.rows}
            found.append(Outlook(tuple(Awaited(stage, cost[stage]) for stage in self.left)))
        return tuple(found)

    def extend(
        self,
        model: TransformerBridge | None = None,
        *,
        thorough: bool = False,
        card: bool = False,
        budget: float | str | None = None,
        progress: Any = None,
    ) -> Discovery:
        """Go on in the same folder: what was planned, and with `thorough`, `card` (what a referee asks) or a larger
        `budget` further stages. Nothing is run again.

        `model` is needed where this was read from a folder.
        """
        from .discover import go_on

        return go_on(self, model, thorough=thorough, card=card, budget=budget, observer=progress)

    def __repr__(self) -> str:
        lines = [f"Discovery of {self.task.name} in {self.model_name}"]
        if "circuit" in self.named:
            lines.append(f"  {self['sizing']}; {self.circuit.n_edges} after pruning")
        if "evaluation" in self.named:
            lines.append(f"  {self.evaluation!r}")
        lines.append(f"  done: {', '.join(self.done) or 'nothing'}")
        if self.left:
            lines.append(f"  to come: {', '.join(self.left)}")
        return "\n".join(lines)
