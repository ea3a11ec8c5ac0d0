"""Telemetry along training: the summaries of `telemetry` on every checkpoint, on the same prompts, one model in memory
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.load import load_model
from ..models.sources import find_checkpoints
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..tasks.task import Task
from .sparsity import ModelSparsity, Windows, measure_sparsity
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
        head = (
            f"{'step':>6}{'layer':>6}{'perplexity':>12}{'norm':>8}{'at first':>10}{'largest':>9}{'x median':>10}"
            f"{'sink':>7}{'max sink':>10}{'entropy':>9}"
        )
        rows = self.to_dataframe().to_dict(orient="records")
        lines = [
            f"{r['step']:>6}{r['layer']:>6}{r['perplexity']:12.2f}{r['norm']:8.2f}{r['norm_first']:10.2f}"
            f"{r['largest']:9.2f}{r['ratio_to_median']:10.1f}"
            f"{r['mean_sink']:7.2f}{r['max_sink']:10.2f}{r['entropy']:9.2f}"
            for r in rows
        ]
        n = sum(len(one.massive) for one in self.found)
        return "\n".join(
            [f"{self.model}: telemetry over {len(self.steps)} checkpoints; {n} massive activations", head, *lines]
        )


def telemetry_over_training(
    name: str | Sequence[str | Path],
    make_task: Callable[[TransformerBridge], Task],
    steps: Sequence[int] | None = None,
    *,
    tolerance: float = 0.01,
    sparsity: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> TelemetryOverTraining:
    """Telemetry of every checkpoint, on the task that `make_task` builds for it; `sparsity`, the dear part, or not.

    `name` is a bundled model (all of its checkpoints, or those after `steps`), or a list of folders, GGUF files or hub
    names from first to last, with `steps` as labels (default: their places in the list).

    Raises `InputError` for a model without checkpoints or sources of different architecture, before the first is
    loaded.
    Cost: per checkpoint, that of `record_telemetry`.

    >>> print(telemetry_over_training("attn-only-2l", lambda model: mw.tasks.induction(model, n=16)))
    """
    chosen = find_checkpoints(name, steps)
    found = []
    for done, source in enumerate(chosen.sources, start=1):
        model = load_model(source)
        found.append(record_telemetry(model, make_task(model), tolerance=tolerance, sparsity=sparsity, name=source))
        del model
        if progress is not None:
            progress(done, len(chosen.sources), "following checkpoints")
    facts = build_provenance(
        method="telemetry over training", model=chosen.label, steps=list(chosen.steps),
        checkpoints=[one.provenance for one in found],
    )  # fmt: skip
    return TelemetryOverTraining(chosen.label, chosen.steps, tuple(found), facts)


@dataclass(frozen=True, eq=False)
class SparsityOverTraining(Result):
    """`found[i]` is the sparsity of the checkpoint after `steps[i]` steps: at `rise` more perplexity of its own."""

    model: str
    rise: float
    steps: tuple[int, ...]
    found: tuple[ModelSparsity, ...]
    provenance: Provenance

    @property
    def shares(self) -> list[float]:
        """The share of all MLP activations that each checkpoint can do without: for `fit_growth`."""
        return [one.share for one in self.found]

    def _table(self) -> Table:
        """One row per checkpoint."""
        return [
            {
                "step": step, "dropped": one.share, **{f"layer {i}": share for i, share in enumerate(one.shares)},
                "perplexity": one.perplexity, "cut_perplexity": one.cut_perplexity,
                "lot_perplexity": one.lot_perplexity,
            }
            for step, one in zip(self.steps, self.found, strict=True)
        ]  # fmt: skip

    def __str__(self) -> str:
        head = f"{'step':>6}{'dropped':>9}{'perplexity':>12}{'cut':>9}{'by lot':>10}  by layer"
        lines = [
            f"{step:>6}{one.share:9.1%}{one.perplexity:12.2f}{one.cut_perplexity:9.2f}{one.lot_perplexity:10.2f}  "
            + " ".join(f"{share:.0%}" for share in one.shares)
            for step, one in zip(self.steps, self.found, strict=True)
        ]
        title = f"{self.model}: MLP activations that can be dropped at {self.rise:.1%} more perplexity"
        return "\n".join([title, head, *lines])


def sparsity_over_training(
    name: str | Sequence[str | Path],
    make_text: Callable[[TransformerBridge], tuple[Windows, Windows]],
    steps: Sequence[int] | None = None,
    *,
    rise: float = 0.01,
    rule: str = "magnitude",
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> SparsityOverTraining:
    """`measure_sparsity` of every checkpoint, on the windows (to fit, held out) that `make_text` builds for it.

    `name` and `steps` are as in `telemetry_over_training`, `rise`, `rule` and `seed` as in `measure_sparsity`, and so
    is what is raised. Cost: per checkpoint, that of `measure_sparsity`.

    >>> found = sparsity_over_training("llama-3l", lambda model: (text[:256], text[256:]))
    >>> print(fit_growth(found.steps, found.shares, "power"))
    """
    chosen = find_checkpoints(name, steps)
    found = []
    for done, source in enumerate(chosen.sources, start=1):
        model = load_model(source)
        found.append(measure_sparsity(model, *make_text(model), rise=rise, rule=rule, seed=seed))
        del model
        if progress is not None:
            progress(done, len(chosen.sources), "following checkpoints")
    facts = build_provenance(
        method="sparsity over training", model=chosen.label, steps=list(chosen.steps), rise=rise, rule=rule, seed=seed,
        checkpoints=[one.provenance for one in found],
    )  # fmt: skip
    return SparsityOverTraining(chosen.label, rise, chosen.steps, tuple(found), facts)
