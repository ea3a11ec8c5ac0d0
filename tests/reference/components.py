"""Component studies the slow way: every write formed, every attention weight looked at, the whole token-to-token
matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechwork.models.anatomy import block_norm, final_norm
from mechwork.runs import record_run
from mechwork.tasks.task import Task


def writes(model: Any, task: Task, node: str) -> Tensor:
    """``[batch, pos, d_model]``."""
    if node.startswith("m"):
        return record_run(model, task.pairs, ["mlp_out"]).layers["mlp_out"][int(node[1:])]
    layer, head = (int(part) for part in node[1:].split(".h"))
    z = record_run(model, task.pairs, ["z"]).layers["z"][layer][:, :, head]
    return z @ model.blocks[layer].attn.W_O[head].detach()


def activations(model: Any, task: Task, node: str) -> list[list[float]]:
    """|write - mean write| at every token but the first, 0 there; the mean is over all of them."""
    written, lengths = writes(model, task, node), task.pairs.lengths.tolist()
    counted = [(i, p) for i, n in enumerate(lengths) for p in range(1, n)]
    mean = torch.stack([written[i, p] for i, p in counted]).mean(dim=0)
    return [[0.0, *(float((written[i, p] - mean).norm()) for p in range(1, n))] for i, n in enumerate(lengths)]


def direct_logits(model: Any, task: Task, node: str) -> Tensor:
    """Of the write at the first prompt's last token, through the final norm's linear part; less their mean."""
    end = int(task.pairs.lengths[0]) - 1
    write = writes(model, task, node)[0, end]
    stream = record_run(model, task.pairs, ["resid_post"]).layers["resid_post"][-1][0, end]
    norm = final_norm(model)
    if norm is not None:
        centre = (lambda x: x - x.mean()) if norm.centred else (lambda x: x)
        write = norm.gain * centre(write) / (centre(stream).pow(2).mean() + norm.eps).sqrt()
    logits = write @ model.W_U.detach()
    return logits - logits.mean()


def looks(model: Any, task: Task, layer: int, head: int) -> dict[str, float]:
    """Mean attention by kind of key, query by query from the third token on."""
    pattern = record_run(model, task.pairs, ["pattern"]).layers["pattern"][layer][:, head]
    found: dict[str, list[float]] = {}
    for i, length in enumerate(task.pairs.lengths.tolist()):
        tokens = task.pairs.clean_tokens[i].tolist()
        for q in range(2, length):
            copies = [k for k in range(q) if tokens[k] == tokens[q]]
            keys = {
                "previous token": [q - 1], "first token": [0], "itself": [q], "earlier copy": copies,
                "after an earlier copy": [k + 1 for k in copies if k + 1 < q],
            }  # fmt: skip
            for name, where in keys.items():
                if where:
                    found.setdefault(name, []).append(sum(float(pattern[i, q, k]) for k in where))
    return {name: sum(values) / len(values) for name, values in found.items()}


def copying(model: Any, layer: int, head: int) -> float:
    """From all eigenvalues of the matrix that takes each token to its effect on each logit."""
    attn, W_E, W_U = model.blocks[layer].attn, model.W_E.detach().double(), model.W_U.detach().double()
    group = model.cfg.n_heads // attn.W_V.shape[0]
    before, last = block_norm(model, layer, "ln1"), final_norm(model)
    if before is not None:
        W_E = (W_E - W_E.mean(dim=1, keepdim=True) if before.centred else W_E) * before.gain.double()
    read = W_E @ attn.W_V[head // group].detach().double()
    write = read @ attn.W_O[head].detach().double()
    if last is not None:
        write = (write - write.mean(dim=1, keepdim=True) if last.centred else write) * last.gain.double()
    values = torch.linalg.eigvals(write @ W_U)
    return float(values.real.sum() / values.abs().sum())
