"""Where two models come apart on the same prompts: base against tuned, one step of training against another.

column | per layer and kind of site, mean over pairs:

- `distance` | 2 |a - b| / (|a| + |b|), mean over the prompt's tokens: 0 the same, 2 opposite
- `cosine` | of a and b, mean over the prompt's tokens; 1 where both are zero, 0 where one is
- `kl` | KL(p_A || p_B) in nats at the last token, each stream read through its own model's final norm and unembedding
  (residual stream only)
- `null`, `null_kl` | the largest `distance` and `kl` of model A from itself with noise as large as B - A in every
  parameter, over `n_null` draws
- `weights` | |W_B - W_A| / |W_A| over the parameters of the block

A layer is over the null when `distance` is larger than with every draw of noise: what B has there is more than a change
of that size makes by itself. `first_layer` is the first such layer of the residual stream, `first_read` the first whose
`kl` is over its null. Intervals: bootstrap over pairs. Cost: 1 forward of each model and `n_null` forwards of A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..lenses import Readout
from ..models.anatomy import device_of, read_anatomy
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table, table_rows
from ..runs.record import read_columns, record_run
from ..runs.room import prompts_that_fit
from ..sites import SITE_KINDS, Site
from ..statistics import kl_nats
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .match import check_same
from .noise import distinct_parameters, weight_distances, with_noise

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

STREAM = "resid_post"


@dataclass(frozen=True)
class DivergenceRow:
    """One layer and kind of site."""

    kind: str
    layer: int
    distance: float
    interval: tuple[float, float]
    cosine: float
    null: float
    kl: float | None
    null_kl: float | None
    weights: float

    @property
    def over_null(self) -> bool:
        """Whether the models differ more here than any draw of noise makes them."""
        return self.distance > self.null


@dataclass(frozen=True, eq=False)
class Divergence(Result):
    """All rows, in the order of the layers; `metric` and `accuracy` are (A, B) on the task."""

    rows: tuple[DivergenceRow, ...]
    names: tuple[str, str]
    task_name: str
    metric: tuple[float, float]
    output_kl: float
    n_pairs: int
    n_null: int
    provenance: Provenance

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.kind for row in self.rows))

    def of(self, kind: str) -> tuple[DivergenceRow, ...]:
        """The rows of a kind, by layer."""
        return tuple(row for row in self.rows if row.kind == kind)

    @property
    def first_layer(self) -> int | None:
        """The first layer after which the residual stream is over the null; None when it never is."""
        return next((row.layer for row in self.of(STREAM) if row.over_null), None)

    @property
    def first_read(self) -> int | None:
        """The first layer after which the stream's reading (`kl`) is over its null; None when it never is."""
        rows = self.of(STREAM)
        return next((r.layer for r in rows if r.kl is not None and r.null_kl is not None and r.kl > r.null_kl), None)

    def _table(self) -> Table:
        """One row per layer and kind."""
        return table_rows(self.rows, "over_null")

    def __str__(self) -> str:
        a, b = self.names
        first, read = (
            "nowhere over the null" if layer is None else f"over the null from layer {layer} on"
            for layer in (self.first_layer, self.first_read)
        )
        lines = [
            (
                f"{a} and {b} on {self.task_name}, {self.n_pairs} prompts: metric {self.metric[0]:.3f} and "
                f"{self.metric[1]:.3f}, "
                f"KL of their outputs {self.output_kl:.4g} nats; distance {first}, KL {read}"
            ),
            (
                f"{'site':<14}{'distance':>9}  "
                f"{'95 % interval':<16}{'null':>8}{'cosine':>8}{'KL':>9}{'null KL':>9}{'weights':>9}"
            ),
        ]
        for row in self.rows:
            kl = " " * 18 if row.kl is None or row.null_kl is None else f"{row.kl:9.4f}{row.null_kl:9.4f}"
            mark = " over" if row.over_null else ""
            lines.append(
                f"{f'{row.kind}.{row.layer}':<14}{row.distance:9.4f}  [{row.interval[0]:6.4f}, "
                f"{row.interval[1]:6.4f}]{row.null:8.4f}"
                f"{row.cosine:8.4f}{kl}{row.weights:9.4f}{mark}"
            )
        return "\n".join(lines)


def find_divergence(
    model_a: TransformerBridge,
    model_b: TransformerBridge,
    task: Task,
    *,
    kinds: Sequence[str] | None = None,
    n_null: int = 5,
    names: tuple[str, str] = ("A", "B"),
    seed: int = 0,
) -> Divergence:
    """Compare two models of one anatomy at every layer of `kinds` on the task's clean prompts.

    Default: resid_post, attn_out, mlp_out, without those that are zero at every token of both models.

    Raises `InputError` for models that differ in anatomy, vocabulary or parameters, or kinds without one vector per
    token.

    >>> found = find_divergence(base, tuned, task)
    >>> found.first_layer
    """
    anatomy = check_same(model_a, model_b, task)
    usual = [kind for kind in (STREAM, "attn_out", "mlp_out") if anatomy.has_site(kind)]
    chosen = list(dict.fromkeys([STREAM, *kinds])) if kinds is not None else usual
    for kind in chosen:
        if (
            not anatomy.has_site(kind)
            or SITE_KINDS[kind].axes[:2] != ("batch", "pos")
            or not SITE_KINDS[kind].per_layer
        ):
            raise InputError(f"models are compared at kinds with a vector per token in every layer; got {kind!r}")
    if n_null < 1:
        raise InputError(f"the null needs a draw of noise or more; got n_null={n_null}")
    sizes = weight_distances(model_a, model_b)
    found = _compare(model_a, model_b, task, chosen)
    if kinds is None:  # a block whose MLP writes nothing but zeros has none
        chosen = [kind for kind in chosen if kind == STREAM or kind in found.heard]
    null = _null(model_a, task, chosen, sizes, n_null, seed)
    weights = _by_layer(model_a, sizes, anatomy.n_layers)
    rows = [
        DivergenceRow(
            kind=kind,
            layer=layer,
            distance=float(found.distances[kind][layer].mean()),
            interval=_interval(found.distances[kind][layer], seed),
            cosine=float(found.cosines[kind][layer].mean()),
            null=float(null[kind][layer]),
            kl=float(found.kl[layer].mean()) if kind == STREAM else None,
            null_kl=float(null["kl"][layer]) if kind == STREAM else None,
            weights=weights[layer],
        )
        for kind in chosen
        for layer in range(anatomy.n_layers)
    ]
    provenance = build_provenance(
        method="divergence", models=[identify_model(model) for model in (model_a, model_b)], task=task.provenance(),
        n_null=n_null, seed=seed,
    )  # fmt: skip
    return Divergence(
        tuple(rows), names, task.name, found.metric, float(found.output_kl.mean()), len(task), n_null, provenance
    )


def _at_a_time(models: Sequence[TransformerBridge], task: Task, kinds: Sequence[str], n_tail: int | None) -> int:
    """Pairs of which two runs are held: of both models, or of one with and without noise."""
    kept = [[Site(kind, i) for i in range(read_anatomy(model).n_layers) for kind in kinds] for model in models]
    each = zip(models, kept, strict=True)
    return min(prompts_that_fit(model, task.pairs, sites=2 * sites, n_tail=n_tail) for model, sites in each)


@torch.no_grad()
def _null(
    model: TransformerBridge, task: Task, kinds: Sequence[str], sizes: dict[str, float], n_null: int, seed: int
) -> dict[str, Float[Tensor, " layer"]]:
    """The largest mean distance of every kind, and the largest mean KL of the stream's readings, over draws of
    noise.
    """
    readout = Readout.of(model)
    largest: dict[str, Tensor] = {}
    for draw in range(n_null):
        parts: dict[str, list[Tensor]] = {name: [] for name in (*kinds, "kl")}
        for pairs in task.pairs.batches(_at_a_time([model], task, kinds, 1)):
            plain = record_run(model, pairs.to(device_of(model)), kinds, n_tail=1)
            log_p = readout.log_probabilities(_at_end(plain[STREAM], pairs))
            with with_noise(model, sizes, seed + draw):
                noisy = record_run(model, pairs.to(device_of(model)), kinds, n_tail=1)
                log_q = readout.log_probabilities(_at_end(noisy[STREAM], pairs))
            for kind in kinds:
                parts[kind].append(_distance(plain[kind], noisy[kind], pairs)[0])
            parts["kl"].append(kl_nats(log_p, log_q).clamp(min=0).cpu())
        for name, values in parts.items():
            mean = torch.cat(values, dim=1).mean(dim=1).double()
            largest[name] = mean if name not in largest else torch.maximum(largest[name], mean)
    return largest


def _at_end(x: Float[Tensor, "layer batch pos d_model"], pairs: PromptPairs) -> Float[Tensor, "layer batch d_model"]:
    return x[:, torch.arange(len(pairs)), pairs.lengths.cpu() - 1]


@dataclass(frozen=True, eq=False)
class _Compared:
    """Per layer and pair; `heard` are the kinds that are not zero everywhere."""

    heard: frozenset[str]
    distances: dict[str, Float[Tensor, "layer batch"]]
    cosines: dict[str, Float[Tensor, "layer batch"]]
    kl: Float[Tensor, "layer batch"]
    output_kl: Float[Tensor, " batch"]
    metric: tuple[float, float]


@torch.no_grad()
def _compare(model_a: TransformerBridge, model_b: TransformerBridge, task: Task, kinds: Sequence[str]) -> _Compared:
    distances: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    cosines: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    kl, output, metrics, heard = [], [], ([], []), set[str]()
    readouts = [Readout.of(model) for model in (model_a, model_b)]
    for pairs in task.pairs.batches(_at_a_time([model_a, model_b], task, kinds, None)):
        tail = read_columns(task, pairs)
        runs = [record_run(model, pairs.to(device_of(model)), kinds, n_tail=tail) for model in (model_a, model_b)]
        for kind in kinds:
            distance, cosine = _distance(runs[0][kind], runs[1][kind], pairs)
            distances[kind].append(distance)
            cosines[kind].append(cosine)
            if any(bool(run[kind].any()) for run in runs):
                heard.add(kind)
        at_end = [_at_end(run[STREAM], pairs) for run in runs]
        log_p, log_q = (readout.log_probabilities(x).cpu() for readout, x in zip(readouts, at_end, strict=True))
        kl.append(kl_nats(log_p, log_q).clamp(min=0))
        ends = [_log_softmax(pairs.final(run.logits)).cpu() for run in runs]
        output.append(kl_nats(*ends).clamp(min=0))
        for values, run in zip(metrics, runs, strict=True):
            values.append(task.measure(run.logits, pairs.to(run.logits.device)).cpu())
    return _Compared(
        frozenset(heard),
        {kind: torch.cat(parts, dim=1) for kind, parts in distances.items()},
        {kind: torch.cat(parts, dim=1) for kind, parts in cosines.items()},
        torch.cat(kl, dim=1),
        torch.cat(output),
        (float(torch.cat(metrics[0]).mean()), float(torch.cat(metrics[1]).mean())),
    )


def _distance(
    a: Float[Tensor, "layer batch pos ..."], b: Float[Tensor, "layer batch pos ..."], pairs: PromptPairs
) -> tuple[Tensor, Tensor]:
    """(distance, cosine) per layer and pair, averaged over the real tokens."""
    a, b = a.flatten(3).cpu().double(), b.flatten(3).cpu().double()
    sizes = a.norm(dim=-1), b.norm(dim=-1)
    tiny = torch.finfo(a.dtype).tiny
    distance = 2 * (a - b).norm(dim=-1) / (sizes[0] + sizes[1]).clamp(min=tiny)
    product = sizes[0] * sizes[1]
    alike = ((sizes[0] == 0) & (sizes[1] == 0)).double()
    cosine = torch.where(product > 0, (a * b).sum(dim=-1) / product.clamp(min=tiny), alike)
    mask = pairs.mask.cpu().double()
    share = mask / mask.sum(dim=1, keepdim=True)
    return (distance * share).sum(dim=-1), (cosine * share).sum(dim=-1)


def _log_softmax(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def _interval(values: Float[Tensor, " batch"], seed: int, n: int = 1000) -> tuple[float, float]:
    """95 % bootstrap over pairs."""
    rows = torch.randint(len(values), (n, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values[rows].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def _by_layer(model: TransformerBridge, sizes: dict[str, float], n_layers: int) -> list[float]:
    """Of every block, |W_B - W_A| / |W_A|, its parameters taken together."""
    owner = {id(parameter): layer for layer in range(n_layers) for parameter in model.blocks[layer].parameters()}
    change, own = [0.0] * n_layers, [0.0] * n_layers
    for name, parameter in distinct_parameters(model).items():
        layer = owner.get(id(parameter))
        if layer is not None:
            change[layer] += sizes[name] ** 2
            own[layer] += float(parameter.detach().cpu().double().norm()) ** 2
    return [(c / max(o, 1e-300)) ** 0.5 for c, o in zip(change, own, strict=True)]
