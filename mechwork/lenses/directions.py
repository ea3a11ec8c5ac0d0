"""What a direction of the residual stream says: the tokens it raises and lowers, through any lens.

    effect(v) = W_U^T (g * centre(P_l v))        P_l = the lens's linear part (identity for the logit lens), g the final
    norm's gain

in logits per unit of v over the final norm's scale: the direct path's linear effect, not the reading of v as if it were
a whole state. So it is odd (-v says the opposite) and linear, and a head's write, a neuron's output weights, a probe, a
steering or function vector and a sparse feature's decoder column are all read alike. Effects are centred over the
vocabulary, which the softmax cannot see.

MLP value vectors (Geva et al. 2022): each neuron's row of W_out as a token list. Singular directions: of W_V W_O by the
host's `FactoredMatrix`, of W_in and W_out; each has two ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models.anatomy import block_norm, final_norm, mlp_norm_name, read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from .lens import LOGIT_LENS, Lens
from .prompts import one_token, token_text
from .readout import Readout

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WEIGHTS = ("OV", "OV_in", "W_in", "W_out")


@dataclass(frozen=True, eq=False)
class DirectionReading(Result):
    """Per direction: the `k` tokens raised most and lowered most, with their effects in logits."""

    names: tuple[str, ...]
    raised_ids: Int[Tensor, "n k"]
    raised: Float[Tensor, "n k"]
    lowered_ids: Int[Tensor, "n k"]
    lowered: Float[Tensor, "n k"]
    texts: dict[int, str]
    lens: str
    provenance: Provenance

    def words(self, name: str | int, *, lowered: bool = False) -> list[tuple[str, float]]:
        """Tokens and effects of one direction, strongest first."""
        if isinstance(name, str) and name not in self.names:
            raise UnknownNameError("direction", name, self.names)
        i = self.names.index(name) if isinstance(name, str) else name
        ids, values = (self.lowered_ids, self.lowered) if lowered else (self.raised_ids, self.raised)
        return [(self.texts[t], v) for t, v in zip(ids[i].tolist(), values[i].tolist(), strict=True)]

    def promoting(self, text: str, *, lowered: bool = False) -> list[tuple[str, float]]:
        """The directions among whose tokens `text` is, strongest first."""
        found = [(name, dict(self.words(i, lowered=lowered)).get(text)) for i, name in enumerate(self.names)]
        return sorted(((name, value) for name, value in found if value is not None), key=lambda pair: -abs(pair[1]))

    def _table(self) -> Table:
        """One row per direction and token."""
        return [
            {"direction": name, "end": end, "order": order, "token": text, "logits": value}
            for i, name in enumerate(self.names)
            for end in ("raised", "lowered")
            for order, (text, value) in enumerate(self.words(i, lowered=end == "lowered"))
        ]

    def __str__(self) -> str:
        lines = [f"{self.lens}: tokens raised / lowered"]
        for i, name in enumerate(self.names[:12]):
            up, down = (", ".join(repr(text) for text, _ in self.words(i, lowered=low)[:6]) for low in (False, True))
            lines.append(f"{name:<16}{up}  /  {down}")
        return "\n".join([*lines, *(["..."] if len(self.names) > 12 else [])])


@borrows
@torch.no_grad()
def token_effects(
    model: TransformerBridge,
    vectors: Float[Tensor, "*batch d_model"],
    lens: Lens = LOGIT_LENS,
    site: Site | None = None,
) -> Float[Tensor, "*batch d_vocab"]:
    """The linear effect of directions on every logit, centred over the vocabulary, in at least float32. See the
    module's formula.
    """
    norm, weight = final_norm(model), model.W_U.detach()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    v = vectors.to(weight.device, dtype)
    v = v if site is None else lens.push(v, site)
    if norm is not None:
        v = norm.gain.to(dtype) * norm.centre(v)
    effects = v @ weight.to(dtype)
    return effects - effects.mean(dim=-1, keepdim=True)


@borrows
def read_directions(
    model: TransformerBridge,
    vectors: Float[Tensor, "*n d_model"],
    lens: Lens = LOGIT_LENS,
    *,
    site: Site | None = None,
    names: Sequence[str] = (),
    k: int = 10,
) -> DirectionReading:
    """The tokens that each of some directions ``[d_model]`` or ``[n, d_model]`` raises and lowers most.

    `site`: where in the stream the directions live; needed by every lens but the logit lens. Cost: one product with the
    unembedding, a few rows at a time. Raises `InputError` for another width, values that are not finite, or a missing
    site.
    """
    anatomy = read_anatomy(model)
    lens.check(model)
    if vectors.shape[-1] != anatomy.d_model or not bool(torch.isfinite(vectors).all()):
        raise InputError(
            f"directions are finite tensors [d_model] or [n, d_model] with d_model = {anatomy.d_model}; got "
            f"{tuple(vectors.shape)}"
        )
    if site is None and lens is not LOGIT_LENS:
        raise InputError(
            f"the {lens.name} reads each place in its own way: say where the directions live, e.g. "
            "site=Site('resid_pre', 3)"
        )
    rows = vectors.reshape(-1, anatomy.d_model)
    names = tuple(names) or tuple(f"direction {i}" for i in range(len(rows)))
    if len(names) != len(rows) or not 1 <= k <= anatomy.d_vocab or not len(rows):
        raise InputError(
            f"there are {len(rows)} directions and {len(names)} names; k is 1 to {anatomy.d_vocab}, got {k}"
        )
    ups, downs = [], []
    for part in Readout.of(model).chunks(len(rows)):
        effects = token_effects(model, rows[part], lens, site)
        ups.append(effects.topk(k, dim=-1))
        downs.append(effects.topk(k, dim=-1, largest=False))
    raised_ids, lowered_ids = (torch.cat([one.indices for one in found]).cpu() for found in (ups, downs))
    raised, lowered = (torch.cat([one.values for one in found]).cpu() for found in (ups, downs))
    texts = {i: token_text(model, i) for i in torch.cat([raised_ids, lowered_ids]).unique().tolist()}
    provenance = build_provenance(
        method="directions", lens=lens.name, site=None if site is None else str(site), model=identify_model(model)
    )
    return DirectionReading(names, raised_ids, raised, lowered_ids, lowered, texts, lens.name, provenance)


@borrows
def value_vectors(model: TransformerBridge, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """What each neuron of a layer writes per unit of its activation (behind a post-norm: its direction through that
    norm's gain).

    Raises `InputError` for layers without neurons.
    """
    anatomy = read_anatomy(model)
    anatomy.check_site(Site("mlp_post", layer))
    rows = model.blocks[layer].mlp.W_out.detach()
    norm = block_norm(model, layer, "ln2_post")
    return rows if norm is None else norm.gain * norm.centre(rows)


@borrows
def read_neurons(
    model: TransformerBridge, layer: int, neurons: Sequence[int] | None = None, lens: Lens = LOGIT_LENS, *, k: int = 10
) -> DirectionReading:
    """The token lists of the MLP value vectors of a layer (default: of all its neurons). Tuned lenses read them at the
    block's exit or the next entrance.
    """
    rows = value_vectors(model, layer)
    chosen = range(len(rows)) if neurons is None else neurons
    if not all(0 <= n < len(rows) for n in chosen):
        raise InputError(f"neurons of layer {layer} are 0 to {len(rows) - 1}; got {list(chosen)[:8]}")
    site = None if lens is LOGIT_LENS else place_after(model, lens, layer)
    return read_directions(model, rows[list(chosen)], lens, site=site, names=[f"m{layer}.n{n}" for n in chosen], k=k)


def place_after(model: TransformerBridge, lens: Lens, layer: int) -> Site | None:
    """The place at which what block `layer` writes is read by `lens`; None behind the last block, where nothing needs
    translating.
    """
    if layer == read_anatomy(model).n_layers - 1:
        return None if lens is LOGIT_LENS else Site(lens.kinds[0], layer)
    return Site("resid_post", layer) if "resid_post" in lens.kinds else Site(lens.kinds[0], layer + 1)


@borrows
def find_neurons(
    model: TransformerBridge, targets: Sequence[str | int], k: int = 20, lens: Lens = LOGIT_LENS
) -> list[tuple[str, float]]:
    """The `k` neurons of the whole model whose value vectors raise all of `targets` most: least effect over the
    targets, in units of the vector's own spread over the vocabulary. The step that picks neurons to steer a policy by
    what their token lists mean.
    """
    ids, scores, names = [one_token(model, target) for target in targets], [], []
    if not ids:
        raise InputError("name at least one target token")
    for layer in range(read_anatomy(model).n_layers):
        rows = value_vectors(model, layer)
        site = None if lens is LOGIT_LENS else place_after(model, lens, layer)
        for part in Readout.of(model).chunks(len(rows)):
            effects = token_effects(model, rows[part], lens, site)
            scores.append((effects[:, ids] / effects.std(dim=-1, keepdim=True).clamp(min=1e-30)).amin(dim=-1).cpu())
        names += [f"m{layer}.n{n}" for n in range(len(rows))]
    best = torch.cat(scores).topk(min(k, len(names)))
    return [(names[i], v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


@borrows
def singular_directions(
    model: TransformerBridge, weight: str, layer: int, head: int | None = None, n: int = 5
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """The `n` leading singular directions in the residual stream of a weight, and their singular values.

    ``"OV"``: what a head writes (``"OV_in"``: what it reads to write it); ``"W_out"``: what the MLP writes; ``"W_in"``:
    what it reads. Reading directions are through the gain of the norm before. Raises `UnknownNameError`, or
    `InputError` for heads that are not there.
    """
    from transformer_lens import FactoredMatrix

    anatomy = read_anatomy(model)
    if weight not in WEIGHTS:
        raise UnknownNameError("weight", weight, WEIGHTS)
    block = model.blocks[layer]
    if weight.startswith("OV"):
        anatomy.check_site(Site("z", layer, head))
        if head is None:
            raise InputError("OV belongs to a head; name it: head=0")
        before = block_norm(model, layer, "ln1")
        W_V = block.attn.W_V.detach()[head // anatomy.group_size]
        post = block_norm(model, layer, "ln1_post")
        W_O = block.attn.W_O.detach()[head]
        product = FactoredMatrix(_gained(W_V, before), W_O if post is None else post.gain * post.centre(W_O))
        left, values, right = product.U, product.S, product.V
        found = right if weight == "OV" else left
    else:
        anatomy.check_site(Site("mlp_post", layer))
        if weight == "W_out":
            left, values, right = torch.linalg.svd(value_vectors(model, layer).float(), full_matrices=False)
            found = right.T
        else:
            norm = block_norm(model, layer, mlp_norm_name(model, layer))
            found, values, _ = torch.linalg.svd(_gained(block.mlp.W_in.detach(), norm).float(), full_matrices=False)
    if not 1 <= n <= len(values):
        raise InputError(f"this weight has {len(values)} singular directions; got n={n}")
    return found[:, :n].T.contiguous(), values[:n]


def _gained(weight: Tensor, norm: object) -> Tensor:
    gain = getattr(norm, "gain", None)
    return weight if gain is None else gain[:, None] * weight


@borrows
def read_singular(
    model: TransformerBridge,
    weight: str,
    layer: int,
    head: int | None = None,
    *,
    n: int = 5,
    k: int = 10,
    lens: Lens = LOGIT_LENS,
) -> DirectionReading:
    """The singular directions of a weight as token lists; each direction's sign is arbitrary, so read both ends."""
    vectors, values = singular_directions(model, weight, layer, head, n)
    place = f"{weight} {layer}" if head is None else f"{weight} a{layer}.h{head}"
    reads = weight in ("OV_in", "W_in")
    site = None if lens is LOGIT_LENS else Site(lens.kinds[0], layer) if reads else place_after(model, lens, layer)
    names = [f"{place} #{i} ({float(s):.2f})" for i, s in enumerate(values)]
    return read_directions(model, vectors, lens, site=site, names=names, k=k)
