"""What each head does, from measurements: the effect of ablating it, its direct effect, and where it looks.

    effect        = m(model) - m(model with the head's z replaced by its mean at the same span); positive = the head
    helps direct effect = (z - its mean at the span) W_O through the final norm (at its live scale) and the unembedding,
    in units
                    of the logit difference: what the head writes straight into the answer

Roles are words for rules over these numbers (see `ROLES`), nothing more; a head that no rule fits has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import some_or_all
from ..execute import MemoryBudget, Progress
from ..models.anatomy import device_of, final_norm
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..patching.exact import plan_sweep
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.attention import attention_between, parse_head
from ..runs.record import Run, check_task, record_run
from ..runs.writes import answer_directions
from ..sites import Site
from ..tasks.pairs import END
from ..tasks.task import Task
from .targets import all_heads
from .units import STUDY, given_means

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class HeadRow:
    """Measurements of one head, in units of the metric; `attention` maps ``"END→IO"`` to a mean probability."""

    head: str
    effect: float
    standard_error: float
    direct_effect: float | None
    attention: dict[str, float] = field(default_factory=dict)
    role: str = ""


@dataclass(frozen=True, eq=False)
class HeadStudy(Result):
    """Rows per head, largest absolute effect first."""

    rows: tuple[HeadRow, ...]
    metric_name: str
    provenance: Provenance

    def _table(self) -> Table:
        """One row per head."""
        columns = ("head", "effect", "standard_error", "direct_effect", "role")
        return [{**{name: getattr(row, name) for name in columns}, **row.attention} for row in self.rows]

    def __str__(self) -> str:
        looks = list(self.rows[0].attention) if self.rows else []
        lines = ["head      effect    ±se   direct  " + "  ".join(f"{name:>8}" for name in looks) + "  role"]
        for row in self.rows:
            direct = "       -" if row.direct_effect is None else f"{row.direct_effect:8.3f}"
            seen = "  ".join(f"{row.attention[name]:8.2f}" for name in looks)
            lines.append(f"{row.head:<7} {row.effect:8.3f} {row.standard_error:6.3f} {direct}  {seen}  {row.role}")
        return "\n".join(lines)


Rule = Callable[[HeadRow, float], bool]
"""(measurements, largest absolute effect of the study) -> whether the role fits."""

SHARE = 0.05
"""A head below this share of the largest effect gets no role."""

LOOKS = 0.3
"""Mean attention from which a head is said to look at a span."""


def _looks(row: HeadRow, where: str) -> bool:
    return row.attention.get(where, 0.0) >= LOOKS


def _direct(row: HeadRow) -> float:
    return row.direct_effect or 0.0


def _is_direct(row: HeadRow, top: float) -> bool:
    """Most of the head's effect goes straight to the answer."""
    return abs(_direct(row)) > max(SHARE * top, abs(row.effect) / 2)


def _prefers_io(row: HeadRow) -> bool:
    return _looks(row, "END→IO") and row.attention["END→IO"] > row.attention.get("END→S1", 0.0)


ROLES: dict[str, Rule] = {
    "name mover": lambda row, top: _prefers_io(row) and _is_direct(row, top) and _direct(row) > 0,
    "negative name mover": lambda row, top: _prefers_io(row) and _is_direct(row, top) and _direct(row) < 0,
    "answer mover (from S2)": lambda row, top: _looks(row, "END→S2") and _is_direct(row, top),
    "answer mover (from S2+)": lambda row, top: _looks(row, "END→S2+") and _is_direct(row, top),
    "S-inhibition": lambda row, top: _looks(row, "END→S2") and abs(row.effect) > SHARE * top,
    "duplicate token": lambda row, top: _looks(row, "S2→S1") and abs(row.effect) > SHARE * top,
    "mover from S2": lambda row, top: _looks(row, "S2+→S2") and abs(row.effect) > SHARE * top,
}
"""Roles of the indirect-object literature (Wang et al. 2022) as rules; the first that fits is given. An *answer mover*
looks at the second subject, or at the words after it (S2+), and writes the answer itself: the model has resolved the
answer at that position already. A *mover from S2* looks back from those words at the second subject."""


@borrows
def study_heads(
    model: TransformerBridge,
    task: Task,
    heads: Sequence[str] | None = None,
    *,
    memory_budget: MemoryBudget | None = None,
    progress: Progress | None = None,
) -> HeadStudy:
    """Ablate every head (or `heads` alone, ``"a3.h1"``) by its mean at the same span, and measure where it looks.

    The means are over the task's own clean prompts. Spans without a name count as one. Direct effects are given for
    metrics that are linear in the logits, without a final soft cap. Cost: 4 forwards, and per head the blocks from its
    own on (half of all, on average) and the unembedding of what the metric reads; `heads` of a circuit are the cheap
    way to begin.
    `memory_budget`: as in `mechwork.patch`.

    Raises `InputError` for heads that the model does not have, and for a budget too small for one patched run.
    """
    anatomy = check_task(model, task)
    names = list(some_or_all("heads", heads, all_heads(anatomy)))
    places = [parse_head(anatomy, name) for name in names]
    job = plan_sweep(model, task, ["z"], direction="noise", positions="all", memory_budget=memory_budget)
    pairs = task.pairs.to(device_of(model))
    run = record_run(model, pairs, ["z", Site("resid_post", anatomy.n_layers - 1)], n_tail=1)
    means = [_mean_by_span(z, _span_masks(task)) for z in run.layers["z"]]
    direct = _direct_effects(model, task, run, means) if task.metric.linear and anatomy.final_soft_cap is None else None
    del run
    looks = _looks_for(task)
    attention = attention_between(model, task, looks) if looks else {}

    only = (tuple(sorted({layer * anatomy.n_heads + head for layer, head in places})),)
    data = {"means": {str(layer): mean for layer, mean in enumerate(means)}}
    job = replace(
        job, sweep=replace(job.sweep, only=only), given=given_means(means), operation=STUDY, data=data,
        about={"ablation": "mean by span"},
    )  # fmt: skip
    drops = job.run(progress=progress)["z"].per_example
    rows = []
    for name, (layer, head) in zip(names, places, strict=True):
        drop = drops[:, layer, head]
        rows.append(
            HeadRow(
                head=name,
                effect=float(drop.mean()),
                standard_error=float(drop.std() / len(drop) ** 0.5) if len(drop) > 1 else float("nan"),
                direct_effect=None if direct is None else float(direct[layer, head]),
                attention={f"{a}→{b}": float(values[layer, head]) for (a, b), values in attention.items()},
            )
        )
    rows.sort(key=lambda row: -abs(row.effect))
    provenance = build_provenance(
        method="head study", ablation="mean by span", model=identify_model(model), task=task.provenance()
    )
    return HeadStudy(tuple(_with_role(row, rows) for row in rows), task.metric.name, provenance)


def _with_role(row: HeadRow, rows: Sequence[HeadRow]) -> HeadRow:
    top = max(abs(other.effect) for other in rows)
    role = next((name for name, rule in ROLES.items() if rule(row, top)), "")
    return HeadRow(row.head, row.effect, row.standard_error, row.direct_effect, row.attention, role)


def _looks_for(task: Task) -> list[tuple[str, str]]:
    """From the last token to every named span, and from each named span to the earlier ones."""
    names = [name for name in task.pairs.spans if not name.endswith("+") and name != "start"]
    pairs = [(END, name) for name in names if name != END]
    if {"S1", "S2"} <= set(names):
        pairs += [("S2", "S1")]
        pairs += [(END, "S2+"), ("S2+", "S2")] if "S2+" in task.pairs.spans else []
    return pairs if END in names else []


def _span_masks(task: Task) -> list[Tensor]:
    """Position masks over which means are taken: the task's spans, or all real tokens as one."""
    return list(task.pairs.spans.values()) or [task.pairs.mask]


def _mean_by_span(
    z: Float[Tensor, "batch pos head d_head"], masks: list[Tensor]
) -> Float[Tensor, "batch pos head d_head"]:
    """Every position gets the mean of its span over all prompts."""
    means = torch.zeros_like(z)
    for mask in masks:
        where = mask.to(z.device)
        means[where] = z[where].mean(dim=0)
    return means


def _direct_effects(model: TransformerBridge, task: Task, run: Run, means: list[Tensor]) -> Float[Tensor, "layer head"]:
    """Mean direct effect of every head on the logit difference, the final norm linear at its live scale."""
    pairs = task.pairs
    rows = torch.arange(len(pairs), device=run.logits.device)
    end = pairs.lengths.to(run.logits.device) - 1
    norm = final_norm(model)
    final = run.layers["resid_post"][-1]
    scale = None if norm is None else norm.scale(final[rows.to(final.device), end.to(final.device)])[:, None]
    readout = answer_directions(model, pairs)
    effects = []
    for layer, (z, mean) in enumerate(zip(run.layers["z"], means, strict=True)):
        last = (z - mean)[rows.to(z.device), end.to(z.device)]
        written = torch.einsum("bhe,hed->bhd", last, model.blocks[layer].attn.W_O.detach())
        shares = written if norm is None or scale is None else norm.linear(written, scale)
        effects.append(torch.einsum("bhd,bd->bh", shares, readout.to(shares.device)).mean(dim=0).cpu())
    return torch.stack(effects)
