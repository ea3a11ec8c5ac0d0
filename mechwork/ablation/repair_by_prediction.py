"""How much of self-repair is copy suppression: later heads that attend less to a word because it is predicted less.

A head suppresses copies when its query reads what is predicted, and looks for that word in the prompt. Ablate an
earlier head that predicts the answer, and there is less to suppress: the later head writes more than it did, a repair.
To tell this from every other reason, the query at the last token reads the clean stream with one thing changed, its
part along the answer's unembedding (through the final norm's weights, less the vocabulary's mean), which becomes that
of the ablated run; keys and values stay clean:

    x' = x + ((x_ablated - x) . u) u,   gain by prediction = worth(write with the query of x') - worth(write)

summed over the heads of later blocks, beside their whole gain (`SelfRepair.gains`). Beside it stands the gain when a
change as long is put in along directions by lot. The question is that of McDougall et al. 2023 (arXiv:2310.04625), who
find 39 % of the self-repair of GPT-2 small on IOI; this split of it is ours. Cost: that of `study_self_repair`, and per
ablated head and later block (1 + `n_random`) * 2 forwards from that block on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import check_whole
from ..execute.memory import MemoryBudget
from ..interventions import Where, Write, intervene
from ..models.anatomy import device_of, read_anatomy
from ..models.borrow import borrows
from ..provenance import Provenance
from ..result import Result, Table
from ..runs.attention import parse_head
from ..runs.record import record_run
from ..runs.restart import restart_at
from ..runs.room import DEFAULT_BUDGET, prompts_that_fit
from ..runs.writes import answer_directions, at_ends, final_scale, head_writes, through_final_norm
from ..sites import Site
from ..statistics import bootstrap_interval
from ..tasks.pairs import END, PromptPairs
from ..tasks.task import Task
from .fitted import Ablation
from .record import position_mask
from .repair import study_self_repair
from .run import ensure_fitted
from .sets import Progress
from .spec import AblationSpec
from .suppression_weights import logit_directions

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class PredictionRepair(Result, what="repair by what is predicted", strongest="by_heads"):
    """Per ablated head and pair, in logits (positive = repairs): what the later heads write more (`by_heads`), what of
    it comes from reading the answer predicted less (`by_prediction`, of which each head's in `gains`), and from a
    change as long by lot.
    """

    ablated: tuple[str, ...]
    heads: tuple[str, ...]
    by_heads: Float[Tensor, "ablated batch"]
    by_prediction: Float[Tensor, "ablated batch"]
    by_lot: Float[Tensor, "ablated random batch"]
    gains: Float[Tensor, "ablated head batch"]
    repaired: Float[Tensor, "ablated batch"]
    provenance: Provenance = field(default_factory=dict)

    def share(self, head: str) -> float:
        """The part of the heads' repair of `head` that what is predicted explains; nan where they repair nothing."""
        row = self.ablated.index(head)
        whole = float(self.by_heads[row].mean())
        return float(self.by_prediction[row].mean()) / whole if whole > 0 else float("nan")

    def _table(self) -> Table:
        """One row per ablated head."""
        one = len(self.by_prediction[0]) == 1
        ends = [(math.nan, math.nan) if one else bootstrap_interval(row) for row in self.by_prediction]
        return {
            "head": self.ablated, "repaired": self.repaired.mean(dim=1).tolist(),
            "by_heads": self.by_heads.mean(dim=1).tolist(),
            "by_prediction": self.by_prediction.mean(dim=1).tolist(),
            "low": [float(low) for low, _ in ends], "high": [float(high) for _, high in ends],
            "by_lot": self.by_lot.mean(dim=(1, 2)).tolist(), "share": [self.share(head) for head in self.ablated],
        }  # fmt: skip

    def __str__(self) -> str:
        lines = []
        for row in self.to_dataframe().to_dict(orient="records"):
            share = f"{row['share']:.0%} of what they repair" if row["by_heads"] > 0 else "they repair nothing"
            lines.append(
                f"{row['head']}: later heads write {row['by_heads']:+.3f}; by what is predicted "
                f"{row['by_prediction']:+.3f} [{row['low']:.3f}, {row['high']:.3f}] ({share}); by lot "
                f"{row['by_lot']:+.3f}"
            )
        return "\n".join(lines)


@borrows
def explain_self_repair(
    model: TransformerBridge,
    task: Task,
    heads: Sequence[str],
    *,
    kind: str = "mean",
    reference: Task | None = None,
    n_random: int = 3,
    seed: int = 0,
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> PredictionRepair:
    """How much of the repair of each of `heads` is copy suppression (see the module).

    Raises `InputError` as `study_self_repair` does, and for `n_random` below 1.

    >>> print(explain_self_repair(model, task, ["a4.h1"]))
    """
    check_whole("n_random", n_random, least=1)
    common: dict[str, Any] = {"reference": reference, "memory_budget": memory_budget}
    whole = study_self_repair(model, task, heads, kind=kind, seed=seed, progress=progress, **common)
    fitted = ensure_fitted(model, task, AblationSpec(whole.ablated, kind, seed=seed), **common)
    streams = [Site("resid_post", layer) for layer in range(read_anatomy(model).n_layers)]
    size = prompts_that_fit(model, task.pairs, memory_budget, sites=streams * 4)
    batches = []
    for first in range(0, len(task), size):
        pairs = task.pairs[first : first + size].to(device_of(model))
        with torch.no_grad():
            clean = _Clean.of(model, pairs, n_random, seed)
            batches.append(torch.stack([clean.gains(fitted, whole.heads, name, first) for name in whole.ablated]))
        if progress is not None:
            progress(first + len(pairs), len(task), "measuring repair by what is predicted")
    found = torch.cat(batches, dim=-1)  # [ablated, direction, head, batch]
    return PredictionRepair(
        whole.ablated, whole.heads, -whole.by_heads, found[:, 0].sum(dim=1), found[:, 1:].sum(dim=2), found[:, 0],
        whole.repaired, {**whole.provenance, "method": "repair by what is predicted", "n_random": n_random},
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Clean:
    """The clean run, the directions that a query's input is moved along, and the worth of every head's write."""

    model: TransformerBridge
    pairs: PromptPairs
    streams: tuple[Float[Tensor, "batch pos d_model"], ...]
    towards: Float[Tensor, "direction batch d_model"]
    readout: Float[Tensor, "batch d_model"]
    scale: Float[Tensor, " batch"]
    worth: tuple[Float[Tensor, "head batch"], ...]

    @staticmethod
    def of(model: TransformerBridge, pairs: PromptPairs, n_random: int, seed: int) -> _Clean:
        run = record_run(model, pairs, ["z", "resid_pre", "resid_post"], n_tail=pairs.n_tail)
        readout = answer_directions(model, pairs)
        answers = logit_directions(model, pairs.correct[:, 0])
        draw = torch.randn(n_random, len(answers), answers.shape[1], generator=torch.Generator().manual_seed(seed))
        towards = torch.cat([answers[None], draw.to(answers)])
        worth = tuple(_worth(model, layer, z, pairs, readout) for layer, z in enumerate(run.layers["z"]))
        return _Clean(
            model, pairs, tuple(run.layers["resid_pre"]), towards / towards.norm(dim=-1, keepdim=True), readout,
            final_scale(model, at_ends(run.layers["resid_post"][-1], pairs)), worth,
        )  # fmt: skip

    def gains(
        self, fitted: Ablation, names: Sequence[str], ablated: str, first_row: int
    ) -> Float[Tensor, "direction head batch"]:
        """What each head writes more, per direction; zeros for heads that are not after the ablated one."""
        layer, _ = parse_head(read_anatomy(self.model), ablated)
        bound = Ablation(fitted.spec.only(ablated), fitted.tables, fitted.model, fitted.reference)
        with ExitStack() as stack:
            stack.enter_context(restart_at(self.model, layer, self.streams[layer]))
            stack.enter_context(bound.bind(self.model, self.pairs, first_row=first_row).installed(self.model))
            run = record_run(self.model, self.pairs, ["resid_pre"], n_tail=self.pairs.n_tail)
        n_layers, n_heads = len(self.streams), len(names) // len(self.streams)
        found = torch.zeros(len(self.towards), len(names), len(self.pairs), dtype=self.scale.dtype)
        moved = run.layers["resid_pre"][layer - n_layers :]  # the blocks below were passed through
        for later in range(layer + 1, n_layers):
            change = at_ends(moved[later - layer], self.pairs) - at_ends(self.streams[later], self.pairs)
            along = (change * self.towards[0]).sum(dim=-1)
            for row, direction in enumerate(self.towards):
                worth = self._worth_with(later, along[:, None] * direction)
                rows = slice(later * n_heads, (later + 1) * n_heads)
                found[row, rows] = ((worth - self.worth[later]) / self.scale).cpu()
        return found

    def _worth_with(self, layer: int, change: Float[Tensor, "batch d_model"]) -> Float[Tensor, "head batch"]:
        """The heads' worth when only the last token's query reads a changed stream."""
        stream = self.streams[layer]
        ends = position_mask(END, self.pairs, stream.shape[1]).to(stream.device)
        changed = stream + torch.where(ends[..., None], change[:, None], torch.zeros_like(change[:, None]))
        with restart_at(self.model, layer, changed):
            query = record_run(self.model, self.pairs, ["q"], n_tail=self.pairs.n_tail).layers["q"][-self._after(layer)]
        put = Write(Site("q", layer), Where(ends[..., None, None], query))
        with restart_at(self.model, layer, stream), intervene(self.model, [put]):
            z = record_run(self.model, self.pairs, ["z"], n_tail=self.pairs.n_tail).layers["z"][-self._after(layer)]
        return _worth(self.model, layer, z, self.pairs, self.readout)

    def _after(self, layer: int) -> int:
        """Blocks that run when a forward begins at `layer`."""
        return len(self.streams) - layer


def _worth(
    model: TransformerBridge, layer: int, z: Float[Tensor, "batch pos head d_head"], pairs: PromptPairs, readout: Tensor
) -> Float[Tensor, "head batch"]:
    """What each head's write at the last token is worth at scale 1."""
    return through_final_norm(model, head_writes(model, layer, at_ends(z, pairs)[:, None])[:, :, 0], readout)
