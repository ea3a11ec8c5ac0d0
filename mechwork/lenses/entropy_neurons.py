"""Entropy neurons: neurons of the last layer that write where the unembedding hardly reads, and so act on the final
norm's scale alone.

With w a neuron's row of W_out (through the final norm's centring and gain) and U the unembedding:

    null share      |part of w in the `n_null` weakest left singular directions of U|^2 / |w|^2
    logit variance  variance over tokens of cos(w, U_t): small = no token is promoted
    total effect    mean |change of entropy| when the neuron has its mean activation
    direct effect   the same with the final norm's scale as it was: what goes through the logits' differences

    share through the norm = 1 - direct / total

(Stolfo et al. 2024: confidence regulation neurons.) Measured are the `n` neurons of largest |w|^2 x null share, and as
many others by lot. Entropy in bits. Cost: 1 forward of the text, and 3 readouts of it per measured neuron.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, check_whole
from ..models.anatomy import Norm, device_of, final_norm
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import place_name
from ..provenance import Provenance, build_provenance
from ..result import Result, Table, table_rows
from ..runs.record import check_task, record_run
from ..sites import Site
from ..tasks.task import Task
from .readout import BITS, Readout

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class EntropyNeuron:
    """One neuron; `by_lot`: whether it is one of the controls."""

    neuron: str
    norm: float
    null_share: float
    logit_variance: float
    total: float
    direct: float
    by_lot: bool

    @property
    def through_norm(self) -> float:
        """The share of the effect on entropy that goes through the norm's scale; NaN without an effect."""
        return 1 - self.direct / self.total if self.total > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class EntropyNeurons(Result, what="entropy neurons"):
    """Candidates first, then neurons by lot."""

    rows: tuple[EntropyNeuron, ...]
    n_null: int
    n_tokens: int
    provenance: Provenance = field(default_factory=dict)

    def through_norm(self, *, by_lot: bool) -> float:
        """Effects through the norm as a share of all effects, of the candidates or of the neurons by lot."""
        chosen = [row for row in self.rows if row.by_lot == by_lot]
        return 1 - sum(row.direct for row in chosen) / max(sum(row.total for row in chosen), 1e-30)

    def _table(self) -> Table:
        """One row per neuron."""
        share = [row.through_norm for row in self.rows]
        return [{**row, "through_norm": s} for row, s in zip(table_rows(self.rows), share, strict=True)]

    def __str__(self) -> str:
        n = sum(not row.by_lot for row in self.rows)
        lines = [
            (
                f"{n} neurons of largest null space ({self.n_null} directions), {self.n_tokens} tokens: "
                f"{self.through_norm(by_lot=False):.1%} of their effect on entropy goes through the final norm's "
                f"scale; as many by lot {self.through_norm(by_lot=True):.1%}"
            )
        ]
        lines += [
            f"  {row.neuron:<10} norm {row.norm:6.3f}  null {row.null_share:.3f}  logit variance "
            f"{row.logit_variance:.5f}  entropy {row.total:.5f} bits, direct {row.direct:.5f}"
            for row in self.rows
            if not row.by_lot
        ]
        return "\n".join(lines)


@borrows
def find_entropy_neurons(
    model: TransformerBridge, task: Task, *, n: int = 8, n_null: int | None = None, seed: int = 0
) -> EntropyNeurons:
    """The neurons of the last layer that act most by the null space of the unembedding, on a task's clean prompts.

    `n_null`: how many singular directions count as null (default: an eighth of d_model). Raises `InputError` for a
    model without a final norm or with a norm after its MLPs, without one MLP per layer, and for counts out of range.

    >>> print(find_entropy_neurons(model, task, n=4))
    """
    anatomy = check_task(model, task)
    anatomy.check_site(Site("mlp_post", 0))
    norm = final_norm(model)
    if norm is None or anatomy.norm_place != "pre":
        raise InputError(
            f"neurons act through the final norm's scale where there is one and none stands behind the MLP; got "
            f"{anatomy.architecture}"
        )
    layer = anatomy.n_layers - 1
    weight = model.blocks[layer].mlp.W_out.detach().double()
    n_null = max(1, anatomy.d_model // 8) if n_null is None else check_whole("n_null", n_null)
    if not 1 <= n_null < anatomy.d_model or not 1 <= check_whole("n", n) <= len(weight) // 2:
        raise InputError(
            f"null directions are 1 to {anatomy.d_model - 1} and neurons 1 to {len(weight) // 2} (as many by lot are "
            f"measured); got n_null={n_null}, n={n}"
        )
    through = norm.linear(weight, torch.ones_like(weight[:, :1])).double()
    W_U = model.W_U.detach().double()
    null_share = null_shares(through, W_U, n_null)
    score = weight.norm(dim=1).pow(2) * null_share
    best = score.argsort(descending=True)[:n].tolist()
    rest = torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed)).tolist()
    lots = [i for i in rest if i not in best][:n]
    cosines = torch.nn.functional.normalize(through[[*best, *lots]], dim=1) @ torch.nn.functional.normalize(W_U, dim=0)
    variance = cosines.var(dim=1, unbiased=False).tolist()
    pairs = task.pairs.to(device_of(model))
    run = record_run(model, pairs, [Site("resid_post", layer), Site("mlp_post", layer)], n_tail=1)
    stream, activations = run.layers["resid_post"][0][pairs.mask], run.layers["mlp_post"][0][pairs.mask]
    readout, scale = Readout.of(model), norm.scale(stream.to(norm.gain))
    plain = _entropy(readout.logits(stream))
    rows = []
    for spread, index in zip(variance, (*best, *lots), strict=True):
        own = activations[:, index]
        moved = stream + (own.mean() - own)[:, None] * weight[index].to(stream)
        total = (_entropy(readout.logits(moved)) - plain).abs().mean()
        frozen = _at_scale(model, norm, moved, scale)
        direct = (_entropy(frozen) - plain).abs().mean()
        rows.append(
            EntropyNeuron(
                place_name("mlp_post", {"neuron": f"m{layer}.n{index}"}), float(weight[index].norm()),
                float(null_share[index]), spread, float(total), float(direct), index in lots,
            )
        )  # fmt: skip
    facts = build_provenance(
        method="entropy neurons", model=identify_model(model), task=task.provenance(), n_null=n_null, seed=seed
    )
    return EntropyNeurons(tuple(rows), n_null, len(stream), facts)


def null_shares(
    w: Float[Tensor, "neuron d_model"], W_U: Float[Tensor, "d_model d_vocab"], n_null: int
) -> Float[Tensor, " neuron"]:
    """The share of each neuron's squared length in the `n_null` weakest left singular directions of the unembedding,
    which are eigenvectors of U U^T: no matrix as wide as the vocabulary twice.
    """
    weakest = torch.linalg.eigh(W_U @ W_U.T).eigenvectors[:, :n_null]
    return (torch.nn.functional.normalize(w, dim=1) @ weakest).pow(2).sum(dim=1)


def _entropy(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    logs = logits.double().log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1) * BITS


def _at_scale(
    model: TransformerBridge, norm: Norm, x: Float[Tensor, "n d_model"], scale: Float[Tensor, "n 1"]
) -> Float[Tensor, "n d_vocab"]:
    """Logits of `x` when the final norm divides by `scale` instead of its own."""
    normed = norm.linear(x, scale)
    if norm.bias is not None:
        normed = normed + norm.bias
    return model.adapter.apply_output_logits_transform(normed.to(model.W_U) @ model.W_U.detach() + model.b_U.detach())
