"""A head's circuits between tokens: what it makes of a token it looks at (OV), and which token looks at which (QK).

    OV[s, t] = effect on logit t of attending to token s:  norm1(e_s) W_V W_O -> final gain -> W_U      (row s, centred)
    QK[q, s] = attention score of token q's state for token s's state, at one position (relative distance zero)

e_s is the token's state as a head at that depth meets it: its embedding in block 0, and from block 1 on what block 0
makes of the token alone (Wang et al. 2023 and McDougall et al. 2023 take MLP_0 of the embedding, which is its main
part). Scores:

score | definition:

- `copying` | sum of the OV circuit's eigenvalues' real parts over the sum of their sizes, in [-1, 1] (Elhage et al.
  2021)
- `copies` | share of tokens s with OV[s, s] among the k highest of row s
- `suppresses` | the same among the k lowest: McDougall et al. 2023, section 3.1 (84.7 % at k = 10 for L10H7 of GPT-2
  small)
- `attends_to_predicted` | share of tokens s whose key is among the k highest for the query made from s's *unembedding*
  direction (section 3.2): the head looks for what is about to be said

Chance is k / d_vocab for the three shares. Biases that are the same for all tokens of a row are left out of OV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import Norm, block_norm, device_of, final_norm, read_anatomy, read_norm
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import head_name
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from ..tasks.encode import prepends_bos
from .prompts import one_token, token_text
from .readout import Readout
from .states import record_states

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

VOCABULARY_SLICE = 512
"""Tokens per forward when their states are made."""


@dataclass(frozen=True, eq=False)
class HeadCircuits(Result):
    """Token-token tables of one head over `tokens`, and its scores over the whole vocabulary (see the module's
    table).
    """

    head: str
    tokens: Int[Tensor, " n"]
    ov: Float[Tensor, "n n"]
    qk: Float[Tensor, "n n"]
    top_ids: Int[Tensor, "n k"]
    bottom_ids: Int[Tensor, "n k"]
    copying: float
    copies: float
    suppresses: float
    attends_to_predicted: float
    k: int
    d_vocab: int
    texts: dict[int, str]
    provenance: Provenance

    @property
    def chance(self) -> float:
        """What the three shares are for a head without any preference."""
        return self.k / self.d_vocab

    def _table(self) -> Table:
        """One row per pair of tokens."""
        names = [self.texts[i] for i in self.tokens.tolist()]
        return [
            {"source": a, "other": b, "ov": float(self.ov[i, j]), "qk": float(self.qk[i, j])}
            for i, a in enumerate(names)
            for j, b in enumerate(names)
        ]

    def __str__(self) -> str:
        lines = [
            (
                f"{self.head}: copying {self.copying:+.3f}; OV diagonal among the {self.k} highest for "
                f"{self.copies:.1%} of tokens, among the lowest for "
                f"{self.suppresses:.1%}; looks for the predicted token in {self.attends_to_predicted:.1%} (chance "
                f"{self.chance:.1%})"
            )
        ]
        for i, token in enumerate(self.tokens.tolist()[:8]):
            up, down = (
                ", ".join(repr(self.texts[t]) for t in ids[i].tolist()[:5]) for ids in (self.top_ids, self.bottom_ids)
            )
            lines.append(f"{self.texts[token]!r:<16} raises {up}  lowers {down}")
        return "\n".join(lines)


@borrows
@torch.no_grad()
def read_head(
    model: TransformerBridge, layer: int, head: int, tokens: Sequence[str | int] = (), *, k: int = 10
) -> HeadCircuits:
    """The OV and QK circuits of one head between `tokens` (default: none), and its scores over the vocabulary.

    Cost: one forward of every token alone, one product ``[d_vocab, d_head] x [d_head, d_vocab]`` each for OV and QK, a
    few rows at a time. Raises `InputError` for heads that are not there, targets of several tokens, or `k` outside the
    vocabulary.
    """
    anatomy = read_anatomy(model)
    anatomy.check_site(Site("z", layer, head))
    if not 1 <= k <= anatomy.d_vocab:
        raise InputError(f"k is 1 to {anatomy.d_vocab}; got {k}")
    ids = torch.tensor([one_token(model, token) for token in tokens], dtype=torch.long)
    states = token_states(model, layer)
    values, write = _ov(model, layer, head, states)
    query, keys, predicted = _qk(model, layer, head, states)
    n, device = anatomy.d_vocab, states.device
    own = torch.arange(n, device=device)
    counts = torch.zeros(3, device=device)
    for part in Readout.of(model).chunks(n):
        table = values[part] @ write
        diagonal = table.gather(1, own[part, None])
        counts[0] += ((table > diagonal).sum(dim=1) < k).sum()
        counts[1] += ((table < diagonal).sum(dim=1) < k).sum()
        scores = predicted[part] @ keys.T
        counts[2] += ((scores > scores.gather(1, own[part, None])).sum(dim=1) < k).sum()
    eigenvalues = torch.linalg.eigvals((write @ values).double())
    rows = values[ids] @ write
    rows = rows - rows.mean(dim=1, keepdim=True)
    top, bottom = (rows.topk(k, dim=1, largest=largest).indices.cpu() for largest in (True, False))
    copies, suppresses, predicted_share = (counts / n).tolist()
    shown = torch.cat([top.flatten(), bottom.flatten(), ids]).unique().tolist()
    return HeadCircuits(
        head=head_name(layer, head), tokens=ids, ov=rows[:, ids].cpu(), qk=(query[ids] @ keys[ids].T).cpu(),
        top_ids=top, bottom_ids=bottom,
        copying=float(eigenvalues.real.sum() / eigenvalues.abs().sum().clamp(min=1e-300)), copies=copies,
        suppresses=suppresses,
        attends_to_predicted=predicted_share, k=k, d_vocab=n, texts={i: token_text(model, i) for i in shown},
        provenance=build_provenance(method="head circuits", head=head_name(layer, head), model=identify_model(model)),
    )  # fmt: skip


@borrows
@torch.no_grad()
def token_states(model: TransformerBridge, layer: int) -> Float[Tensor, "d_vocab d_model"]:
    """Every token's state as a head of `layer` meets it: the stream entering block ``min(layer, 1)`` for the token
    alone, behind the beginning-of-sequence token where the model wants one.
    """
    anatomy = read_anatomy(model)
    begin = [int(model.tokenizer.bos_token_id)] if model.tokenizer is not None and prepends_bos(model) else []
    site = Site("resid_pre", 0) if layer == 0 else Site("resid_post", 0)
    found = []
    for ids in torch.arange(anatomy.d_vocab).split(VOCABULARY_SLICE):
        prompt = torch.cat([torch.tensor(begin, dtype=torch.long).expand(len(ids), -1), ids[:, None]], dim=1)
        found.append(record_states(model, prompt.to(device_of(model)), [site])[0][:, -1])
    return torch.cat(found).to(torch.promote_types(model.W_U.dtype, torch.float32))


def _ov(
    model: TransformerBridge, layer: int, head: int, states: Tensor
) -> tuple[Float[Tensor, "d_vocab d_head"], Float[Tensor, "d_head d_vocab"]]:
    """Values of every token, and what a value writes to every logit."""
    attn, dtype = model.blocks[layer].attn, states.dtype
    group = read_anatomy(model).group_size
    values = _through(block_norm(model, layer, "ln1"), states) @ attn.W_V.detach()[head // group].to(dtype)
    write = attn.W_O.detach()[head].to(dtype)
    for norm in (block_norm(model, layer, "ln1_post"), final_norm(model)):
        write = write if norm is None else norm.gain.to(dtype) * norm.centre(write)
    return values, write @ model.W_U.detach().to(dtype)


def _qk(model: TransformerBridge, layer: int, head: int, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of every token ``[d_vocab, d_head]``, and the queries of unembedding directions."""
    attn, dtype = model.blocks[layer].attn, states.dtype
    norm = block_norm(model, layer, "ln1")
    unembedded = _through(norm, model.W_U.detach().T.to(dtype))
    seen = _through(norm, states)
    group = read_anatomy(model).group_size

    def project(x: Tensor, weight: Tensor, bias: Tensor | None, name: str, index: int) -> Tensor:
        heads = torch.einsum("nd,hde->nhe", x, weight.detach().to(dtype))
        heads = heads if bias is None else heads + bias.detach().to(dtype)
        if name in attn.submodules:
            inner: Any = read_norm(getattr(attn, name)).detached()
            heads = inner(heads) if len(inner.gain) == heads.shape[-1] else inner(heads.flatten(1)).view_as(heads)
        return heads[:, index]

    query, predicted = (project(x, attn.W_Q, attn.b_Q, "q_norm", head) for x in (seen, unembedded))
    return query, project(seen, attn.W_K, attn.b_K, "k_norm", head // group), predicted


def _through(norm: Norm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)
