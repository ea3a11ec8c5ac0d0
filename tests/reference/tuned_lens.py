"""The tuned lens as the paper defines it (Belrose et al. 2023, equations 5 to 7), on Hugging Face modules, in plain
loops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def literal_tuned_lens(module: Any, tokens: Tensor, layer: int, weight: Tensor, bias: Tensor) -> Tensor:
    """logits = W_U LayerNorm(A h_l + b), with A = I + W, h_l the module's own hidden states, norm and unembedding."""
    body = module.base_model
    with torch.no_grad():
        hidden = body(tokens, output_hidden_states=True).hidden_states[layer]
        norm = next(getattr(body, name) for name in ("ln_f", "final_layer_norm", "norm") if hasattr(body, name))
        matrix = torch.eye(len(weight), dtype=weight.dtype) + weight
        read = module.get_output_embeddings()
        rows = [torch.stack([read(norm(matrix @ h + bias)) for h in prompt]) for prompt in hidden]
    return torch.stack(rows)


def literal_ridge(x: Tensor, last: Tensor, scale: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression of last - x on x by an augmented least-squares problem: W and b of one place."""
    w = 1 / scale**2
    share = (w / w.sum()).sqrt()[:, None]
    mean = (w[:, None] * x).sum(0) / w.sum()
    centred = x - mean
    covariance = (share * centred).T @ (share * centred)
    penalty = (ridge * covariance.diagonal().mean() + 1e-12) ** 0.5
    d = x.shape[1]
    rows = torch.cat(
        [
            torch.cat([centred, torch.ones(len(x), 1, dtype=x.dtype)], 1) * share,
            penalty * torch.eye(d, d + 1, dtype=x.dtype),
        ]
    )
    goal = torch.cat([share * (last - x), torch.zeros(d, d, dtype=x.dtype)])
    solution = torch.linalg.lstsq(rows, goal).solution
    weight = solution[:d].T
    return weight, solution[d] - weight @ mean


def literal_losses(model: Any, tokens: Tensor, maps: list[Any]) -> list[Tensor]:
    """Mean D(model || reading) in nats of every place, from the logits of all places at once, with autograd all the
    way.
    """
    _, cache = model.run_with_cache(tokens)
    p = model(tokens).log_softmax(-1)
    found = []
    for layer, to_last in enumerate(maps):
        x = to_last(cache[f"blocks.{layer}.hook_resid_pre"])
        logits = model.adapter.apply_output_logits_transform(model.ln_final(x) @ model.W_U + model.b_U)
        found.append((p.exp() * (p - logits.log_softmax(-1))).sum(-1).mean())
    return found
