"""Roles on a task's spans: name movers, negative name movers, S-inhibition-like heads (Wang et al. 2022,
arXiv:2211.00593).

    name mover           attention END -> IO  x  max(0, copying of IO)       copying: 2 x percentile - 1 of the IO
    token's own logit negative name mover  attention END -> IO  x  max(0, -copying of IO)      in what the head writes
    from there S-inhibition         what ablating the head at END (by its mean there) takes from the preference of the
    strongest name movers
                         in later layers, attention END -> IO less END -> S1, as a share of their preference

Null distributions: for name movers, random earlier positions in place of IO; for S-inhibition, random signs of the
prompts' changes. S-inhibition is causal, so a head that feeds one also scores. Cost: 2 forwards, and 1 per head below
the last mover.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..runs.record import check_task, record_run
from ..sites import Site
from ..tasks.pairs import END
from ..tasks.task import Task
from .copying import source_logits
from .fitted import Ablation, fit_ablation
from .roles import RoleTable, enough_draws, p_of
from .spec import AblationSpec
from .targets import all_heads

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_MOVERS = 3


@borrows
def measure_span_roles(
    model: TransformerBridge, task: Task, *, n_movers: int = N_MOVERS, n_null: int | None = None, seed: int = 0
) -> RoleTable:
    """Name-mover, negative name-mover and S-inhibition scores of every head on a task with the spans IO, S1, S2 and
    END.

    Raises `InputError` for a task without these spans.
    """
    anatomy = check_task(model, task)
    spans = task.pairs.spans
    if missing := [name for name in ("IO", "S1", END) if name not in spans]:
        raise InputError(
            f"name movers are measured on the spans IO, S1 and END; task {task.name!r} lacks {', '.join(missing)}"
        )
    names = all_heads(anatomy)
    n_null = n_null or enough_draws(len(names))
    pairs = task.pairs.to(device_of(model))
    rows = torch.arange(len(pairs))
    ends = pairs.lengths.cpu() - 1
    run = record_run(model, pairs, ["pattern", "v"], n_tail=1, keep={"pattern": lambda p: p[rows, :, ends].cpu()})
    io, s1 = (spans[name].cpu().int().argmax(dim=1) for name in ("IO", "S1"))
    patterns = torch.stack([p.double() for p in run.layers["pattern"]])  # layer batch head key
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(n_null, len(pairs), generator=generator) * ends).long()
    attention = rearrange(patterns[:, rows, :, io], "batch layer head -> (layer head) batch")
    random = torch.stack(
        [rearrange(patterns[:, rows, :, keys], "batch layer head -> (layer head) batch").mean(dim=1) for keys in drawn]
    )
    copying = torch.stack(
        [
            _copying(model, run.layers["v"], pairs.clean_tokens.cpu(), io, *divmod(i, anatomy.n_heads))
            for i in range(len(names))
        ]
    )
    scores = {
        "name mover": attention.mean(dim=1) * copying.clamp(min=0),
        "negative name mover": attention.mean(dim=1) * (-copying).clamp(min=0),
    }
    null = {"name mover": random * copying.clamp(min=0), "negative name mover": random * (-copying).clamp(min=0)}
    movers = scores["name mover"].argsort(descending=True)[:n_movers].tolist()
    changes = _inhibition(model, task, movers, io, s1, ends)
    preference = float(_preference(patterns, rows, io, s1, movers).mean())
    scores["S-inhibition"] = (
        changes.mean(dim=1) / preference if abs(preference) > 1e-12 else torch.zeros(len(names)).double()
    )
    signs = 2 * torch.randint(2, (n_null, 1, len(pairs)), generator=generator) - 1
    null["S-inhibition"] = (changes * signs).mean(dim=2) / (preference if abs(preference) > 1e-12 else 1.0)
    facts = build_provenance(
        method="roles on task spans", model=identify_model(model), task=task.provenance(), n_null=n_null, seed=seed
    )
    said = ", ".join(names[i] for i in movers)
    return RoleTable(
        names,
        scores,
        {role: values.mean(dim=0) for role, values in null.items()},
        {role: values.std(dim=0) for role, values in null.items()},
        {role: p_of(scores[role], null[role]) for role in scores},
        facts,
        (
            (
                f"S-inhibition: by what ablating a head at END takes from the preference of {said} for IO over S1, "
                f"{preference:.2f} in attention"
            ),
        ),
    )


def _copying(model: TransformerBridge, v: list[Tensor], tokens: Tensor, io: Tensor, layer: int, head: int) -> Tensor:
    """Mean 2 x percentile - 1 of the IO token in what the head writes from it."""
    rows = torch.arange(len(tokens))
    at = v[layer][rows, io.to(v[layer].device)][:, None]
    logits = source_logits(model, layer, head, at).cpu()[:, 0]
    own = logits.gather(1, tokens[rows, io][:, None])
    below = (logits < own).sum(dim=1).double() + ((logits == own).sum(dim=1).double() - 1) / 2
    return (2 * below / (logits.shape[1] - 1) - 1).mean()


def _preference(
    patterns: Float[Tensor, "layer batch head key"], rows: Tensor, io: Tensor, s1: Tensor, movers: list[int]
) -> Float[Tensor, "mover batch"]:
    """Attention of each mover to IO less that to S1."""
    n_heads = patterns.shape[2]
    return torch.stack(
        [patterns[i // n_heads, rows, i % n_heads, io] - patterns[i // n_heads, rows, i % n_heads, s1] for i in movers]
    )


def _inhibition(
    model: TransformerBridge, task: Task, movers: list[int], io: Tensor, s1: Tensor, ends: Tensor
) -> Float[Tensor, "head batch"]:
    """What ablating each head at END takes from the mean preference of the movers in later layers; 0 where there are
    none.
    """
    anatomy = check_task(model, task)
    pairs = task.pairs.to(device_of(model))
    names, rows = all_heads(anatomy), torch.arange(len(pairs))
    fitted = fit_ablation(model, AblationSpec(names, "mean", [END]), task)
    layers = sorted({i // anatomy.n_heads for i in movers})
    sites = [Site("pattern", layer) for layer in layers]

    def movers_preference() -> Float[Tensor, "mover batch"]:
        run = record_run(model, pairs, sites, n_tail=1, keep={"pattern": lambda p: p[rows, :, ends].cpu()})
        found = {layer: p.double() for layer, p in zip(layers, run.layers["pattern"], strict=True)}
        return torch.stack(
            [
                found[i // anatomy.n_heads][rows, i % anatomy.n_heads, io]
                - found[i // anatomy.n_heads][rows, i % anatomy.n_heads, s1]
                for i in movers
            ]
        )

    whole = movers_preference()
    changes = torch.zeros(len(names), len(pairs), dtype=torch.float64)
    for row, name in enumerate(names):
        later = torch.tensor([i // anatomy.n_heads > row // anatomy.n_heads for i in movers])
        if bool(later.any()):
            one = Ablation(fitted.spec.only(name), fitted.tables, fitted.model, fitted.reference)
            with one.applied(model, pairs):
                changes[row] = (whole - movers_preference())[later].mean(dim=0)
    return changes
