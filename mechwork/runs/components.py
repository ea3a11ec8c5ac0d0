"""What single components are like, for a card about each: what they write, where they look, and which prompts move them
most.

    activation   = |write - mean write| at a token, in the Euclidean norm; the mean is over all tokens of the prompts
    but the first promotes     = direct effect of the write at the last token on every logit, through the final norm at
    its live scale, minus
                   the mean over the vocabulary (which no probability depends on)
    looks        = mean attention of a head to the previous token, the first, itself, an earlier copy of the query's
    token, and
                   the token after such a copy, over the queries that have one: what its QK circuit does on these
                   prompts
    OV copying   = sum of Re(l) / sum of |l| over the eigenvalues l of W_E W_V W_O W_U with the gains of the norms
    folded in
                   (Elhage et al. 2021): +1 for a head that raises the tokens it reads, -1 for one that lowers them

All of it is measured on the prompts, or a property of the weights; nothing here is interpretation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import ModelAnatomy, block_norm, device_of, final_norm
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .attention import parse_head
from .record import Run, check_task, record_run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MAX_PROMPTS = 64
"""Prompts that are looked at: enough for examples, and one batch."""

LOGITS = 2**23
"""Logits held at a time."""

LOOKS = ("previous token", "first token", "itself", "earlier copy", "after an earlier copy")


@dataclass(frozen=True)
class PromptExample:
    """One prompt with the component's activation at each token; `peak` is where it is largest, `row` the pair."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int
    row: int


@dataclass(frozen=True)
class ComponentRow:
    """One component. `promoted` and `suppressed` are (token, logits); `looks` and `copying` are of heads alone."""

    node: str
    promoted: tuple[tuple[str, float], ...] = ()
    suppressed: tuple[tuple[str, float], ...] = ()
    examples: tuple[PromptExample, ...] = ()
    looks: dict[str, float] = field(default_factory=dict)
    copying: float | None = None


@dataclass(frozen=True, eq=False)
class ComponentStudy(Result):
    """Rows per component, in the order asked for; `promoted` is about the last token of `prompt`."""

    rows: tuple[ComponentRow, ...]
    prompt: tuple[str, ...]
    provenance: Provenance

    def _table(self) -> Table:
        """One row per component."""
        return [
            {
                "node": row.node,
                "promotes": " ".join(token.strip() for token, _ in row.promoted),
                "suppresses": " ".join(token.strip() for token, _ in row.suppressed),
                **row.looks,
                "OV copying": row.copying,
            }
            for row in self.rows
        ]

    def __repr__(self) -> str:
        return f"ComponentStudy({', '.join(row.node for row in self.rows)})"


@borrows
def study_components(
    model: TransformerBridge, task: Task, nodes: Sequence[str], *, n_tokens: int = 6, n_examples: int = 3, row: int = 0
) -> ComponentStudy:
    """Heads (``"a3.h1"``) and MLPs (``"m2"``) among `nodes`; input and logits are passed over. Cost: 1 forward of at
    most 64 prompts without its unembedding, one unembedding per component, and W_U W_E once.

    What a component promotes is left out where a norm stands between it and the residual stream (post-norm blocks).

    Raises `InputError` for other names, components the model does not have, or a `row` outside the task.

    >>> study_components(model, task.test, ["a5.h1", "m0"]).show()
    """
    anatomy = check_task(model, task)
    if not 0 <= row < len(task):
        raise InputError(f"task {task.name!r} has pairs 0 to {len(task) - 1}; got row {row}")
    wanted = [node for node in nodes if node not in ("input", "logits")]
    places = [_place(anatomy, node) for node in wanted]
    order = [row, *(i for i in range(len(task)) if i != row)][:MAX_PROMPTS]
    part = task[order]
    pairs = part.pairs.to(device_of(model))
    kinds = ["z", "pattern", "resid_post"] + ([] if anatomy.attn_only else ["mlp_out"])
    run = record_run(model, pairs, kinds, n_tail=1)
    counted = pairs.mask.to(run.logits.device).clone()
    counted[:, 0] = False
    masks = _key_masks(pairs)
    named = _promoted(model, pairs, run, places, n_tokens)
    tokens = _token_product(model)
    rows = []
    for node, (layer, head), (promoted, suppressed) in zip(wanted, places, named, strict=True):
        states, weight = _write(model, run, layer, head)
        strength = _activation(states, weight, counted)
        looks = {} if head is None else _looks(run.layers["pattern"][layer][:, head], masks)
        copying = None if head is None else _copying(model, anatomy, tokens, layer, head)
        rows.append(
            ComponentRow(node, promoted, suppressed, _examples(part, order, strength, n_examples), looks, copying)
        )
    provenance = build_provenance(
        method="component study", model=identify_model(model), task=task.provenance(), n_prompts=len(order), row=row
    )
    return ComponentStudy(tuple(rows), task.prompt_texts(row)[0], provenance)


def _place(anatomy: ModelAnatomy, node: str) -> tuple[int, int | None]:
    if not node.startswith("m"):
        return parse_head(anatomy, node)
    layer = int(node[1:]) if node[1:].isdigit() else -1
    if anatomy.attn_only or not 0 <= layer < anatomy.n_layers:
        raise InputError(
            f"MLPs are written 'm<layer>', of a model that has them, with {anatomy.n_layers} layers; got {node!r}"
        )
    return layer, None


def _write(
    model: TransformerBridge, run: Run, layer: int, head: int | None
) -> tuple[Float[Tensor, "batch pos state"], Float[Tensor, "state d_model"] | None]:
    """What a component computes, and the matrix by which it is written; None where it is written as it is."""
    if head is None:
        return run.layers["mlp_out"][layer], None
    return run.layers["z"][layer][:, :, head], model.blocks[layer].attn.W_O.detach()[head]


def _activation(
    states: Float[Tensor, "batch pos state"],
    weight: Float[Tensor, "state d_model"] | None,
    counted: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """|write - mean write|; through the Gram matrix of the weights, so that no write is formed."""
    centred = states - states[counted].mean(dim=0)
    squares = centred.pow(2).sum(dim=-1) if weight is None else ((centred @ (weight @ weight.T)) * centred).sum(dim=-1)
    return (squares.clamp(min=0).sqrt() * counted).cpu()


def _examples(part: Task, order: list[int], strength: Float[Tensor, "batch pos"], n: int) -> tuple[PromptExample, ...]:
    """The prompts of largest peak, each prompt once."""
    peaks = strength.max(dim=1)
    found: list[PromptExample] = []
    for i in peaks.values.argsort(descending=True, stable=True).tolist():
        tokens = part.prompt_texts(i)[0]
        if len(found) < n and all(tokens != other.tokens for other in found):
            values = tuple(float(f"{v:.4g}") for v in strength[i, : len(tokens)].tolist())
            found.append(PromptExample(tokens, values, int(peaks.indices[i]), order[i]))
    return tuple(found)


Tokens = tuple[tuple[str, float], ...]


def _promoted(
    model: TransformerBridge, pairs: PromptPairs, run: Run, places: Sequence[tuple[int, int | None]], n: int
) -> list[tuple[Tokens, Tokens]]:
    """Per component the tokens that its write at the first prompt's last position raises and lowers most.

    Writes are unembedded together, so many at a time that their logits stay within `LOGITS`.
    """
    end, norm = int(pairs.lengths[0]) - 1, final_norm(model)
    writes: dict[int, Tensor] = {}
    for i, (layer, head) in enumerate(places):
        after = "ln2_post" if head is None else "ln1_post"
        if model.tokenizer is not None and block_norm(model, layer, after) is None:
            states, weight = _write(model, run, layer, head)
            writes[i] = states[0, end] if weight is None else states[0, end] @ weight
    found: list[tuple[Tokens, Tokens]] = [((), ()) for _ in places]
    W_U = model.W_U.detach()
    for which in _pieces(list(writes), max(1, LOGITS // W_U.shape[1])):
        written = torch.stack([writes[i] for i in which])
        if norm is not None:
            written = norm.linear(written, norm.scale(run.layers["resid_post"][-1][0, end]))
        logits = written @ W_U
        logits = logits - logits.mean(dim=-1, keepdim=True)
        for i, row in zip(which, logits, strict=True):
            found[i] = (_named(model, row, n, 1), _named(model, row, n, -1))
    return found


def _pieces(items: list[int], size: int) -> list[list[int]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _named(model: TransformerBridge, logits: Float[Tensor, " d_vocab"], n: int, sign: int) -> Tokens:
    top = (sign * logits).topk(min(n, len(logits)))
    return tuple(
        (str(model.tokenizer.decode([i])), float(f"{sign * v:.4g}"))
        for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    )


def _key_masks(pairs: PromptPairs) -> dict[str, Bool[Tensor, "batch query_pos key_pos"]]:
    """For every way to look: which key each query would look at. Queries start at the third token."""
    tokens, real = pairs.clean_tokens, pairs.mask
    n = tokens.shape[1]
    q, k = torch.arange(n, device=tokens.device)[:, None], torch.arange(n, device=tokens.device)[None]
    same = (tokens[:, :, None] == tokens[:, None, :]) & (k < q)
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1] & (k[:, 1:] < q)
    every = torch.ones_like(same)
    masks = (every & (k == q - 1), every & (k == 0), every & (k == q), same, after)
    asked = (real[:, :, None] & (q >= 2)).to(tokens.device)
    return {name: mask & asked for name, mask in zip(LOOKS, masks, strict=True)}


def _looks(
    pattern: Float[Tensor, "batch query_pos key_pos"], masks: dict[str, Bool[Tensor, "batch query_pos key_pos"]]
) -> dict[str, float]:
    found = {}
    for name, mask in masks.items():
        queries = mask.any(dim=2)
        if bool(queries.any()):
            found[name] = float((pattern * mask.to(pattern)).sum(dim=2)[queries].mean())
    return found


def _token_product(model: TransformerBridge) -> Float[Tensor, "d_model d_model2"]:
    """W_U W_E: the sum over all tokens of (how the stream raises it) x (what it is embedded as).

    The one part of a copying score that is as large as the vocabulary; the same for every head. Half precision is
    summed in float32, a piece of the vocabulary at a time.
    """
    W_U, W_E = model.W_U.detach(), model.W_E.detach()
    dtype = torch.promote_types(W_U.dtype, torch.float32)
    if dtype == W_U.dtype:
        return W_U @ W_E
    step = max(1, LOGITS // W_U.shape[0])
    pieces = zip(W_U.split(step, dim=1), W_E.split(step), strict=True)
    return sum((u.to(dtype) @ e.to(dtype) for u, e in pieces), torch.zeros((), dtype=dtype, device=W_U.device))


def _copying(
    model: TransformerBridge, anatomy: ModelAnatomy, tokens: Float[Tensor, "d_model d_model2"], layer: int, head: int
) -> float | None:
    """Elhage et al. 2021, sec. "Detecting copying behaviour"; None where a norm after attention stands in between.

    Gain and centring of the norm before attention act on W_E's last axis, so they act on `tokens` = W_U W_E as well.
    """
    if block_norm(model, layer, "ln1_post") is not None:
        return None
    attn, before, last = model.blocks[layer].attn, block_norm(model, layer, "ln1"), final_norm(model)
    W_V, W_O = attn.W_V.detach()[head * anatomy.n_kv_heads // anatomy.n_heads], attn.W_O.detach()[head]
    if before is not None:
        tokens = before.gain * before.centre(tokens)
    if last is not None:
        W_O = last.gain * last.centre(W_O)
    small = W_O.to(tokens) @ tokens @ W_V.to(tokens)  # has the eigenvalues of W_E W_V W_O W_U that are not zero
    values = torch.linalg.eigvals(small.double().cpu())
    return float(values.real.sum() / values.abs().sum())
