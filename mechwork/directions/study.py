"""Steering judged: how much of what was wanted, and what else changed, over strengths, beside random directions as long.

The corrupt prompts of a task are steered towards the clean ones' answers:

    success = (m(steered corrupt) - m(corrupt)) / (m(clean) - m(corrupt)),   m = mean metric: 0 nothing, 1 as if the prompt were clean

Side effects, on prompts that have nothing to do with it: accuracy on other tasks, KL(plain || steered) of the next token at their
last position and at every position of a text (nats), and the text's perplexity. A method is good when success comes before
side effects do; a random direction of the same length says what any push of that size does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..display import Displayable
from ..errors import InputError, MetricError
from ..interventions import Steering, as_interventions, intervene
from ..models.anatomy import check_ready, device_of
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..runs.record import check_task
from ..shapes import Tokens
from ..sites import Site, hook_name
from ..tasks.metrics import accuracy
from ..tasks.task import Task
from .direction import Direction
from .steer import METHODS, Strengths, Ways, steering_write

if TYPE_CHECKING:
    import pandas
    from transformer_lens.model_bridge import TransformerBridge

Progress = Callable[[int, int, str], None]

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class SteeringRow:
    """One method at one strength. `control` is empty, or names the random direction that took the fitted one's place."""

    method: str
    strength: float
    control: str
    success: float
    success_interval: tuple[float, float]
    accuracy: float
    other_accuracy: float
    kl: float
    perplexity: float | None


@dataclass(frozen=True, eq=False)
class SteeringStudy(Displayable):
    """All methods and strengths; `plain` holds what the unsteered model does: accuracy on the others, and perplexity."""

    rows: tuple[SteeringRow, ...]
    task_name: str
    others: tuple[str, ...]
    baseline: tuple[float, float]
    plain_accuracy: float
    plain_perplexity: float | None
    provenance: Provenance

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
        """The largest success among strengths whose KL on other prompts is at most `max_kl`; 0 (no steering) when none is."""
        return max([0.0, *(row.success for row in self.of(method, control) if row.kl <= max_kl)])

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per method, strength and control."""
        import pandas

        rows = [{**vars(row), "low": row.success_interval[0], "high": row.success_interval[1]} for row in self.rows]
        return pandas.DataFrame(rows).drop(columns="success_interval")

    def __str__(self) -> str:
        corrupt, clean = self.baseline
        text = "" if self.plain_perplexity is None else f", perplexity {self.plain_perplexity:.2f}"
        lines = [
            (
                f"{self.task_name}: metric {corrupt:.3f} of the corrupt prompts (success 0), {clean:.3f} of the clean ones (1); "
                f"unsteered, {', '.join(self.others) or 'no other task'}: accuracy {self.plain_accuracy:.3f}{text}"
            ),
            f"{'method':<24}{'strength':>9}{'success':>9}  {'95 % interval':<16}{'accuracy':>9}{'others':>8}{'KL':>8}{'perplexity':>12}",
        ]
        for row in self.rows:
            name = f"{row.method} ({row.control})" if row.control else row.method
            low, high = row.success_interval
            seen = "" if row.perplexity is None else f"{row.perplexity:12.2f}"
            lines.append(
                f"{name:<24}{row.strength:9.2f}{row.success:9.3f}  [{low:6.3f}, {high:6.3f}]{row.accuracy:9.3f}"
                f"{row.other_accuracy:8.3f}{row.kl:8.3f}{seen}"
            )
        return "\n".join(lines)

    __repr__ = __str__


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
    seed: int = 0,
    progress: Progress | None = None,
) -> SteeringStudy:
    """Every method (default: all of `METHODS`) at every strength, and each with `n_random` random directions of the same length.

    `writes` adds methods of one's own: name -> (strength -> what is written at the direction's site, or interventions with
    places of their own: writes at many layers, edits of the weights); they have no control.
    Cost per method, strength and control: 1 forward of the task's corrupt prompts, of the others' clean prompts and of the text.

    Raises:
        InputError: a direction of other weights or width; nothing to see side effects on; unknown strengths.
        UnknownNameError: an unknown method.
        MetricError: clean and corrupt metrics coincide, or a strength makes activations overflow (says in which layer).
    """
    check_task(model, task)
    direction.check(model)
    if not others and text is None:
        raise InputError("side effects are seen on something else: pass other tasks (`others`) or token ids (`text`)")
    names = tuple(METHODS) if methods is None else tuple(methods)
    chosen: dict[tuple[str, str], Ways] = {}
    for name in names:
        for control in (None, *range(n_random)):
            used = direction if control is None else direction.random_control(seed + control)
            chosen[name, "" if control is None else f"random {control}"] = _strengths(used, name)
            steering_write(used, name, float(strengths[0]))
    chosen |= {(name, ""): write for name, write in (writes or {}).items()}
    bench = _Bench.of(model, task, direction.site, others, text)
    rows: list[SteeringRow] = []
    for (name, control), write in chosen.items():
        for strength in strengths:
            rows.append(bench.measure(name, float(strength), control, write(float(strength)), seed))
            if progress is not None:
                progress(len(rows), len(chosen) * len(strengths), f"steering by {name}")
    provenance = build_provenance(
        method="steering study", seed=seed, n_random=n_random, model=identify_model(model), task=task.provenance(),
        others=[other.provenance() for other in others], direction=direction.provenance,
    )  # fmt: skip
    return SteeringStudy(
        tuple(rows), task.name, tuple(other.name for other in others), bench.baseline, bench.plain_accuracy,
        bench.plain_perplexity, provenance,
    )  # fmt: skip


def _strengths(direction: Direction, method: str) -> Strengths:
    return lambda strength: steering_write(direction, method, strength)


@dataclass(frozen=True, eq=False)
class _Bench:
    """What the unsteered model does, kept to compare with."""

    model: TransformerBridge
    task: Task
    site: Site
    others: Sequence[Task]
    text: Int[Tensor, "text_row text_pos"] | None
    clean: Float[Tensor, " batch"]
    corrupt: Float[Tensor, " batch"]
    plain: list[Tensor]
    plain_accuracy: float
    plain_text: Float[Tensor, "text_row text_pos d_vocab"] | None
    plain_perplexity: float | None

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: TransformerBridge, task: Task, site: Site, others: Sequence[Task], text: Tokens | None
    ) -> _Bench:
        check_ready(model)
        pairs = task.pairs.to(device_of(model))
        clean = task.measure(model(pairs.clean_tokens), pairs).cpu()
        host = pairs.corrupt_as_host()
        corrupt = task.measure(model(host.clean_tokens), host).cpu()
        if abs(float(clean.mean() - corrupt.mean())) <= 1e-6 * max(1e-12, float(clean.abs().max())):
            raise MetricError("success is undefined: clean and corrupt prompts have the same mean metric")
        plain, right = _read_others(model, others)
        log_p = None if text is None else model(text.to(device_of(model))).log_softmax(dim=-1)
        return cls(
            model, task, site, others, text, clean, corrupt, plain, right, log_p,
            None if log_p is None or text is None else _perplexity(log_p, text),
        )  # fmt: skip

    @property
    def baseline(self) -> tuple[float, float]:
        """(corrupt, clean) mean metric."""
        return float(self.corrupt.mean()), float(self.clean.mean())

    @torch.no_grad()
    def measure(self, name: str, strength: float, control: str, write: Steering, seed: int) -> SteeringRow:
        host = self.task.pairs.corrupt_as_host().to(device_of(self.model))
        with intervene(self.model, as_interventions(self.site, write)):
            logits = self.model(host.clean_tokens)
            if not bool(logits.isfinite().all()):
                raise MetricError(self._where_it_overflows(host.clean_tokens, name, strength))
            reached = self.task.measure(logits, host).cpu()
            found, right = _read_others(self.model, self.others)
            log_q = None if self.text is None else self.model(self.text.to(device_of(self.model))).log_softmax(dim=-1)
        divergences = [_kl(p, q) for p, q in zip(self.plain, found, strict=True)]
        perplexity = None
        if log_q is not None and self.plain_text is not None and self.text is not None:
            divergences.append(_kl(self.plain_text, log_q))
            perplexity = _perplexity(log_q, self.text)
        gap = self.clean.mean() - self.corrupt.mean()
        return SteeringRow(
            method=name,
            strength=strength,
            control=control,
            success=float((reached.mean() - self.corrupt.mean()) / gap),
            success_interval=self._interval(reached, seed),
            accuracy=float(accuracy(logits, host).float().mean()),
            other_accuracy=right,
            kl=sum(divergences) / len(divergences),
            perplexity=perplexity,
        )

    def _interval(self, reached: Float[Tensor, " batch"], seed: int, n: int = 1000) -> tuple[float, float]:
        """95 % bootstrap over pairs, numerator and denominator resampled together."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(reached), (n, len(reached)), generator=generator)
        gap = (self.clean - self.corrupt)[rows].mean(dim=1)
        ratios = (reached - self.corrupt)[rows].mean(dim=1) / gap
        low, high = ratios.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high

    def _where_it_overflows(self, tokens: Tokens, name: str, strength: float) -> str:
        broken: list[int] = []

        def watch(layer: int) -> Callable[..., None]:
            def hook(activation: Tensor, hook: object) -> None:
                if not bool(activation.isfinite().all()):
                    broken.append(layer)

            return hook

        n_layers = int(self.model.cfg.n_layers)
        hooks = [(hook_name(Site("resid_post", layer)), watch(layer)) for layer in range(n_layers)]
        with self.model.hooks(fwd_hooks=hooks):
            self.model(tokens)
        where = f"first in layer {min(broken)}" if broken else "in the logits"
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return f"steering by {name!r} at strength {strength} overflows {dtype}, {where}. Use a smaller strength, or a wider dtype"


def _read_others(model: TransformerBridge, others: Sequence[Task]) -> tuple[list[Tensor], float]:
    """Log-probabilities at the last position of every other task's clean prompts, and the mean accuracy over tasks."""
    found, right = [], []
    for other in others:
        pairs = other.pairs.to(device_of(model))
        logits = model(pairs.clean_tokens)
        found.append(pairs.final(logits).log_softmax(dim=-1))
        right.append(float(accuracy(logits, pairs).float().mean()))
    return found, sum(right) / len(right) if right else float("nan")


def _kl(log_p: Float[Tensor, "... d_vocab"], log_q: Float[Tensor, "... d_vocab"]) -> float:
    """Mean KL(p || q) in nats."""
    return float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())


def _perplexity(log_p: Float[Tensor, "batch pos d_vocab"], text: Tokens) -> float:
    """exp of the mean surprisal of every token but the first of each row."""
    own = log_p[:, :-1].gather(-1, text[:, 1:, None].to(log_p.device))
    return float((-own.mean()).exp())
