"""Relevance of the tokens of a prompt: how much each contributes to a metric, the everyday use of LRP.

    relevance of position p  =  sum(stream_p * coefficient_p)  at the stream entering block 0

in units of the metric; positive = the token raises it. Under a conserving composite (`relp_ah`) the tokens and the
biases add up to the metric; what is missing otherwise stands in `remainder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError
from ..execute.memory import MemoryBudget, parse_budget, require_room
from ..models.anatomy import check_ready, device_of, dtype_of
from ..models.borrow import borrows, hooked, run_tail
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import leaf_at_embedding
from ..runs.remake import remade_blocks
from ..runs.room import DEFAULT_BUDGET, Sizes, d_mlp_of
from ..sites import Site, hook_name
from ..tasks.encode import answer_token, tokenise
from ..tasks.padding import token_id
from .composite import Composite
from .presets import find_composite

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Answer = str | int
Target = Answer | Sequence[Answer] | Callable[[Any], Tensor]
"""An answer, a pair (answer, what it is contrasted with), or any function of the logits ``[batch, pos, d_vocab]``."""


@dataclass(frozen=True, eq=False)
class TokenRelevance(Result):
    """Relevance of every token, in units of the metric. `remainder` = `value` - sum of `values`: biases and what
    leaked.
    """

    tokens: tuple[str, ...]
    values: Float[Tensor, " pos"]
    value: float
    metric_name: str
    rules: str
    provenance: Provenance

    @property
    def remainder(self) -> float:
        """What no token has: the biases' share, and what rules that do not conserve relevance lose or add."""
        return self.value - float(self.values.sum())

    def _table(self) -> Table:
        """One row per token."""
        return {"token": self.tokens, "relevance": self.values.tolist()}

    def __str__(self) -> str:
        rows = [f"{token!r:<20} {value:+.4f}" for token, value in zip(self.tokens, self.values.tolist(), strict=True)]
        title = f"{self.metric_name} = {self.value:+.4f} under {self.rules}; relevance of each token:"
        return "\n".join([title, *rows, f"{'biases and the rest':<20} {self.remainder:+.4f}"])


@borrows
def attribute_tokens(
    model: TransformerBridge,
    prompt: str | Sequence[int],
    metric: Target,
    *,
    rules: str | Composite = "relp_ah",
    memory_budget: MemoryBudget | None = None,
) -> TokenRelevance:
    """Relevance of the tokens of `prompt` for the next token.

    `metric` is an answer (``" Mary"`` or a token id: its logit), a contrast (``(" Mary", " John")``: their logit
    difference), or a function of the logits ``[1, pos, d_vocab]`` that returns one number. Cost: 1 forward + 1
    backward, and 1 forward more where that does not fit `memory_budget` beside the weights (bytes or ``"2GB"``;
    default: 1 GiB, or what the prompt takes): blocks then run again in the backward pass.

    Raises `InputError` for an empty prompt, an answer of several tokens, an id outside the vocabulary, or text on a
    model without tokenizer, a budget too small for the prompt; `MetricError` for a metric that is not one finite number
    with a gradient.

    >>> relevance = attribute_tokens(
    ...     model, "When Mary and John went to the shop, John gave a drink to", (" Mary", " John")
    ... )
    >>> relevance.show()
    """
    composite = find_composite(rules)
    anatomy = check_ready(model)
    if isinstance(prompt, bytes):
        raise InputError(f"a prompt is a text or token ids, no bytes; decode it first. Got {prompt[:20]!r}")
    ids = tokenise(model, prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
    if not ids or (isinstance(prompt, str) and not prompt):
        raise InputError("a prompt of at least one token is needed; got an empty one")
    if len(ids) > anatomy.n_ctx or not all(0 <= i < anatomy.d_vocab for i in ids):
        raise InputError(
            f"prompts have at most {anatomy.n_ctx} tokens with ids below {anatomy.d_vocab}; got {len(ids)} tokens, "
            f"ids up to {max(ids)}"
        )
    function, name = _metric_of(model, metric, anatomy.d_vocab)
    n_tail = None if callable(metric) else 1
    remade = _must_remake(model, len(ids), n_tail, memory_budget)
    streams: list[Tensor] = []
    hooks = [(hook_name(Site("resid_pre", 0)), lambda x, **_: streams.append(x))]
    with (
        torch.enable_grad(), composite.context(model), leaf_at_embedding(model), hooked(model, hooks),
        remade_blocks(model, when=remade),
    ):  # fmt: skip
        value = function(run_tail(model, torch.tensor([ids], device=device_of(model)), n_tail))
        if value.numel() != 1 or not value.requires_grad or not bool(torch.isfinite(value).all()):
            raise MetricError(f"a metric is one finite number that depends on the logits; got {value.detach()}")
        (coefficient,) = torch.autograd.grad(value.sum(), streams[0])
    values = (streams[0].detach().double() * coefficient.double()).sum(dim=-1)[0].cpu()
    texts = tuple(model.tokenizer.decode([i]) for i in ids) if model.tokenizer else tuple(map(str, ids))
    provenance = build_provenance(
        method="token relevance", rules=composite.to_json(), metric=name, tokens=ids, model=identify_model(model)
    )
    return TokenRelevance(texts, values, float(value.detach()), name, composite.name, provenance)


def _must_remake(model: TransformerBridge, n_pos: int, n_tail: int | None, budget: MemoryBudget | None) -> bool:
    """Whether the graph of one prompt is larger than the budget; raises `InputError` where nothing helps."""
    item = torch.finfo(dtype_of(model)).bits // 8
    sizes = Sizes(check_ready(model), d_mlp_of(model), n_pos, n_tail or n_pos, item)
    size = DEFAULT_BUDGET if budget is None else parse_budget(budget)
    if budget is not None:
        least = sizes.graph((), 1, remade=True)
        require_room(size, least, "the backward pass of the prompt", "Give more, or use a shorter prompt.")
    return size < sizes.graph((), 1)


def _metric_of(model: TransformerBridge, metric: Target, d_vocab: int) -> tuple[Callable[[Any], Tensor], str]:
    if callable(metric):
        return metric, getattr(metric, "__name__", "metric")
    answers: tuple[Answer, ...] = (metric,) if isinstance(metric, str | int) else tuple(metric)
    if len(answers) not in (1, 2):
        raise InputError(f"a metric is an answer or a pair (answer, contrast); got {len(answers)} answers")
    ids = [answer_token(model, a) if isinstance(a, str) else token_id(a, "the metric") for a in answers]
    if not all(0 <= i < d_vocab for i in ids):
        raise InputError(f"token ids of this model are 0 to {d_vocab - 1}; got {ids}")
    if len(ids) == 1:
        return lambda logits: logits[0, -1, ids[0]], f"logit of {answers[0]!r}"
    right, contrast = answers[0], answers[-1]
    return lambda logits: logits[0, -1, ids[0]] - logits[0, -1, ids[1]], f"logit {right!r} - logit {contrast!r}"
