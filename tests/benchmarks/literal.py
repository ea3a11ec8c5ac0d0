"""EAP as its paper says it (Syed, Rager and Conmy 2023), in plain torch hooks, one reader after another: what somebody
writes in an afternoon, correct and not made fast. For Llama-shaped models; of mechwork it uses the loaded modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mechwork as mw


def literal_eap(model: Any, task: mw.Task) -> Tensor:
    """Scores ``[writer, reader]``, mean over pairs, in mechwork's order of writers and readers."""
    pairs, d_head = task.pairs, model.cfg.d_head
    with torch.no_grad():
        donor, _ = _record(model, pairs.clean_tokens)
    host, logits = _record(model, pairs.corrupt_tokens)
    wanted = [host[layer, kind] for layer in range(len(model.blocks)) for kind in ("q", "k", "v", "ln2")]
    *inner, end = torch.autograd.grad(task.measure(logits, pairs).sum(), [*wanted, host["end"]])
    grads = iter(inner)
    writes = torch.stack(_writes(model, donor)) - torch.stack(_writes(model, host))
    columns: list[Tensor] = []

    def read(n_seen: int, coefficient: Tensor) -> None:
        column = torch.einsum("wbpd,bpd->w", writes[:n_seen], coefficient) / len(task)
        columns.append(torch.nn.functional.pad(column, (0, len(writes) - n_seen)))

    for layer, block in enumerate(model.blocks):
        seen = 1 + layer * (model.cfg.n_heads + 1)
        for kind in "qkv":
            g, linear = next(grads), getattr(block.attn, kind)
            for head in range(g.shape[-1] // d_head):
                own, mine = torch.zeros_like(g), slice(head * d_head, (head + 1) * d_head)
                own[..., mine] = g[..., mine]
                read(seen, _pull_back(torch.nn.Sequential(block.ln1, linear), host[layer, "pre"], own))
        read(seen + model.cfg.n_heads, _pull_back(block.ln2, host[layer, "mid"], next(grads)))
    read(len(writes), end)
    return torch.stack(columns, dim=1)


def _pull_back(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(function(x), x, g.view_as(function(x)))[0]


def _record(model: Any, tokens: Tensor) -> tuple[dict[Any, Tensor], Tensor]:
    """What the modules are given and give, by (layer, kind), and the logits."""
    kept: dict[Any, Tensor] = {}

    def keep(module: Any, key: Any, *, given: bool = False) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            kept[key] = args[0] if given else output

        return module.register_forward_hook(hook)

    handles = [keep(model.ln_final, "end", given=True)]
    for layer, block in enumerate(model.blocks):
        handles += [keep(getattr(block.attn, kind), (layer, kind)) for kind in "qkv"]
        handles += [keep(block.attn.o, (layer, "z"), given=True), keep(block.mlp, (layer, "mlp"))]
        handles += [keep(block.ln1, (layer, "pre"), given=True), keep(block.ln2, (layer, "mid"), given=True)]
        handles.append(keep(block.ln2, (layer, "ln2")))
    handles.append(model.blocks[0].register_forward_pre_hook(_needs_grad))
    try:
        logits = model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return kept, logits


def _needs_grad(module: Any, args: tuple[Any, ...]) -> Any:
    return (args[0].requires_grad_(torch.is_grad_enabled()), *args[1:]) if args else None


def _writes(model: Any, kept: dict[Any, Tensor]) -> list[Tensor]:
    found = [kept[0, "pre"].detach()]
    for layer, block in enumerate(model.blocks):
        z = kept[layer, "z"].detach().unflatten(-1, (model.cfg.n_heads, -1))
        found += [z[..., head, :] @ block.attn.W_O[head].detach() for head in range(model.cfg.n_heads)]
        found.append(kept[layer, "mlp"].detach())
    return found
