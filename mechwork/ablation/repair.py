"""Self-repair: how much of a head's direct effect the rest of the model makes up for when the head is ablated.

The logit difference m is linear in the writes to the final stream, divided by the final norm's scale s. With w a
write's worth at scale 1 and the ablated run marked ', the drop m - m' (positive = the head helps) splits exactly:

    total  T = m - m'
    direct D = (w_h - w_h') / s                                what the head itself wrote, everything else as it was
    heads  H = sum over other heads (w_j - w_j') / s           negative: they now write more, and repair
    MLPs   M = sum over MLPs (w_m - w_m') / s
    norm   N = (sum of all w') (1/s - 1/s')                    the smaller stream is scaled up, or the larger one down
    T = D + H + M + N;    repaired = D - T = -(H + M + N)

(Rushing & Nanda 2024, arXiv:2402.15390; McGrath et al. 2023.) Writes are those at the last token. A *backup* is another
head whose direct effect rises significantly when the head is gone. Cost: 1 forward per head from its block on, and one
more per batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, some_or_all
from ..execute.memory import MemoryBudget
from ..models.anatomy import ModelAnatomy, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.attention import parse_head
from ..runs.record import check_task, record_run
from ..runs.restart import restart_at
from ..runs.room import DEFAULT_BUDGET, prompts_that_fit
from ..runs.writes import answer_directions, at_ends, final_scale, head_writes, through_final_norm
from ..sites import Site
from ..statistics import holm, sign_flip_p
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .fitted import Ablation
from .run import ensure_fitted
from .sets import Progress
from .spec import AblationSpec
from .targets import all_heads

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ALPHA = 0.05
"""Corrected p-value below which a rise makes a head a backup."""
LEAST = 0.05
"""... if it makes up for at least this share of the ablated head's direct effect."""


@dataclass(frozen=True)
class Backup:
    """A head that writes more when another one is gone: by how much (in logits), and its corrected p-value."""

    head: str
    gain: float
    p: float


@dataclass(frozen=True, eq=False)
class SelfRepair(Result):
    """The split per ablated head and pair, ``[ablated, batch]``; `gains` are the other heads' rises ``[ablated, head,
    batch]``.

    All are drops of the logit difference (positive = losing it hurts), except `gains` (positive = repairs).
    """

    ablated: tuple[str, ...]
    heads: tuple[str, ...]
    total: Float[Tensor, "ablated batch"]
    direct: Float[Tensor, "ablated batch"]
    by_heads: Float[Tensor, "ablated batch"]
    by_mlps: Float[Tensor, "ablated batch"]
    by_norm: Float[Tensor, "ablated batch"]
    gains: Float[Tensor, "ablated head batch"]
    kind: str
    clean: float
    provenance: Provenance

    @property
    def repaired(self) -> Float[Tensor, "ablated batch"]:
        """direct - total: what the rest of the model made up for."""
        return self.direct - self.total

    def backups(self, head: str) -> tuple[Backup, ...]:
        """Heads that write significantly more when `head` is ablated, largest gain first."""
        row = self.ablated.index(head)
        p = holm(sign_flip_p(self.gains[row].T))
        mean, least = self.gains[row].mean(dim=1), LEAST * abs(float(self.direct[row].mean()))
        found = [
            Backup(name, float(g), float(q))
            for name, g, q in zip(self.heads, mean, p, strict=True)
            if g > least and q < ALPHA
        ]
        return tuple(sorted(found, key=lambda b: -b.gain))

    def share(self, least: float = 0.05) -> float:
        """The part of the summed direct effects that is repaired, over heads whose direct effect is at least `least` of
        the largest.
        """
        direct = self.direct.mean(dim=1)
        strong = direct >= least * float(direct.max())
        return float(self.repaired.mean(dim=1)[strong].sum() / direct[strong].sum())

    def _table(self) -> Table:
        """One row per ablated head."""
        signs = {"total": 1, "direct": 1, "repaired": 1, "by_heads": -1, "by_mlps": -1, "by_norm": -1}
        mean = {name: (sign * getattr(self, name).mean(dim=1)).tolist() for name, sign in signs.items()}
        backups = [" ".join(backup.head for backup in self.backups(head)) for head in self.ablated]
        return {"head": self.ablated, **mean, "backups": backups}

    def __str__(self) -> str:
        lines = [
            (
                f"self-repair under {self.kind} ablation; logit difference {self.clean:.2f}; {self.share():.0%} of the "
                "direct effects is repaired"
            ),
            f"{'head':<8}{'direct':>8}{'total':>8}{'repaired':>10}{'by norm':>9}{'by heads':>9}{'by MLPs':>9}  backups",
        ]
        rows = sorted(self.to_dataframe().to_dict(orient="records"), key=lambda row: -abs(row["direct"]))[:12]
        for row in rows:
            shown = ", ".join(f"{b.head} +{b.gain:.2f}" for b in self.backups(row["head"])[:3])
            lines.append(
                f"{row['head']:<8}{row['direct']:8.2f}{row['total']:8.2f}{row['repaired']:10.2f}{row['by_norm']:9.2f}"
                f"{row['by_heads']:9.2f}{row['by_mlps']:9.2f}  {shown}"
            )
        return "\n".join(lines)


@borrows
def study_self_repair(
    model: TransformerBridge,
    task: Task,
    heads: Sequence[str] | None = None,
    *,
    kind: str = "mean",
    reference: Task | None = None,
    seed: int = 0,
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> SelfRepair:
    """The split for every head (or `heads`), ablated at all positions.

    Raises `InputError` for a metric that is not linear in the logits, or a soft cap after them: neither splits into
    writes.

    >>> study_self_repair(model, task).backups("a4.h1")
    """
    anatomy = check_task(model, task)
    if not task.metric.linear or anatomy.final_soft_cap is not None:
        raise InputError(
            "direct effects add up only for a metric that is linear in uncapped logits (logit_difference); "
            f"got {task.metric.name} with a soft cap of {anatomy.final_soft_cap}"
        )
    names = some_or_all("heads", heads, all_heads(anatomy))
    places = [parse_head(anatomy, name) for name in names]
    streams = [Site("resid_post", layer) for layer in range(anatomy.n_layers)]
    size = prompts_that_fit(model, task.pairs, memory_budget, sites=streams * 4)
    fitted = ensure_fitted(model, task, AblationSpec(names, kind, seed=seed), reference, memory_budget)
    batches, clean = [], []
    for first in range(0, len(task), size):
        pairs = task.pairs[first : first + size].to(device_of(model))
        with torch.no_grad():
            rows, base = _split_batch(model, anatomy, task, pairs, fitted, names, places, first)
        batches.append(rows)
        clean.append(base)
        if progress is not None:
            progress(first + len(pairs), len(task), "measuring self-repair")
    columns = {name: torch.cat([part[name] for part in batches], dim=-1) for name in batches[0]}
    facts = build_provenance(
        method="self-repair", ablation=fitted.provenance(), model=identify_model(model), task=task.provenance()
    )
    return SelfRepair(
        names, all_heads(anatomy), **columns, kind=kind, clean=float(torch.cat(clean).mean()), provenance=facts
    )


@dataclass(frozen=True, eq=False)
class Worth:
    """What every write at the last token is worth at scale 1, and the scale."""

    metric: Float[Tensor, " batch"]
    heads: Float[Tensor, "head batch"]
    mlps: Float[Tensor, "layer batch"]
    stream: Float[Tensor, " batch"]
    scale: Float[Tensor, " batch"]


def _split_batch(
    model: TransformerBridge,
    anatomy: ModelAnatomy,
    task: Task,
    pairs: PromptPairs,
    fitted: Ablation,
    names: Sequence[str],
    places: Sequence[tuple[int, int]],
    first: int,
) -> tuple[dict[str, Tensor], Tensor]:
    readout = answer_directions(model, pairs)
    stream: list[Tensor] = []
    whole = _worth(model, anatomy, task, pairs, readout, stream)
    rows: dict[str, list[Tensor]] = {}
    for name, (layer, head) in zip(names, places, strict=True):
        one = Ablation(fitted.spec.only(name), fitted.tables, fitted.model, fitted.reference)
        bound = one.bind(model, pairs, first_row=first)
        with ExitStack() as stack:
            stack.enter_context(restart_at(model, layer, stream[layer]))
            stack.enter_context(bound.installed(model))
            gone = _worth(model, anatomy, task, pairs, readout)
        # Blocks below were passed through: what they wrote is what they wrote.
        heads, mlps = gone.heads.clone(), gone.mlps.clone()
        heads[: layer * anatomy.n_heads] = whole.heads[: layer * anatomy.n_heads]
        mlps[:layer] = whole.mlps[:layer]
        own = layer * anatomy.n_heads + head
        changes = (whole.heads - heads) / whole.scale
        direct = changes[own].clone()
        changes[own] = 0
        found = {
            "total": whole.metric - gone.metric,
            "direct": direct,
            "by_heads": changes.sum(dim=0),
            "by_mlps": ((whole.mlps - mlps) / whole.scale).sum(dim=0),
            "by_norm": gone.stream * (1 / whole.scale - 1 / gone.scale),
            "gains": -changes,
        }
        for key, value in found.items():
            rows.setdefault(key, []).append(value.cpu())
    return {key: torch.stack(values) for key, values in rows.items()}, whole.metric.cpu()


def _worth(
    model: TransformerBridge,
    anatomy: ModelAnatomy,
    task: Task,
    pairs: PromptPairs,
    readout: Float[Tensor, "batch d_model"],
    stream: list[Tensor] | None = None,
) -> Worth:
    """One forward; `stream` is filled with the residual stream entering every block when given."""
    kinds = ["z", "resid_post", *([] if anatomy.attn_only else ["mlp_out"]), *([] if stream is None else ["resid_pre"])]
    run = record_run(model, pairs, kinds, n_tail=pairs.n_tail)
    if stream is not None:
        stream[:] = run.layers["resid_pre"]
    first = anatomy.n_layers - len(run.layers["z"])  # blocks that were passed through record nothing
    heads = torch.zeros(anatomy.n_layers * anatomy.n_heads, len(pairs), dtype=readout.dtype, device=readout.device)
    mlps = torch.zeros(anatomy.n_layers, len(pairs), dtype=readout.dtype, device=readout.device)
    for i, z in enumerate(run.layers["z"]):
        layer = first + i
        writes = head_writes(model, layer, at_ends(z, pairs)[:, None])[:, :, 0]
        heads[layer * anatomy.n_heads : (layer + 1) * anatomy.n_heads] = through_final_norm(model, writes, readout)
        if not anatomy.attn_only:
            mlps[layer] = through_final_norm(model, at_ends(run.layers["mlp_out"][i], pairs), readout)
    final = at_ends(run.layers["resid_post"][-1], pairs)
    return Worth(
        task.measure(run.logits, pairs),
        heads,
        mlps,
        through_final_norm(model, final, readout),
        final_scale(model, final),
    )
