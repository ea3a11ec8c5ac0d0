"""Query-key attribution: which pairs of writers make one attention score.

With x_j and x_i the streams that a head reads at the query and the key position, u and v the writers that add up to
them, s the scale of the norm before attention (g its gain), and R the rotation between the two positions,

    score[j, i] = sum over u, v of  q_u . R . k_v / sqrt(d),     q_u = W_Q^T (g * centre(u at j) / s_j),  k_v likewise,

plus the same products with the *bias* of queries and of keys (b_Q, W_Q^T of the norm's bias and of attention's output
biases), which have a row and a column of their own. Norms on queries and keys are linear at the live run's scale. So
the table sums to the score exactly, before a soft cap (Gemma 2) and before the softmax; `remainder` says what is
missing. Positive = the pair makes the head look at the key position. Scales are held fixed: parts are shares of this
run's score, not what would happen without a writer.

The rotation is read off the model's own attention, as the scores of unit queries and keys at the two positions. Cost:
1 forward, and the attention of one block on d_head^2 prompts (up to its scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError, UnsupportedModelError
from ...models.anatomy import Norm, block_norm, device_of, normalises, read_anatomy, read_norm
from ...models.borrow import borrows, hooked
from ...models.identity import identify_model
from ...names import head_name
from ...patching.queries_keys import check_open
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...runs.attention import parse_head
from ...runs.record import record_run
from ...runs.restart import StopForward, restart_at
from ...sites import Site, hook_name
from ...tasks.build import from_prompt
from ...tasks.task import Task
from ..graph.writers import edge_space, record_writers, writer_kinds

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS = 256
"""Prompts per piece when the rotation is read off."""
BIAS = "bias"


@dataclass(frozen=True, eq=False)
class QueryKeyAttribution(Result, strongest="score"):
    """Parts of one attention score, ``[query writer, key writer]``; the last row and column are the biases.

    `total` is the model's own score (before a soft cap).
    """

    head: str
    query: int
    key: int
    tokens: tuple[str, ...]
    writers: tuple[str, ...]
    values: Float[Tensor, "query_writer key_writer"]
    total: float
    provenance: Provenance

    @property
    def remainder(self) -> float:
        """What the parts leave unexplained: rounding."""
        return self.total - float(self.values.sum())

    @property
    def by_query(self) -> Float[Tensor, " writer"]:
        """Sum over keys: what each writer at the query position contributes."""
        return self.values.sum(dim=1)

    @property
    def by_key(self) -> Float[Tensor, " writer"]:
        """Sum over queries: what each writer at the key position contributes."""
        return self.values.sum(dim=0)

    def top(self, n: int = 10) -> list[tuple[str, str, float]]:
        """The `n` (writer at the query, writer at the key, part) of largest absolute part."""
        flat = self.values.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        size = len(self.writers)
        return [(self.writers[i // size], self.writers[i % size], float(flat[i])) for i in order]

    def _table(self) -> Table:
        """One row per pair of writers, strongest first."""
        query, key, score = zip(*self.top(self.values.numel()), strict=True)
        return {"query_writer": query, "key_writer": key, "score": score}

    def __str__(self) -> str:
        places = f"{self.tokens[self.query]!r} (position {self.query}) to {self.tokens[self.key]!r} ({self.key})"
        rows = [f"{a:<8} x {b:<8} {value:+9.4f}" for a, b, value in self.top(10)]
        title = f"{self.head} from {places}: score {self.total:+.4f}; the largest of {self.values.numel()} parts:"
        return "\n".join([title, *rows, f"parts miss {self.remainder:.1e}"])

    __repr__ = __str__


@borrows
def attribute_attention(
    model: TransformerBridge, task: Task | str, head: str, query: int = -1, key: int = 0, *, row: int = 0
) -> QueryKeyAttribution:
    """The parts of the score with which `head` (``"a5.h1"``) looks from position `query` to position `key`, on one text
    or on the clean prompt of pair `row`. Negative positions count from the prompt's end.

    Raises `InputError` for a head or positions that are not there, a key after its query or outside the head's window;
    `UnsupportedModelError` for attention whose scores are out of reach.

    >>> print(attribute_attention(model, "When Mary and John went, John gave a drink to", "a5.h1", key=2))
    """
    if isinstance(task, str):
        task, row = from_prompt(model, task), 0
    space = edge_space(model, task, aligned=False)
    check_open(model, "query-key attribution")
    anatomy = read_anatomy(model)
    layer, number = parse_head(anatomy, head)
    if not isinstance(row, int) or not -len(task) <= row < len(task):
        raise InputError(f"task {task.name!r} has pairs 0 to {len(task) - 1}; got row {row!r}")
    ids = task.pairs.prompt(row)
    places = [position + len(ids) if position < 0 else position for position in (query, key)]
    if not all(0 <= place < len(ids) for place in places) or (anatomy.causal and places[1] > places[0]):
        raise InputError(
            f"a head looks from a query position to a key position at or before it, both in 0 to {len(ids) - 1}; got "
            f"{query} and {key}"
        )
    one = task[[row]].pairs[:1].to(device_of(model))
    tokens = one.clean_tokens[:, : len(ids)]
    kinds = list(dict.fromkeys([*writer_kinds(space), "resid_pre", "q", "k", "attn_scores"]))
    run = record_run(model, one, kinds, n_tail=1)
    total = float(_uncapped(run.layers["attn_scores"][layer][0, number, places[0], places[1]], anatomy.attn_soft_cap))
    if not abs(total) < 1e30:
        raise InputError(f"{head} does not see position {key} from {query}: it is outside the head's window")
    seen = space.n_seen_by_attention(layer)
    writes = record_writers(model, space, run)[:seen, 0]
    stream = run.layers["resid_pre"][layer]
    sides = []
    for kind, place in zip("qk", places, strict=True):
        own = number if kind == "q" else number // anatomy.group_size
        parts = _projected(model, layer, kind, own, writes[:, place], stream[0, place])
        sides.append(parts / _live_scale(model, layer, kind, own, run.layers[kind][layer][0, place]))
    between = _between(model, layer, number, places, tokens, stream, run.layers["q"][layer], run.layers["k"][layer])
    values = sides[0] @ between.to(sides[0]) @ sides[1].T
    names = (*space.writers[:seen], BIAS)
    return QueryKeyAttribution(
        head_name(layer, number), places[0], places[1], tuple(task.prompt_texts(row)[0]), names, values.cpu(), total,
        build_provenance(
            method="query-key attribution", model=identify_model(model), task=task.provenance(), row=row, head=head,
            query=places[0], key=places[1],
        ),
    )  # fmt: skip


def _projected(
    model: TransformerBridge, layer: int, kind: str, head: int, writes: Float[Tensor, "writer d_model"], x: Tensor
) -> Float[Tensor, "part d_head"]:
    """Every writer's query (or key) before any q/k-norm, at the live scale of the norm before attention; the last row
    is the biases'.
    """
    attn: Any = model.blocks[layer].attn
    weight, bias = getattr(attn, f"W_{kind.upper()}").detach()[head], getattr(attn, f"b_{kind.upper()}")
    norm = block_norm(model, layer, "ln1")
    added = [block.attn.b_O.detach() for block in model.blocks[:layer] if block.attn.b_O is not None]
    constant = torch.stack(added).sum(dim=0) if added else torch.zeros_like(x)
    terms = torch.cat([writes.to(x), constant[None].to(x)])
    if norm is not None:
        terms = norm.linear(terms, norm.scale(x))
        if norm.bias is not None:
            terms[-1] += norm.bias
    parts = terms.to(weight.dtype) @ weight
    if bias is not None:
        parts[-1] += bias.detach()[head]
    return parts


def _head_norm(model: TransformerBridge, layer: int, kind: str) -> Norm | None:
    attn: Any = model.blocks[layer].attn
    name = f"{kind}_norm"
    if name not in attn.submodules or not normalises(getattr(attn, name)):
        return None
    norm = read_norm(getattr(attn, name)).detached()
    if norm.bias is not None:
        raise UnsupportedModelError(f"{name} of {model.cfg.architecture} has a bias, so scores are no sum over writers")
    return norm


def _live_scale(
    model: TransformerBridge, layer: int, kind: str, head: int, activation: Float[Tensor, "head d_head"]
) -> Tensor:
    """The denominator of the q/k-norm at an activation of all heads; 1 without one."""
    norm = _head_norm(model, layer, kind)
    if norm is None:
        return torch.ones((), dtype=activation.dtype, device=activation.device)
    whole = norm.gain.numel() > activation.shape[-1]
    return norm.scale(activation.flatten() if whole else activation[head])


def _between(
    model: TransformerBridge, layer: int, head: int, places: Sequence[int], tokens: Tensor, stream: Tensor,
    q: Float[Tensor, "1 pos head d_head"], k: Float[Tensor, "1 pos kv_head d_head"],
) -> Float[Tensor, "d_head d_head2"]:  # fmt: skip
    """The bilinear form between queries at one position and keys at the other: the scores of unit vectors, times the
    scales that norms on queries and keys divide those by.
    """
    anatomy, size = read_anatomy(model), q.shape[-1]
    own, cap = head // anatomy.group_size, anatomy.attn_soft_cap
    unit = torch.eye(size, dtype=q.dtype, device=q.device)
    scales = []
    for kind, at, live in (("q", head, q), ("k", own, k)):
        alone = torch.zeros(size, *live.shape[2:], dtype=live.dtype, device=live.device)
        alone[:, at] = unit
        scales.append(torch.stack([_live_scale(model, layer, kind, at, one).reshape(()) for one in alone]))
    found = []
    for rows in torch.cartesian_prod(torch.arange(size), torch.arange(size)).split(ROWS):
        values = []
        for live, at, place, index in ((q, head, places[0], rows[:, 0]), (k, own, places[1], rows[:, 1])):
            value = live.repeat(len(rows), 1, 1, 1)
            value[:, place] = 0
            value[:, place, at] = unit[index.to(unit.device)]
            values.append(value)
        scores = _scores(model, layer, tokens, stream, *values)
        found.append(_uncapped(scores[:, head, places[0], places[1]], cap))
    return torch.cat(found).view(size, size) * scales[0][:, None] * scales[1]


def _scores(
    model: TransformerBridge, layer: int, tokens: Tensor, stream: Tensor, q: Tensor, k: Tensor
) -> Float[Tensor, "row head query_pos key_pos"]:
    found: list[Tensor] = []

    def put(value: Tensor) -> Any:
        def hook(activation: Tensor, hook: Any) -> Tensor:
            return value

        return hook

    def keep(activation: Tensor, hook: Any) -> None:
        found.append(activation)
        raise StopForward

    hooks = [(hook_name(Site("q", layer)), put(q)), (hook_name(Site("k", layer)), put(k))]
    hooks.append((hook_name(Site("attn_scores", layer)), keep))
    n = len(q)
    with torch.no_grad(), restart_at(model, layer, stream.repeat(n, 1, 1)), hooked(model, hooks), suppress(StopForward):
        model(tokens.repeat(n, 1))
    return found[0]


def _uncapped(scores: Tensor, cap: float | None) -> Tensor:
    return scores if cap is None else cap * torch.atanh((scores / cap).clamp(-1 + 1e-12, 1 - 1e-12))
