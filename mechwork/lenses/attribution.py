"""Direct logit attribution on raw weights: which writes into the residual stream make up a logit or a logit difference.

At one position, with x the stream leaving the last block, s the final norm's scale there, g its gain and b its bias,

    logit(c) - logit(i) = sum_w  w . v / s  +  b . u  +  (b_U[c] - b_U[i]),      u = W_U[:, c] - W_U[:, i],
                                                                                 v = centre(g * u)

where the writes w add up to x: the token's embedding, its position, every head, every MLP (every neuron), and every
bias. Nothing is folded and no write is left out, so terms add up to the model's own number to rounding (tested on every
architecture); `remainder` says what is missing. Positive terms raise the correct answer. The scale s is the run's own,
held fixed: terms are shares of this run's logits, not what would happen without the write.

Where blocks normalise their outputs (Gemma, OLMo 2) a head's or a neuron's write is its share at that norm's scale.
Where logits are soft-capped (Gemma 2) the terms are of the difference *before* the cap, which no sum can follow.
Several correct (or incorrect) tokens: the mean of their logits, as in `logit_difference`. Heads can be split further by
the position whose value they carry: sum over keys = the head's term, since z = pattern @ v. (Elhage et al. 2021, direct
paths; Wang et al. 2023, section 3.1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..execute.memory import cut
from ..models.anatomy import ModelAnatomy, Norm, block_norm, check_ready, final_norm
from ..models.borrow import borrows, hooked
from ..models.identity import identify_model
from ..names import head_name
from ..provenance import build_provenance
from ..runs.room import rows_that_fit
from ..sites import FINAL_NORM, Site, hook_name
from ..tasks.continuations import require_one_token
from ..tasks.marks import plain_tokens
from ..tasks.pairs import ABSENT
from ..tasks.task import Task
from .contributions import LogitAttribution
from .prompts import Prompt, Prompts, as_prompts, one_token, token_text
from .states import run_to_the_end

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Answers = str | int | Sequence[str | int]


@borrows
def attribute_logits(
    model: TransformerBridge,
    prompts: Task | str | Tensor | Prompts | Sequence[Prompt] | Sequence[int],
    correct: Answers | None = None,
    incorrect: Answers | None = None,
    *,
    position: int | str | None = None,
    neurons: bool = False,
    sources: bool = False,
) -> LogitAttribution:
    """Every write's share of the logit of `correct` (minus that of `incorrect`, if given), per prompt.

    A `Task` brings its clean prompts and its answers. For other prompts an answer is one token for all, or one per
    prompt. `position`: where the logits are read; a token's index or, for tasks, a span's name (its last position); by
    default each prompt's last. `neurons` adds a share per neuron, `sources` one per head and key position.
    Cost: 1 forward, and per layer one product of W_out with one vector per prompt; no neuron's vector is ever made.

    Raises `InputError` for answers of several tokens, positions that are not there, and neurons of expert layers.

    >>> shares = attribute_logits(model, "John and Mary went home. John kissed", " Mary", " John")
    >>> print(shares.top(5))
    """
    anatomy = check_ready(model)
    if neurons and (anatomy.attn_only or anatomy.n_experts is not None):
        why = (
            "its blocks have no MLP"
            if anatomy.attn_only
            else "its MLPs are experts, whose neurons differ from token to token"
        )
        raise InputError(
            f"{anatomy.architecture} has no neurons to attribute to: {why}. Leave neurons out; MLPs have a term each."
        )
    given, right, wrong, task_facts = _gather(model, prompts, correct, incorrect)
    ends = _positions(prompts, given, position)
    parts = []
    kept = [Site(kind, layer) for layer in range(anatomy.n_layers) for kind in (("v", "pattern") if sources else ())]
    for rows in cut(len(given), rows_that_fit(model, given.tokens, sites=kept)):
        batch = Prompts(given.tokens[rows], given.mask[rows])
        u, bias = _direction(model, right[rows], None if wrong is None else wrong[rows])
        parts.append(_attribute(model, anatomy, batch, ends[rows], u, bias, neurons=neurons, sources=sources))
    return LogitAttribution(
        terms=parts[0][0],
        per_example=torch.cat([part[1] for part in parts]),
        total=torch.cat([part[2] for part in parts]),
        neurons=torch.cat([part[3] for part in parts]) if neurons else None,
        sources=torch.cat([part[4] for part in parts]) if sources else None,
        tokens=tuple(tuple(token_text(model, i) for i in plain_tokens(row[mask]).tolist()) for row,
        mask in zip(given.tokens, given.mask, strict=True)),
        quantity="logit difference" if wrong is not None else "logit",
        before_cap=anatomy.final_soft_cap is not None,
        n_heads=anatomy.n_heads,
        provenance=build_provenance(method="direct logit "
                                           "attribution", data=task_facts, positions=ends.tolist(),
                                           model=identify_model(model)),
    )  # fmt: skip


def _gather(
    model: TransformerBridge, prompts: Any, correct: Answers | None, incorrect: Answers | None
) -> tuple[Prompts, Int[Tensor, "batch n"], Int[Tensor, "batch m"] | None, Any]:
    """Prompts and answer ids ``[batch, n]``, padded with `ABSENT`."""
    if isinstance(prompts, Task):
        if correct is not None or incorrect is not None:
            raise InputError("a task brings its own answers; leave correct and incorrect out, or give prompts instead")
        pairs = prompts.pairs
        require_one_token(pairs.continuations, "direct logit attribution")
        return Prompts(pairs.clean_tokens.cpu(), pairs.mask.cpu()), pairs.correct, pairs.incorrect, prompts.provenance()
    given = as_prompts(model, prompts)
    if correct is None:
        raise InputError(
            "prompts need a correct answer to attribute, e.g. attribute_logits(model, prompt, ' Mary', ' John')"
        )
    ids = [None if answer is None else _one_each(model, answer, len(given)) for answer in (correct, incorrect)]
    assert ids[0] is not None
    return given, ids[0], ids[1], {"prompts": given.tokens.tolist()}


def _one_each(model: TransformerBridge, answer: Answers, n: int) -> Int[Tensor, "batch 1"]:
    each = [answer] * n if isinstance(answer, str | int) else list(answer)
    if len(each) != n:
        raise InputError(f"answers are one for all prompts or one per prompt ({n}); got {len(each)}")
    return torch.tensor([[one_token(model, one)] for one in each])


def _positions(prompts: Any, given: Prompts, position: int | str | None) -> Int[Tensor, " batch"]:
    if position is None:
        return given.ends
    if isinstance(position, str):
        spans = dict(prompts.pairs.spans) if isinstance(prompts, Task) else {}
        if position not in spans:
            raise InputError(
                f"position is a token's index or a span ({', '.join(spans) or 'none here'}); got {position!r}"
            )
        mask = spans[position].cpu()
        if not bool(mask.any(dim=1).all()):
            raise InputError(f"span {position!r} is missing in some prompts")
        return mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    if not 0 <= position <= int(given.ends.min()):
        raise InputError(f"positions common to all prompts are 0 to {int(given.ends.min())}; got {position}")
    return torch.full((len(given),), position)


def _direction(
    model: TransformerBridge, right: Int[Tensor, "batch n"], wrong: Int[Tensor, "batch m"] | None
) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, " batch"]]:
    """u and its unembedding bias, in float64."""

    def mean(ids: Tensor) -> tuple[Tensor, Tensor]:
        index, there = ids.clamp(min=0), (ids != ABSENT).double()
        weight = there / there.sum(dim=1, keepdim=True)
        columns = model.W_U.detach().cpu().T[index].double()
        return torch.einsum("bn,bnd->bd", weight, columns), (weight * model.b_U.detach().cpu()[index].double()).sum(
            dim=1
        )

    u, b = mean(right.cpu())
    if wrong is None:
        return u, b
    other, other_b = mean(wrong.cpu())
    return u - other, b - other_b


class _Terms:
    """Names and values, in the order in which they are written."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, name: str, write: Tensor, v: Tensor) -> None:
        """One write ``[batch, d_model]`` (or ``[d_model]``) along v ``[batch, d_model]``."""
        self.values[name] = (write.double().cpu() * v).sum(dim=-1)


def _record(
    model: TransformerBridge, anatomy: ModelAnatomy, batch: Prompts, ends: Tensor, *, sources: bool
) -> dict[Site, Tensor]:
    """Activations at the read position alone; values everywhere and patterns of one query when heads are split by
    source.
    """
    kinds = ["z", *([] if anatomy.attn_only else ["mlp_out"]), *(["v", "pattern"] if sources else [])]
    kinds += ["mlp_post"] if anatomy.has_site("mlp_post") else []
    sites = [Site("embed"), Site("resid_pre", 0), Site("resid_post", anatomy.n_layers - 1)]
    sites += [Site(kind, layer) for kind in kinds for layer in range(anatomy.n_layers)]
    rows, found = torch.arange(len(batch)), {}

    def keep(site: Site) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            if site.kind == "pattern":
                found[site] = activation[rows, :, ends].detach().cpu()
            else:
                found[site] = (activation if site.kind == "v" else activation[rows, ends]).detach().cpu()

        return hook

    with torch.no_grad(), hooked(model, [(hook_name(site), keep(site)) for site in sites]):
        run_to_the_end(model, batch.tokens)
    return found


def _attribute(
    model: TransformerBridge,
    anatomy: ModelAnatomy,
    batch: Prompts,
    ends: Tensor,
    u: Tensor,
    bias: Tensor,
    *,
    neurons: bool,
    sources: bool,
) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor, Tensor]:
    found = _record(model, anatomy, batch, ends, sources=sources)
    last = found[Site("resid_post", anatomy.n_layers - 1)]
    norm = _double(final_norm(model))
    v = u if norm is None else norm.centre(norm.gain * u) / norm.scale(last.double())
    terms = _Terms()
    embed, entering = found[Site("embed")], found[Site("resid_pre", 0)]
    terms.add("embed", embed, v)
    if not torch.equal(embed, entering):
        terms.add("pos_embed", entering.double() - embed.double(), v)
    per_neuron, per_source = [], []
    for layer in range(anatomy.n_layers):
        split = _attention(model, layer, found, v, terms, sources=sources)
        per_source.append(split)
        per_neuron.append(torch.zeros(0) if anatomy.attn_only else _mlp(model, layer, found, v, terms))
    if norm is not None and norm.bias is not None:
        terms.add("norm bias", norm.bias, u)
    if bool(model.b_U.any()):
        terms.values["unembed bias"] = bias
    total = _total(model, last, u, bias)
    values = torch.stack(list(terms.values.values()), dim=1)
    return (
        tuple(terms.values),
        values,
        total,
        torch.stack(per_neuron, dim=1) if neurons else values,
        torch.stack(per_source, dim=1) if sources else values,
    )


def _total(model: TransformerBridge, last: Tensor, u: Tensor, bias: Tensor) -> Float[Tensor, " batch"]:
    """What the model's own norm module and unembedding give, before any soft cap."""
    with torch.no_grad():
        normed = getattr(model, FINAL_NORM)(last.to(model.W_U.device).unsqueeze(0)).squeeze(0)
    return (normed.double().cpu() * u).sum(dim=-1) + bias


def _attention(
    model: TransformerBridge, layer: int, found: dict[Site, Tensor], v: Tensor, terms: _Terms, *, sources: bool
) -> Tensor:
    """The heads' terms and the bias's; shares by source ``[batch, head, key_pos]`` when asked for."""
    attn = model.blocks[layer].attn
    weight = attn.W_O.detach().double().cpu()
    z = found[Site("z", layer)].double()
    b_O = None if attn.b_O is None else attn.b_O.detach().double().cpu()
    norm = _double(block_norm(model, layer, "ln1_post"))
    if norm is not None:
        total = torch.einsum("bhe,hed->bd", z, weight) + (0 if b_O is None else b_O)
        if norm.bias is not None:
            terms.add(f"a{layer}.norm bias", norm.bias, v)
        v = norm.centre(norm.gain * v) / norm.scale(total)
    read = torch.einsum("bd,hed->bhe", v, weight)
    for head, value in enumerate((z * read).sum(dim=-1).unbind(dim=1)):
        terms.values[head_name(layer, head)] = value
    if b_O is not None:
        terms.add(f"a{layer}.bias", b_O, v)
    if not sources:
        return z
    values = found[Site("v", layer)].double()
    values = values.repeat_interleave(weight.shape[0] // values.shape[2], dim=2)
    return found[Site("pattern", layer)].double() * torch.einsum("bkhe,bhe->bhk", values, read)


def _mlp(model: TransformerBridge, layer: int, found: dict[Site, Tensor], v: Tensor, terms: _Terms) -> Tensor:
    """The MLP's term and its bias's; shares of its neurons ``[batch, d_mlp]`` where it has any."""
    if Site("mlp_post", layer) not in found:
        terms.add(f"m{layer}", found[Site("mlp_out", layer)], v)
        return v
    mlp = model.blocks[layer].mlp
    weight, active = mlp.W_out.detach().double().cpu(), found[Site("mlp_post", layer)].double()
    b_out = None if mlp.b_out is None else mlp.b_out.detach().double().cpu()
    norm = _double(block_norm(model, layer, "ln2_post"))
    if norm is not None:
        total = active @ weight + (0 if b_out is None else b_out)
        if norm.bias is not None:
            terms.add(f"m{layer}.norm bias", norm.bias, v)
        v = norm.centre(norm.gain * v) / norm.scale(total)
    shares = active * (v @ weight.T)
    terms.values[f"m{layer}"] = shares.sum(dim=-1)
    if b_out is not None:
        terms.add(f"m{layer}.bias", b_out, v)
    return shares


def _double(norm: Norm | None) -> Norm | None:
    if norm is None:
        return None
    return Norm(
        norm.centred, norm.gain.double().cpu(), None if norm.bias is None else norm.bias.double().cpu(), norm.eps
    )
