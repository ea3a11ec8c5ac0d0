"""Labelled prompts: what directions are fitted from.

Two sets of prompts, told apart by a label. Prompts of one *group* (the two sides of a pair) are never split between
fitting and testing, so that a direction is not tested on a sentence that it has all but seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..arguments import checked
from ..display import Readable
from ..errors import InputError
from ..execute.memory import cut
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows, hooked, run_tail
from ..provenance import hash_tensors
from ..runs.room import rows_that_fit
from ..shapes import PositionMask, Tokens
from ..sites import SITE_KINDS, Site, hook_name
from ..tasks.padding import TokenBatch, token_rows
from ..tasks.pairs import END
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@runtime_checkable
class ReadPrompts(Protocol):
    """What vectors are recorded of: prompts, and where each is read."""

    @property
    def tokens(self) -> Tokens: ...

    @property
    def where(self) -> PositionMask: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Examples(Readable):
    """`n` right-padded prompts: `labels` True for the positive class; `where` marks the positions whose vectors are
    averaged.

    `types`: what a probe could know a prompt by without knowing its class, like the name in it; control tasks give
    every type a label by lot (see `fit`).
    """

    tokens: Tokens
    labels: Bool[Tensor, " batch"]
    where: PositionMask
    groups: Int[Tensor, " batch"]
    name: str = "examples"
    types: Int[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if self.types is not None and len(self.types) != n:
            raise InputError(f"every prompt has one type; got {n} prompts and {len(self.types)} types")
        if {len(self.labels), len(self.where), len(self.groups)} != {n} or self.where.shape != self.tokens.shape:
            raise InputError(
                f"every prompt has one label, one group and a row of positions; got {n} prompts, {len(self.labels)} "
                "labels, "
                f"{len(self.groups)} groups, positions {tuple(self.where.shape)}"
            )
        if self.labels.dtype != torch.bool:
            raise InputError(
                f"labels are True or False; got {self.labels.dtype}. Several classes and numbers have `Labelled`, "
                "which makes two classes of them when asked to (between, against_rest)"
            )
        positives = int(self.labels.sum())
        if not 0 < positives < n:
            raise InputError(
                f"two classes are needed to tell them apart; got {positives} positive and {n - positives} negative "
                "prompts"
            )
        if not bool(self.where.any(dim=1).all()):
            raise InputError("every prompt needs at least one position to be read at; got one without")

    @classmethod
    def of_task(cls, task: Task, position: str = END, *, types: str | None = None) -> Examples:
        """Clean prompts against corrupt ones, read at a span (averaged), the last token, a token position or everywhere
        (``all``).

        A pair is a group; `types` names the span whose token is a prompt's type. Raises `InputError` for other
        positions.
        """
        pairs = task.pairs
        sides = [marked_positions(pairs.mask, pairs.lengths, pairs.spans, position)]
        other = pairs.corrupt_as_host()
        sides.append(marked_positions(other.mask, other.lengths, other.spans, position))
        n = len(pairs)
        return cls(
            torch.cat([pairs.clean_tokens, pairs.corrupt_tokens]),
            torch.arange(2 * n) < n,
            torch.cat(sides),
            torch.arange(n).repeat(2),
            task.name,
            None if types is None else _types(task, types),
        )

    @classmethod
    @checked
    def of_tokens(
        cls,
        prompts: TokenBatch,
        labels: Sequence[bool],
        groups: Sequence[int] | None = None,
        *,
        everywhere: bool = False,
    ) -> Examples:
        """Token ids of any length with their labels, read at the last token or `everywhere`; every prompt is its own
        group unless told.
        """
        prompts = token_rows(prompts)
        if not prompts or any(not len(prompt) for prompt in prompts):
            raise InputError("every prompt needs at least one token; got an empty prompt or no prompts")
        if strange := sorted({repr(label) for label in labels if label not in (0, 1)}):
            raise InputError(
                f"labels are True or False (1 or 0), one class against the other; got {', '.join(strange)}"
            )
        width = max(len(prompt) for prompt in prompts)
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        columns = torch.arange(width)
        where = columns < lengths[:, None] if everywhere else columns == lengths[:, None] - 1
        own = range(len(prompts)) if groups is None else groups
        return cls(tokens, torch.tensor([bool(label) for label in labels]), where, torch.tensor(list(own)))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Examples:
        types = None if self.types is None else self.types[rows]
        return Examples(self.tokens[rows], self.labels[rows], self.where[rows], self.groups[rows], self.name, types)

    def split(self, share: float = 0.7, seed: int = 0) -> tuple[Examples, Examples]:
        """Two parts that share no group, the first with about `share` of the groups; raises `InputError` for fewer than
        two groups.
        """
        groups = self.groups.unique()
        if len(groups) < 2 or not 0 < share < 1:
            raise InputError(f"a split takes two groups or more and a share in (0, 1); got {len(groups)} and {share}")
        order = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
        first = order[: min(max(1, round(share * len(groups))), len(groups) - 1)]
        inside = torch.isin(self.groups, first)
        return self[inside.nonzero().flatten()], self[(~inside).nonzero().flatten()]

    def sha256(self) -> str:
        """Of tokens, labels, positions and groups."""
        return hash_tensors({"tokens": self.tokens, "labels": self.labels, "where": self.where, "groups": self.groups})


def marked_positions(
    mask: PositionMask, lengths: Tensor, spans: dict[str, PositionMask], position: str
) -> PositionMask:
    """Where prompts are read: a span, the last token, a token position or ``all``; raises `InputError` for others."""
    if position in spans:
        return spans[position]
    if position == "all":
        return mask
    chosen = torch.zeros_like(mask)
    if position == END:
        chosen[torch.arange(len(mask)), lengths - 1] = True
    elif position.isdigit() and int(position) < int(lengths.min()):
        chosen[:, int(position)] = True
    else:
        raise InputError(
            f"position is END, all, one of the spans {', '.join(spans) or '(none)'}, or a token position below "
            f"{int(lengths.min())}; got {position!r}"
        )
    return chosen


def _types(task: Task, span: str) -> Int[Tensor, " batch"]:
    """The first token of a span of every clean and corrupt prompt."""
    pairs, other = task.pairs, task.pairs.corrupt_as_host()
    if span not in pairs.spans or span not in other.spans:
        raise InputError(
            f"types are read at a span of the task, one of {', '.join(pairs.spans) or '(none)'}; got {span!r}"
        )
    sides = [side.clean_tokens.gather(1, side.spans[span].int().argmax(dim=1, keepdim=True)) for side in (pairs, other)]
    return torch.cat(sides)[:, 0]


@borrows
def record_positions(model: TransformerBridge, examples: ReadPrompts, site: Site) -> Float[Tensor, "batch pos d"]:
    """The vectors of every prompt at every position of one site; zeros where `where` is False. Cost: 1 forward of all
    prompts.
    """
    check_vector_site(site)
    check_ready(model).check_site(site)
    rows: list[Tensor] = []

    def hook(activation: Tensor, hook: object) -> None:
        rows.append((activation if site.head is None else activation[:, :, site.head]).cpu())

    with torch.no_grad(), hooked(model, [(hook_name(site), hook)]):
        for block in cut(len(examples), rows_that_fit(model, examples.tokens, sites=[site])):
            run_tail(model, examples.tokens[block].to(device_of(model)), 1)
    return torch.cat(rows) * examples.where[..., None]


@borrows
def record_examples(
    model: TransformerBridge, examples: ReadPrompts, sites: Sequence[Site]
) -> Float[Tensor, "site batch d"]:
    """The vectors of every prompt at some sites of one width, averaged over its positions. Cost: 1 forward of all
    prompts.

    Raises `InputError` for sites without a vector per position, or without a head where the kind has heads.
    """
    anatomy = check_ready(model)
    if not len(sites):
        raise InputError("states are read at one site or more, e.g. [Site('resid_post', 3)]; got none")
    for site in sites:
        check_vector_site(site)
        anatomy.check_site(site)
    rows: list[Tensor] = []
    for block in cut(len(examples), rows_that_fit(model, examples.tokens, sites=sites)):
        tokens, where = examples.tokens[block].to(device_of(model)), examples.where[block].to(device_of(model))
        found: dict[Site, Tensor] = {}

        def keep(site: Site, found: dict[Site, Tensor] = found, where: Tensor = where) -> Callable[..., None]:
            def hook(activation: Tensor, hook: object) -> None:
                x = activation if site.head is None else activation[:, :, site.head]
                weights = where.to(x) / where.sum(dim=1, keepdim=True).to(x)
                found[site] = torch.einsum("bp,bpd->bd", weights, x).cpu()

            return hook

        with torch.no_grad(), hooked(model, [(hook_name(site), keep(site)) for site in sites]):
            run_tail(model, tokens, 1)
        rows.append(torch.stack([found[site] for site in sites]))
    return torch.cat(rows, dim=1)


def check_vector_site(site: Site) -> None:
    """Raises `InputError` unless the site has one vector per position (of the named head)."""
    axes = SITE_KINDS[site.kind].axes
    per_head = "head" in axes
    if "pos" not in axes or per_head != (site.head is not None) or len(axes) != 3 + per_head:
        raise InputError(
            f"a direction lives at a site with one vector per position (with its head, for z, q, k, v); got {site}"
        )
