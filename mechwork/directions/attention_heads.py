"""Which heads to steer by where they look: the profile that attention steering starts from (PASTA: Zhang et al. 2024,
model profiling).

    gain(head) = m(model with this head alone highlighting a span) - m(model), mean over pairs

PASTA takes the heads that gain most on several tasks at once; here it is one task, and the result says the gain of
each.

And whether a circuit can be repaired by hand: heads that do their work on one task and look elsewhere on another are
made to look where they should (Merullo et al. 2024, arXiv:2310.08744, section 5), beside other heads that look there
and the same heads looking somewhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, check_whole
from ..interventions import aim_attention, intervene, reweigh_attention
from ..models.anatomy import ModelAnatomy, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import head_name, parse_head
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, metric_of, run_to_metric
from ..shapes import PositionMask
from ..sites import Site
from ..statistics import bootstrap_interval
from ..tasks.metrics import accuracy
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class HeadGain:
    """One head, and what highlighting in it alone adds to the mean metric."""

    head: str
    gain: float


@borrows
def rank_attention_heads(
    model: TransformerBridge,
    task: Task,
    span: str,
    *,
    factor: float | None = 100.0,
    heads: Sequence[str] | None = None,
    corrupt: bool = True,
) -> list[HeadGain]:
    """Heads by what it gains to look `factor` times more at `span`, on the corrupt (or clean) prompts; most first.

    With ``factor=None`` a head looks at nothing else, from the last token alone, as in `study_attention_repair`.

    Cost: 1 forward, and 1 per head (default: all heads). Raises `InputError` for a span that the prompts do not have,
    or a model whose attention cannot be written.

    >>> best = [row.head for row in rank_attention_heads(model, task.train, "IO")[:4]]
    """
    anatomy = check_task(model, task)
    pairs = (task.pairs.corrupt_as_host() if corrupt else task.pairs).to(device_of(model))
    if span not in pairs.spans:
        raise InputError(f"task {task.name!r} has the spans {', '.join(pairs.spans) or '(none)'}; got {span!r}")
    every, keys = _every_head(anatomy), pairs.spans[span]
    with torch.no_grad():
        plain = float(metric_of(model, task, pairs).mean())
        found = []
        for head in heads if heads is not None else every:
            if factor is None:
                writes = aim_attention([head], keys, queries=_ends(pairs))
            else:
                writes = reweigh_attention([head], keys, factor=factor)
            with intervene(model, writes):
                found.append(HeadGain(head, float(metric_of(model, task, pairs).mean()) - plain))
    return sorted(found, key=lambda row: -row.gain)


@dataclass(frozen=True, eq=False)
class AttentionRepair(Result, what="repair of attention"):
    """The task's metric and accuracy with some heads made to look at some keys: `plain` and `repaired` ``[batch]``,
    each head `alone` ``[head, batch]``, and the controls ``[random, batch]``.
    """

    heads: tuple[str, ...]
    keys: str
    plain: Float[Tensor, " batch"]
    repaired: Float[Tensor, " batch"]
    alone: Float[Tensor, "head batch"]
    other_heads: Float[Tensor, "random batch"]
    other_keys: Float[Tensor, "random batch"]
    accuracies: dict[str, float]
    metric_name: str
    provenance: Provenance = field(default_factory=dict)

    def _table(self) -> Table:
        """One row per way: the model as it is, repaired, each head alone, the controls."""
        ways = ("plain", "repaired", *(f"{head} alone" for head in self.heads), "other heads", "other keys")
        values = (self.plain, self.repaired, *self.alone, self.other_heads.mean(dim=0), self.other_keys.mean(dim=0))
        rows = dict(zip(ways, values, strict=True))
        ends = [bootstrap_interval(row) if len(row) > 1 else (torch.nan, torch.nan) for row in rows.values()]
        return {
            "way": list(rows), "metric": [float(row.mean()) for row in rows.values()],
            "low": [float(low) for low, _ in ends], "high": [float(high) for _, high in ends],
            "accuracy": [self.accuracies[name] for name in rows],
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{', '.join(self.heads)} look at {self.keys} from the last token; {self.metric_name}, accuracy"]
        for row in self.to_dataframe().to_dict(orient="records"):
            spread = f"[{row['low']:.2f}, {row['high']:.2f}]"
            lines.append(f"{row['way']:<14}{row['metric']:8.2f}  {spread:<18}{row['accuracy']:6.2f}")
        return "\n".join(lines)


@borrows
def study_attention_repair(
    model: TransformerBridge,
    task: Task,
    heads: Sequence[str],
    keys: str | PositionMask,
    *,
    n_random: int = 10,
    seed: int = 0,
) -> AttentionRepair:
    """Make `heads` look at `keys` alone from the last clean token: does the model do the task then?

    `keys`: a span of the task, ``"correct"`` or ``"incorrect"`` (where an answer stands in the prompt), or a mask
    ``[batch, pos]``. Controls: as many other heads by lot, of the same layers where they have enough, and the same
    heads looking at as many other positions of each prompt. Choose the heads on other pairs than these. Cost:
    2 + heads + 2 `n_random` forwards.

    Raises `InputError` for heads that are not there or named twice, a span that the task does not have, prompts without
    such a position, or a model whose attention cannot be written.

    >>> print(study_attention_repair(model, task.test, ["a1.h0", "a1.h3"], "IO", n_random=2))
    """
    anatomy = check_task(model, task)
    check_whole("n_random", n_random, least=1)
    every = _every_head(anatomy)
    chosen = tuple(heads)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(every):
        raise InputError(f"heads are some of {every[0]} to {every[-1]}, every one once; got {list(chosen)}")
    anatomy.check_writable(Site("attn_scores", 0))
    pairs = task.pairs.to(device_of(model))
    name = keys if isinstance(keys, str) else "the given keys"
    look = _keys_of(task, pairs, keys)
    ends = _ends(pairs)
    generator = torch.Generator().manual_seed(seed)
    layers = {parse_head(head)[0] for head in chosen}
    rest = [head for head in every if head not in chosen]
    near = [head for head in rest if parse_head(head)[0] in layers]
    pool = near if len(near) >= 2 * len(chosen) else rest
    if len(pool) < len(chosen):
        raise InputError(f"the control takes {len(chosen)} other heads, and this model has {len(pool)}; name fewer")

    def run(which: Sequence[str], where: PositionMask) -> tuple[Tensor, float]:
        with torch.no_grad(), intervene(model, aim_attention(which, where, queries=ends)):
            logits = run_to_metric(model, task, pairs)
        return task.measure(logits, pairs).cpu(), float(accuracy(logits, pairs).double().mean())

    found: dict[str, list[tuple[Tensor, float]]] = {
        "plain": [run((), look)],
        "repaired": [run(chosen, look)],
        **{f"{head} alone": [run([head], look)] for head in chosen},
        "other heads": [
            run([pool[i] for i in torch.randperm(len(pool), generator=generator)[: len(chosen)].tolist()], look)
            for _ in range(n_random)
        ],
        "other keys": [run(chosen, _others(pairs, look, generator)) for _ in range(n_random)],
    }
    values = {way: torch.stack([row for row, _ in rows]) for way, rows in found.items()}
    return AttentionRepair(
        chosen,
        name,
        values["plain"][0],
        values["repaired"][0],
        torch.cat([values[f"{head} alone"] for head in chosen]),
        values["other heads"],
        values["other keys"],
        {way: sum(share for _, share in rows) / len(rows) for way, rows in found.items()},
        task.metric.name,
        build_provenance(
            method="repair of attention", heads=list(chosen), keys=name, n_random=n_random, seed=seed,
            model=identify_model(model), task=task.provenance(),
        ),
    )  # fmt: skip


def _every_head(anatomy: ModelAnatomy) -> list[str]:
    return [head_name(layer, head) for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads)]


def _ends(pairs: PromptPairs) -> Bool[Tensor, "batch pos"]:
    """The last token of every prompt."""
    columns = torch.arange(pairs.mask.shape[1], device=pairs.mask.device)
    return columns == pairs.lengths[:, None].to(columns.device) - 1


def _keys_of(task: Task, pairs: PromptPairs, keys: str | PositionMask) -> Bool[Tensor, "batch pos"]:
    """The positions meant by `keys`, at least one of every prompt before its end."""
    if not isinstance(keys, str):
        found = keys.to(pairs.mask.device) & pairs.mask if keys.shape == pairs.mask.shape else None
    elif keys in ("correct", "incorrect"):
        answers = getattr(pairs, keys)
        found = (pairs.clean_tokens[:, :, None] == answers[:, None]).any(dim=-1) & pairs.mask
    elif keys in pairs.spans:
        found = pairs.spans[keys].to(pairs.mask.device)
    else:
        known = ", ".join((*pairs.spans, "correct", "incorrect"))
        raise InputError(f"task {task.name!r} has the keys {known}; got {keys!r}")
    if found is None or not bool(found.any(dim=1).all()):
        wrong = "its shape" if found is None else f"prompt {int((~found.any(dim=1)).nonzero()[0])} without one"
        raise InputError(
            f"keys are positions ``[batch, pos]`` {tuple(pairs.mask.shape)}, some of every prompt; {wrong}"
        )
    return found


def _others(pairs: PromptPairs, look: PositionMask, generator: torch.Generator) -> Bool[Tensor, "batch pos"]:
    """As many other positions of every prompt (as there are) by lot."""
    order = torch.rand(look.shape, generator=generator).to(look.device).masked_fill(look | ~pairs.mask, 2.0)
    rank = order.argsort(dim=1).argsort(dim=1)
    return (rank < look.sum(dim=1, keepdim=True)) & ~look & pairs.mask
