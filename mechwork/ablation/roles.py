"""What each head does, measured on random repeated tokens, each score beside its own null distribution.

With a query at column q of the repetition of a list of n tokens (see `repeated`):

    previous token   mean attention from q to q - 1 (over all queries with at least two earlier columns)
    duplicate token  mean attention from q to q - n, where the same token stood
    induction        mean attention from q to q - n + 1, the token after it (prefix matching, Olsson et al. 2022)
    copying          2 x percentile - 1 of an attended token's own logit in what the head writes from there, weighted by
    the
                     attention of the repetition's queries: 1 = raised above the whole vocabulary, 0 = chance, -1 =
                     lowered below it
    anti-induction   induction x max(0, -copying): attends to the token that comes next, and lowers it

Null distributions: for attention, the mean attention to random earlier columns (drawn anew for every prompt and query);
for copying, the percentiles of random tokens of the same prompts in the same writes. p is the share of null draws (the
score itself counted) that
reach the score (for copying: of a normal with the mean and spread of 100 draws); roles are given at Holm-corrected p
below 0.05 *and* a score of at least `LEAST`. Cost: 1 forward per 32 prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import record_run
from ..statistics import holm
from .copying import own_percentiles
from .repeated import RepeatedTokens, repeated_tokens
from .targets import all_heads

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ATTENTION = ("previous token", "duplicate token", "induction")
ROLES = (*ATTENTION, "copying", "anti-induction")
LEAST = 0.3
"""The smallest score that a role is given for."""
ALPHA = 0.05


N_COPYING = 100
"""Null draws of copying, which cost a look-up in the vocabulary each."""


def enough_draws(n_heads: int) -> int:
    """Null draws with which a head of `n_heads` can still reach a corrected p of 0.025."""
    return max(200, 40 * n_heads)


@dataclass(frozen=True, eq=False)
class RoleTable(Result):
    """Scores ``[head]`` by role, with the mean and standard deviation of each head's null distribution and the p-value.

    `extra` holds scores of further roles, of task spans (see `span_roles`).
    """

    heads: tuple[str, ...]
    scores: dict[str, Float[Tensor, " head"]]
    null_mean: dict[str, Float[Tensor, " head"]]
    null_sd: dict[str, Float[Tensor, " head"]]
    p: dict[str, Float[Tensor, " head"]]
    provenance: Provenance
    notes: tuple[str, ...] = field(default_factory=tuple)

    def top(self, role: str, n: int = 5) -> list[tuple[str, float]]:
        """The `n` heads of highest score for a role."""
        order = self.scores[role].argsort(descending=True)[:n].tolist()
        return [(self.heads[i], float(self.scores[role][i])) for i in order]

    def roles_of(self, head: str) -> tuple[str, ...]:
        """The roles a head is given: score at least `LEAST` and corrected p below 0.05, strongest first."""
        row = self.heads.index(head)
        given = [
            role
            for role in self.scores
            if float(self.scores[role][row]) >= LEAST and float(holm(self.p[role])[row]) < ALPHA
        ]
        return tuple(sorted(given, key=lambda role: -float(self.scores[role][row])))

    def with_roles(self, other: RoleTable) -> RoleTable:
        """This table with the roles of another one of the same heads added."""
        merged = {
            name: {**getattr(self, name), **getattr(other, name)} for name in ("scores", "null_mean", "null_sd", "p")
        }
        return RoleTable(
            self.heads,
            **merged,
            provenance={**self.provenance, "with": other.provenance},
            notes=(*self.notes, *other.notes),
        )

    def _table(self) -> Table:
        """One row per head and role."""
        tables = {"score": self.scores, "null_mean": self.null_mean, "null_sd": self.null_sd, "p": self.p}
        return [
            {"head": head, "role": role, **{name: float(table[role][i]) for name, table in tables.items()}}
            for role in self.scores
            for i, head in enumerate(self.heads)
        ]

    def __str__(self) -> str:
        names = list(self.scores)
        width = max(10, *(len(name) + 1 for name in names))
        lines = [f"{'head':<8}" + "".join(f"{name:>{width}}" for name in names) + "  role"]
        for i, head in enumerate(self.heads):
            values = "".join(f"{float(self.scores[name][i]):{width}.2f}" for name in names)
            lines.append(f"{head:<8}{values}  {', '.join(self.roles_of(head))}")
        lines.append(f"{'chance':<8}" + "".join(f"{float(self.null_mean[name].mean()):{width}.2f}" for name in names))
        return "\n".join([*lines, *self.notes])


@borrows
def measure_roles(
    model: TransformerBridge, prompts: RepeatedTokens | None = None, *, n_null: int | None = None, seed: int = 0
) -> RoleTable:
    """Role scores of every head on repeated random tokens (default: 32 prompts of 12 tokens and 11 of them again).

    `n_null` draws make each null distribution (default: enough for the correction over heads).

    >>> measure_roles(model).top("induction", 1)
    """
    anatomy = check_ready(model)
    prompts = prompts or repeated_tokens(model, seed=seed)
    names = all_heads(anatomy)
    n_null = n_null or enough_draws(len(names))
    sums: dict[str, Tensor] = {}
    nulls: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    generator = torch.Generator().manual_seed(seed)
    weighted = torch.zeros(2, len(names), dtype=torch.float64)
    n_draws = min(n_null, N_COPYING)
    null_copying = torch.zeros(n_draws, len(names), dtype=torch.float64)
    for pairs in prompts.task.pairs.batches(32):
        pairs = pairs.to(device_of(model))
        run = record_run(model, pairs, ["pattern", "v"], n_tail=1)
        patterns = torch.stack([p.cpu().double() for p in run.layers["pattern"]])
        for role, (queries, keys) in _looks(prompts, patterns.shape[-1]).items():
            seen = patterns[:, :, :, queries, keys]  # layer batch head query
            drawn = _random_keys(queries, keys, (n_null, len(pairs)), generator)
            sums[role] = sums.get(role, 0) + seen.sum(dim=(1, 3)).flatten()
            nulls[role] = nulls.get(role, 0) + _attention_at(patterns, queries, drawn)
            counts[role] = counts.get(role, 0) + len(pairs) * len(queries)
        tokens = pairs.clean_tokens.cpu()
        received = patterns[:, :, :, prompts.queries].clone()
        received[..., torch.arange(len(prompts.queries)), prompts.queries] = (
            0  # what a token sees of itself is no copying
        )
        received = received.sum(dim=3)  # layer batch head key
        for i in range(len(names)):
            layer, head = divmod(i, anatomy.n_heads)
            own, null = own_percentiles(model, layer, head, run.layers["v"][layer], tokens, n_draws, generator)
            weight = received[layer, :, head]
            weighted[:, i] += torch.stack([(weight * (2 * own - 1)).sum(), weight.sum()])
            null_copying[:, i] += (weight * (2 * null - 1)).sum(dim=(1, 2))
    scores = {role: sums[role] / counts[role] for role in ATTENTION}
    null = {role: nulls[role] / counts[role] for role in ATTENTION}
    received_all = weighted[1].clamp(min=1e-30)
    scores["copying"], null["copying"] = weighted[0] / received_all, null_copying / received_all
    scores["anti-induction"] = scores["induction"] * (-scores["copying"]).clamp(min=0)
    null["anti-induction"] = null["induction"][:n_draws] * (-null["copying"]).clamp(min=0)
    p = {role: p_of(scores[role], null[role]) for role in ATTENTION}
    p["copying"] = _normal_p(scores["copying"], null["copying"])
    p["anti-induction"] = torch.maximum(p["induction"], _normal_p(-scores["copying"], -null["copying"]))
    facts = build_provenance(
        method="roles on repeated tokens",
        model=identify_model(model),
        task=prompts.task.provenance(),
        n_null=n_null,
        seed=seed,
    )
    means = {role: values.mean(dim=0) for role, values in null.items()}
    spreads = {role: values.std(dim=0) for role, values in null.items()}
    return RoleTable(names, scores, means, spreads, p, facts)


def p_of(scores: Float[Tensor, " head"], null: Float[Tensor, "draw head"]) -> Float[Tensor, " head"]:
    """Share of null draws that reach the score, the score itself counted."""
    return (1 + (null >= scores - 1e-12).sum(dim=0).double()) / (1 + len(null))


def _normal_p(scores: Float[Tensor, " head"], null: Float[Tensor, "draw head"]) -> Float[Tensor, " head"]:
    """One-sided p under a normal of the null draws' mean and spread (means over many tokens); 1 where they do not
    spread.
    """
    spread = null.std(dim=0)
    z = (scores - null.mean(dim=0)) / spread.clamp(min=1e-12)
    return torch.where(spread > 1e-12, torch.special.erfc(z / 2**0.5) / 2, torch.ones_like(z))


def _looks(prompts: RepeatedTokens, width: int) -> Mapping[str, tuple[Int[Tensor, " query"], Int[Tensor, " query"]]]:
    """(queries, keys) of every attention role."""
    queries = prompts.queries
    every = torch.arange(2, width)
    return {
        "previous token": (every, every - 1),
        "duplicate token": (queries, queries - prompts.length),
        "induction": (queries, queries - prompts.length + 1),
    }


def _random_keys(
    queries: Int[Tensor, " query"], keys: Int[Tensor, " query"], shape: tuple[int, int], generator: torch.Generator
) -> Int[Tensor, "draw batch query"]:
    """Random columns before each query, other than its own key."""
    uniform = torch.rand(*shape, len(queries), generator=generator)
    drawn = (uniform * (queries - 1)).long().clamp(min=0)
    return drawn + (drawn >= keys).long()


def _attention_at(
    patterns: Float[Tensor, "layer batch head query_pos key_pos"],
    queries: Int[Tensor, " query"],
    keys: Int[Tensor, "draw batch query"],
) -> Float[Tensor, "draw head2"]:
    """Summed attention to the drawn keys, per draw and head (all layers' heads in a row)."""
    rows = patterns[:, :, :, queries]
    n_layers, _, n_heads = rows.shape[:3]
    found = []
    for drawn in keys:
        index = drawn[None, :, None, :, None].expand(n_layers, -1, n_heads, -1, 1)
        found.append(rows.gather(-1, index).sum(dim=(1, 3, 4)).flatten())
    return torch.stack(found)
