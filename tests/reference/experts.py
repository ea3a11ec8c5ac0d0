"""A mixture of experts as a loop over tokens: what its block puts out when its router says some logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def router_by_hand(block: Any, x: Tensor) -> Tensor:
    """Logits ``[batch, pos, expert]`` of a block's input: one inner product per token and expert."""
    return torch.stack([x @ row for row in block.gate.weight.to(x)], dim=-1)


def mixture_by_hand(block: Any, x: Tensor, logits: Tensor, only: int | None = None) -> Tensor:
    """The block's output for its input `x` ``[batch, pos, d_model]``, in the autograd graph of `logits`; with `only`,
    what that expert adds to it.
    """
    rows = []
    for row in range(x.shape[0]):
        for position in range(x.shape[1]):
            token, share = x[row, position], logits[row, position].softmax(dim=-1)
            order = sorted(range(len(share)), key=lambda e, share=share: -float(share[e].detach()))
            chosen = order[: int(block.gate.top_k)]
            total: Any = sum(share[e] for e in chosen) if getattr(block.gate, "norm_topk_prob", True) else 1.0
            said: Any = torch.zeros_like(token)
            for e in chosen if only is None else [e for e in chosen if e == only]:
                gate, up = (block.experts.gate_up_proj[e] @ token).chunk(2)
                said = said + share[e] / total * (block.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
            rows.append(said)
    return torch.stack(rows).view_as(x)
