"""Training of a GPT-2 with heads held, as loops: a document, a query and a head at a time, AdamW by its definition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Held = Mapping[tuple[int, int], tuple[str, str]]
"""(layer, head) -> (what, to) as in `TrainingClamp`; ``to`` of a model is its key in `donors`."""


def norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


def run_document(
    w: Weights, tokens: Sequence[int], shape: tuple[int, int], held: Held, donors: Mapping[str, Weights]
) -> tuple[Tensor, dict[tuple[int, int], list[Tensor]], dict[tuple[int, int], list[Tensor]]]:
    """Logits [pos, d_vocab], and by (layer, head) the pattern's row and the output at every position."""
    n_layers, n_heads = shape
    others = {name: run_document(other, tokens, shape, {}, {})[1:] for name, other in donors.items()}
    x = torch.stack([w["transformer.wte.weight"][t] + w["transformer.wpe.weight"][i] for i, t in enumerate(tokens)])
    patterns: dict[tuple[int, int], list[Tensor]] = {}
    outputs: dict[tuple[int, int], list[Tensor]] = {}
    for layer in range(n_layers):
        at = f"transformer.h.{layer}."
        h = norm(x, w[at + "ln_1.weight"], w[at + "ln_1.bias"])
        qkv = h @ w[at + "attn.c_attn.weight"] + w[at + "attn.c_attn.bias"]
        q, k, v = (part.unflatten(-1, (n_heads, -1)) for part in qkv.chunk(3, dim=-1))
        moved = []
        for i in range(len(tokens)):
            heads = []
            for head in range(n_heads):
                scores = torch.stack([q[i, head] @ k[j, head] / math.sqrt(q.shape[-1]) for j in range(i + 1)])
                row = scores.exp() / scores.exp().sum()
                what, to = held.get((layer, head), ("", ""))
                if what == "pattern" and to == "uniform":
                    row = torch.full_like(row, 1 / (i + 1))
                elif what == "pattern" and to == "previous":
                    row = torch.zeros_like(row)
                    row[max(i - 1, 0)] = 1.0
                elif what == "pattern":
                    row = others[to][0][layer, head][i].detach()
                z = torch.stack([row[j] * v[j, head] for j in range(i + 1)]).sum(0)
                if what == "z":
                    z = torch.zeros_like(z) if to == "zero" else others[to][1][layer, head][i].detach()
                patterns.setdefault((layer, head), []).append(row)
                outputs.setdefault((layer, head), []).append(z)
                heads.append(z)
            moved.append(torch.cat(heads))
        x = x + torch.stack(moved) @ w[at + "attn.c_proj.weight"] + w[at + "attn.c_proj.bias"]
        h = norm(x, w[at + "ln_2.weight"], w[at + "ln_2.bias"])
        a = h @ w[at + "mlp.c_fc.weight"] + w[at + "mlp.c_fc.bias"]
        a = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        x = x + a @ w[at + "mlp.c_proj.weight"] + w[at + "mlp.c_proj.bias"]
    x = norm(x, w["transformer.ln_f.weight"], w["transformer.ln_f.bias"])
    return x @ w["transformer.wte.weight"].T, patterns, outputs


def loss_of(
    w: Weights,
    documents: Sequence[tuple[list[int], list[float]]],
    shape: tuple[int, int],
    held: Held,
    donors: Mapping[str, Weights],
) -> Tensor:
    total, mass = torch.zeros((), dtype=torch.float64), 0.0
    for tokens, weights in documents:
        logits = run_document(w, tokens, shape, held, donors)[0]
        for i in range(1, len(tokens)):
            total = total - weights[i] * (logits[i - 1][tokens[i]] - logits[i - 1].logsumexp(0))
            mass += weights[i]
    return total / mass


def train(
    start: Weights,
    steps: Sequence[Sequence[tuple[list[int], list[float]]]],
    rates: Sequence[float],
    recipe: Any,
    held: Held,
    donors: Mapping[str, Weights],
) -> dict[str, Tensor]:
    """The weights after these steps: gradient, clipped to length `recipe.clip`, AdamW."""
    w = {name: value.detach().clone().requires_grad_(True) for name, value in start.items()}
    first = {name: torch.zeros_like(value) for name, value in w.items()}
    second = {name: torch.zeros_like(value) for name, value in w.items()}
    b1, b2 = recipe.betas
    for t, (documents, rate) in enumerate(zip(steps, rates, strict=True), start=1):
        loss = loss_of(w, documents, (recipe.n_layers, recipe.n_heads), held, donors)
        found = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))
        length = math.sqrt(sum(float(g.pow(2).sum()) for g in found.values()))
        scale = min(1.0, recipe.clip / (length + 1e-6))
        for name, value in w.items():
            g = found[name] * scale
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g * g
            decay = recipe.embedding_decay if name.endswith(("wte.weight", "wpe.weight")) else recipe.weight_decay
            with torch.no_grad():
                if value.ndim == 2:
                    value.mul_(1 - rate * decay)
                value.sub_(rate * (first[name] / (1 - b1**t)) / ((second[name] / (1 - b2**t)).sqrt() + 1e-8))
    return {name: value.detach() for name, value in w.items()}
