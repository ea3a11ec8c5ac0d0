"""Telemetry along training: the summaries of `telemetry` on every shipped checkpoint of a bundled model, on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import bundled
from ..errors import InputError
from ..models.load import load_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..tasks.task import Task
from .telemetry import Telemetry, record_telemetry

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class TelemetryOverTraining(Result):
    """`found[i]` is the telemetry of the checkpoint after `steps[i]` steps of training."""

    model: str
    steps: tuple[int, ...]
    found: tuple[Telemetry, ...]
    provenance: Provenance

    def _table(self) -> Table:
        """One row per checkpoint and layer: what `Telemetry` has, beside `step` and `perplexity`."""
        return [
            {"step": step, "perplexity": one.perplexity, **row}
            for step, one in zip(self.steps, self.found, strict=True)
            for row in one.to_dataframe().to_dict("records")
        ]

    def __str__(self) -> str:
        head = f"{'step':>6}{'layer':>6}{'perplexity':>12}{'norm':>8}{'at first':>10}{'largest':>9}{'x median':>10}{'sink':>7}{'max sink':>10}{'entropy':>9}"
        rows = self.to_dataframe().to_dict(orient="records")
        lines = [
            f"{r['step']:>6}{r['layer']:>6}{r['perplexity']:12.2f}{r['norm']:8.2f}{r['norm_first']:10.2f}{r['largest']:9.2f}{r['ratio_to_median']:10.1f}"
            f"{r['mean_sink']:7.2f}{r['max_sink']:10.2f}{r['entropy']:9.2f}"
            for r in rows
        ]
        n = sum(len(one.massive) for one in self.found)
        return "\n".join(
            [f"{self.model}: telemetry over {len(self.steps)} checkpoints; {n} massive activations", head, *lines]
        )

    __repr__ = __str__


def telemetry_over_training(
    name: str,
    make_task: Callable[[TransformerBridge], Task],
    steps: Sequence[int] | None = None,
    *,
    tolerance: float = 0.01,
    progress: Callable[[int, int, str], None] | None = None,
) -> TelemetryOverTraining:
    """Telemetry of every shipped checkpoint of a bundled model (or of `steps` of them), on the task that `make_task` builds for it.

    Raises `InputError` for a model without checkpoints. Cost: per checkpoint, that of `record_telemetry`.

    >>> print(telemetry_over_training("attn-only-2l", lambda model: mw.tasks.induction(model, n=16)))
    """
    known = bundled.checkpoints(name)
    chosen = list(steps) if steps is not None else known
    if not known or not chosen:
        raise InputError(f"{name} has no checkpoints. Use record_telemetry(load_model({name!r}), task).")
    found = []
    for done, step in enumerate(chosen, start=1):
        model = load_model(f"{name}@{step}")
        found.append(record_telemetry(model, make_task(model), tolerance=tolerance, name=f"{name}@{step}"))
        if progress is not None:
            progress(done, len(chosen), "following checkpoints")
    facts = build_provenance(
        method="telemetry over training", model=name, steps=chosen, checkpoints=[one.provenance for one in found]
    )
    return TelemetryOverTraining(name, tuple(chosen), tuple(found), facts)
