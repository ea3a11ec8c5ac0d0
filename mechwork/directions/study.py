"""Steering judged: how much of what was wanted, and what else changed, over strengths, beside controls.

The corrupt prompts of a task are steered towards the clean ones' answers:

    success = (m(steered corrupt) - m(corrupt)) / (m(clean) - m(corrupt)),   m = mean metric: 0 nothing, 1 as if the
    prompt were clean

Side effects, on prompts that have nothing to do with it, are those of `bench`. A method is good when success comes
before side effects do; beside KL, `entropy_shift` says whether the outputs became surer or less sure. Two controls say
what any push does: a random direction as long as the fitted one, put through the same method (``random``); and every
state moved as far as the method moves it, in one random direction (``as far``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..execute.progress import Progress
from ..interventions import is_replacement
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..runs.record import check_task
from ..shapes import Tokens
from ..tasks.task import Task
from .bench import SteeringBench
from .direction import Direction
from .steer import METHODS, AsFar, Strengths, Ways, steering_write

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class SteeringRow:
    """One method at one strength. `control` is empty, or names the control in the fitted direction's place: ``random
    0``, ``as far 0``. `entropy_shift`: steered - unsteered entropy where KL is measured, in nats (None in old files).
    """

    method: str
    strength: float
    control: str
    success: float
    success_interval: tuple[float, float]
    accuracy: float
    other_accuracy: float
    kl: float
    perplexity: float | None
    repetition: float | None = None
    oddness: float | None = None
    entropy_shift: float | None = None


@dataclass(frozen=True, eq=False)
class SteeringStudy(Result):
    """All methods and strengths; `plain_...` is what the unsteered model does: accuracy on the others, perplexity,
    continuations.
    """

    rows: tuple[SteeringRow, ...]
    task_name: str
    others: tuple[str, ...]
    baseline: tuple[float, float]
    plain_accuracy: float
    plain_perplexity: float | None
    provenance: Provenance
    plain_repetition: float | None = None
    plain_oddness: float | None = None

    def of(self, method: str, control: str = "") -> tuple[SteeringRow, ...]:
        """The rows of a method by rising strength."""
        found = [row for row in self.rows if row.method == method and row.control == control]
        return tuple(sorted(found, key=lambda row: row.strength))

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def controls(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.control for row in self.rows if row.control))

    def best(self, method: str, control: str = "", *, max_kl: float) -> float:
        """The largest success among strengths whose KL on other prompts is at most `max_kl`; 0 (no steering) when none
        is.
        """
        return max([0.0, *(row.success for row in self.of(method, control) if row.kl <= max_kl)])

    def __str__(self) -> str:
        corrupt, clean = self.baseline
        plain = {
            "perplexity": self.plain_perplexity,
            "repetition": self.plain_repetition,
            "oddness": self.plain_oddness,
        }
        seen = {name: value for name, value in plain.items() if value is not None}
        text = "".join(f", {name} {value:.2f}" for name, value in seen.items())
        head = (
            f"{'method':<28}{'strength':>9}{'success':>9}  {'95 % interval':<16}{'accuracy':>9}{'others':>8}{'KL':>8}"
            f"{'entropy':>9}"
        )
        lines = [
            (
                f"{self.task_name}: metric {corrupt:.3f} of the corrupt prompts (success 0), {clean:.3f} of the clean "
                "ones (1); "
                f"unsteered, {', '.join(self.others) or 'no other task'}: accuracy {self.plain_accuracy:.3f}{text}"
            ),
            head + "".join(f"{name:>12}" for name in seen),
        ]
        for row in self.rows:
            name = f"{row.method} ({row.control})" if row.control else row.method
            shift = "-" if row.entropy_shift is None else f"{row.entropy_shift:+.3f}"
            low, high = row.success_interval
            lines.append(
                f"{name:<28}{row.strength:9.2f}{row.success:9.3f}  [{low:6.3f}, {high:6.3f}]{row.accuracy:9.3f}"
                f"{row.other_accuracy:8.3f}{row.kl:8.3f}{shift:>9}"
                + "".join(f"{getattr(row, key):12.2f}" for key in seen)
            )
        return "\n".join(lines)


@borrows
def study_steering(
    model: TransformerBridge,
    task: Task,
    direction: Direction,
    *,
    methods: Sequence[str] | None = None,
    writes: Mapping[str, Ways] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    others: Sequence[Task] = (),
    text: Tokens | None = None,
    n_random: int = 3,
    n_as_far: int = 0,
    n_generated: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> SteeringStudy:
    """Every method (default: all of `METHODS`) at every strength, beside its controls, `n_random` and `n_as_far` of
    each kind.

    `writes` adds methods of one's own: name -> (strength -> what is written at the direction's site, or interventions
    with places
    of their own: writes at many layers, edits of the weights). They have no random direction to be fitted with; those
    at the direction's site are also moved as far as. `n_generated`: tokens of each greedy continuation of the text (0:
    none).
    Cost per method, strength and control: 1 forward of the task's corrupt prompts, of the others' clean prompts and of
    the text, and `n_generated` forwards of one token.

    Raises:
        InputError: a direction of other weights or width; nothing to see side effects on; unknown strengths; text too
            short.
        UnknownNameError: an unknown method.
        MetricError: clean and corrupt metrics coincide, or a strength makes activations overflow (says in which layer).
    """
    check_task(model, task)
    direction.check(model)
    if not others and text is None:
        raise InputError("side effects are seen on something else: pass other tasks (`others`) or token ids (`text`)")
    if not len(strengths):
        raise InputError("a direction is written at one strength or more; got none")
    names = tuple(METHODS) if methods is None else tuple(methods)
    chosen: dict[tuple[str, str], Ways] = {}
    own: dict[str, Ways] = {**{name: _strengths(direction, name) for name in names}, **(writes or {})}
    for name, write in own.items():
        chosen[name, ""] = write
        at_the_site = is_replacement(write(float(strengths[0])))
        if name in names:
            for i in range(n_random):
                chosen[name, f"random {i}"] = _strengths(direction.random_control(seed + i), name)
        for i in range(n_as_far if at_the_site else 0):
            chosen[name, f"as far {i}"] = _as_far(write, direction.random_control(seed + 1000 + i))
    bench = SteeringBench.of(model, task, direction.site, others, text, n_generated)
    rows: list[SteeringRow] = []
    for (name, control), write in chosen.items():
        for strength in map(float, strengths):
            reached, right, kl, effects = bench.run(write(strength), f"{name!r} at strength {strength}")
            success, interval = bench.success(reached, seed)
            rows.append(
                SteeringRow(
                    name, strength, control, success, interval, right, effects.other_accuracy, kl, effects.perplexity,
                    effects.repetition, effects.oddness, effects.entropy - bench.side_effects.entropy,
                )
            )  # fmt: skip
            if progress is not None:
                progress(len(rows), len(chosen) * len(strengths), f"steering by {name}")
    plain = bench.side_effects
    provenance = build_provenance(
        method="steering study", seed=seed, n_random=n_random, n_as_far=n_as_far, n_generated=n_generated,
        model=identify_model(model), task=task.provenance(),
        others=[other.provenance() for other in others], direction=direction.provenance,
    )  # fmt: skip
    return SteeringStudy(
        tuple(rows), task.name, tuple(other.name for other in others), bench.baseline, plain.other_accuracy,
        plain.perplexity, provenance, plain.repetition, plain.oddness,
    )  # fmt: skip


def _strengths(direction: Direction, method: str) -> Strengths:
    return lambda strength: steering_write(direction, method, strength)


def _as_far(write: Ways, control: Direction) -> Strengths:
    def as_far(strength: float) -> AsFar:
        inner = write(strength)
        assert is_replacement(inner)
        return AsFar(inner, control.unit)

    return as_far
