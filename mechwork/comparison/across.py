"""Activations of one model patched into another: which part of what the second can do is in the activations of which
place.

    effect = m(host with the donor's activation at the site) - m(host),   the same prompts in both models
    share  = effect / (m(donor) - m(host)):   1 where the donor's activation makes the host do as well as the donor

With a base model as host and a tuned one as donor it says where the tuning took effect (Prakash et al. 2024,
cross-model activation patching). A residual stream that is all the donor's is read by the host's later layers, so the
share falls short of 1 as far as those differ too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..interventions import Chosen, Value, Write, intervene
from ..models.anatomy import ModelAnatomy
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..runs.record import Baseline, metric_of, read_columns, record_run
from ..sites import SITE_KINDS, SQUARE_KINDS, Site, site_kind
from ..tasks.task import Task
from .match import check_same

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class AcrossRow(Readable):
    """One site (or head): mean effect and its share of the difference between the models."""

    site: Site
    effect: float
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class AcrossModels(Result):
    """Rows in the order of the sites; `baseline`: host as corrupt, donor as clean."""

    rows: tuple[AcrossRow, ...]
    task_name: str
    position: str
    baseline: Baseline
    provenance: Provenance

    def best(self, n: int = 5) -> tuple[AcrossRow, ...]:
        """The rows with the largest share."""
        return tuple(sorted(self.rows, key=lambda row: -row.share)[:n])

    def __str__(self) -> str:
        lines = [
            (
                f"{self.task_name}, {self.position}: metric {self.baseline.corrupt:.3f} of the host (share 0), "
                f"{self.baseline.clean:.3f} of the donor (1)"
            ),
            f"{'site':<16}{'effect':>9}{'share':>8}  95 % interval",
        ]
        lines += [
            f"{row.site!s:<16}{row.effect:9.3f}{row.share:8.3f}  [{row.interval[0]:.3f}, {row.interval[1]:.3f}]"
            for row in self.rows
        ]
        return "\n".join(lines)


def patch_across(
    host: TransformerBridge,
    donor: TransformerBridge,
    task: Task,
    sites: Sequence[str | Site] = ("resid_post", "attn_out", "mlp_out"),
    *,
    position: str = "all",
    corrupt: bool = False,
    seed: int = 0,
) -> AcrossModels:
    """The donor's activations of the same prompts written into the host's run, one site at a time.

    `sites`: kinds (all layers; z, q, k and v head by head) or single sites. `position`: "all", or a span. `corrupt`: on
    the corrupt prompts.
    Cost: 1 forward of each model, and 1 of the host per site.

    Raises `InputError` for models of different anatomy, sites that cannot be written or a span that is not there;
    `MetricError` when the two models have the same metric.

    >>> patch_across(base, tuned, task).best()
    """
    anatomy = check_same(host, donor, task)
    pairs = task.pairs.corrupt_as_host() if corrupt else task.pairs
    places = [place for site in sites for place in _places(anatomy, site)]
    if not places:
        raise InputError("name one site or more")
    for place in places:
        anatomy.check_writable(place)
    where = None
    if position != "all":
        if position not in pairs.spans:
            raise InputError(
                f"position is 'all' or one of the spans {', '.join(pairs.spans) or '(none)'}; got {position!r}"
            )
        if any("pos" not in SITE_KINDS[place.kind].axes for place in places):
            raise InputError(f"{', '.join(SQUARE_KINDS)} have two positions and are patched with position='all'")
        where = pairs.spans[position]
    kinds = list(dict.fromkeys(place.kind for place in places))
    theirs = record_run(donor, pairs, kinds, n_tail=read_columns(task, pairs))
    with torch.no_grad():
        plain = metric_of(host, task, pairs).cpu()
    baseline = Baseline(task.measure(theirs.logits, pairs.to(theirs.logits.device)).cpu(), plain)
    gap = baseline.require_gap()
    rows: list[AcrossRow] = []
    for place in places:
        value = theirs.layers[place.kind][place.layer or 0]
        if place.head is not None:
            value = value.select(SITE_KINDS[place.kind].axes.index("head"), place.head)
        put = Value(value) if where is None else Chosen(Value(value), where)
        with torch.no_grad(), intervene(host, [Write(place, put)]):
            reached = metric_of(host, task, pairs).cpu()
        effect = float((reached - plain).mean())
        rows.append(AcrossRow(place, effect, effect / gap, _interval(reached - plain, baseline, seed)))
    provenance = build_provenance(
        method="patching across models", host=identify_model(host), donor=identify_model(donor), task=task.provenance(),
        position=position, corrupt=corrupt,
    )  # fmt: skip
    return AcrossModels(tuple(rows), task.name, position, baseline, provenance)


def _places(anatomy: ModelAnatomy, site: str | Site) -> list[Site]:
    if isinstance(site, Site):
        return [site]
    if site in ("attn_out", "mlp_out") and not anatomy.has_site(site):
        return []
    kind = site_kind(site)
    if not kind.per_layer:
        return [Site(site)]
    anatomy.check_site(Site(site, 0))
    heads: list[int | None] = [None]
    if kind.per_head:
        heads = list(range(anatomy.n_kv_heads if site in ("k", "v") else anatomy.n_heads))
    return [Site(site, layer, head) for layer in range(anatomy.n_layers) for head in heads]


def _interval(effects: Tensor, baseline: Baseline, seed: int, n: int = 1000) -> tuple[float, float]:
    """95 % bootstrap over pairs of the share, numerator and denominator resampled together."""
    rows = torch.randint(len(effects), (n, len(effects)), generator=torch.Generator().manual_seed(seed))
    gaps = (baseline.clean_per_example - baseline.corrupt_per_example)[rows].double().mean(dim=1)
    shares = effects[rows].double().mean(dim=1) / gaps
    low, high = shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
