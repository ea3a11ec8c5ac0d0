"""Slow literal forms of the fast methods: plain loops that follow the definitions, sharing as little code as possible.

Each is named after the definition it follows; tests compare the fast methods with them in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Metric = Callable[[Tensor], Tensor]
"""logits [batch, pos, vocab] -> one value per example."""


def hook(site: str, layer: int) -> str:
    inner = {"q", "k", "v", "z", "pattern"}
    return f"blocks.{layer}.attn.hook_{site}" if site in inner else f"blocks.{layer}.hook_{site}"


def cached(model: Any, tokens: Tensor) -> Any:
    """All activations of a run, through the host's own cache."""
    with torch.no_grad():
        return model.run_with_cache(tokens)[1]


def patch_cell(
    model: Any,
    host: Tensor,
    value: Tensor,
    site: str,
    layer: int,
    metric: Metric,
    pos: int | list[int] | None = None,
    head: int | None = None,
) -> Tensor:
    """One whole forward with one cell replaced: activation patching as it is defined."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        new = activation.clone()
        where = slice(None) if pos is None else pos
        if head is None:
            new[:, where] = value[:, where]
        else:
            new[:, where, head] = value[:, where, head]
        return new

    with torch.no_grad():
        return metric(model.run_with_hooks(host, fwd_hooks=[(hook(site, layer), put)]))


def gradient_at(model: Any, tokens: Tensor, site: str, layer: int, metric: Metric) -> Tensor:
    """d (sum of the metric) / d activation, by giving the forward pass a leaf at that place."""
    leaf: list[Tensor] = []

    def put(activation: Tensor, hook: Any) -> Tensor:
        leaf.append(activation.detach().requires_grad_(True))
        return leaf[0]

    with torch.enable_grad():
        value = metric(model.run_with_hooks(tokens, fwd_hooks=[(hook(site, layer), put)])).sum()
        return torch.autograd.grad(value, leaf[0])[0]


class LiteralGraph:
    """The model as an explicit graph: every reader's input is summed up writer by writer, every head projected on its
    own.

    `write[u]` is what writer u adds to the stream; a reader sees constant biases plus, for each writer before it, the
    live write when the edge is in the circuit and the other run's write when it is not. No differences, no einsum over
    readers, no shared code with `mechwork.circuits`.
    """

    def __init__(self, model: Any, *, split_input: bool = False) -> None:
        self.model, self.split_input = model, split_input
        cfg = model.cfg
        self.n_layers, self.n_heads = cfg.n_layers, cfg.n_heads
        self.n_kv = cfg.n_key_value_heads or cfg.n_heads
        self.parallel = bool(cfg.parallel_attn_mlp)

    def writes_of(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every writer's write in a plain run."""
        cache = cached(self.model, tokens)
        if self.split_input:
            writes = {"embed": cache["hook_embed"], "pos_embed": cache["hook_pos_embed"].expand_as(cache["hook_embed"])}
        else:
            writes = {"input": cache["blocks.0.hook_resid_pre"]}
        for layer in range(self.n_layers):
            writes |= self._heads(layer, cache[hook("z", layer)])
            if hook("mlp_out", layer) in cache:
                writes[f"m{layer}"] = cache[hook("mlp_out", layer)]
        return writes

    def _heads(self, layer: int, z: Tensor) -> dict[str, Tensor]:
        block = self.model.blocks[layer]
        parts = [z[:, :, h] @ block.attn.W_O[h] for h in range(self.n_heads)]
        if "ln1_post" in block.submodules:
            norm = block.ln1_post
            total = sum(parts)
            assert isinstance(total, Tensor)
            eps = getattr(norm.original_component, "eps", None) or norm.original_component.variance_epsilon
            rms = (total.pow(2).mean(-1, keepdim=True) + eps).sqrt()
            gain = norm.weight + 1 if norm.uses_weight_offset else norm.weight
            parts = [gain * part / rms for part in parts]
        return {f"a{layer}.h{h}": part for h, part in enumerate(parts)}

    def _norm(self, layer: int, name: str, x: Tensor) -> Tensor:
        block = self.model.blocks[layer]
        if name not in block.submodules or isinstance(getattr(block, name).original_component, torch.nn.Identity):
            return x
        norm = getattr(block, name)
        original = norm.original_component
        if isinstance(original, torch.nn.LayerNorm):
            return torch.nn.functional.layer_norm(x, x.shape[-1:], norm.weight, original.bias, original.eps)
        eps = getattr(original, "eps", None) or original.variance_epsilon
        gain = norm.weight + 1 if norm.uses_weight_offset else norm.weight
        return gain * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def run(  # noqa: C901 - one forward pass, told in the order it runs
        self,
        tokens: Tensor,
        other: dict[str, Tensor],
        keep: Callable[[str, str], Any],
        nudge: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits of the circuit of edges for which `keep(writer, reader)`; `nudge` is added to readers' inputs
        by name.
        """
        live: dict[str, Tensor] = {}
        bias = torch.zeros((), dtype=next(self.model.parameters()).dtype)
        constant: list[Tensor] = [bias]
        hooks: list[tuple[str, Any]] = []

        def seen(reader: str) -> Tensor:
            total: Any = sum(constant)
            for writer in list(live):
                kept: Any = keep(writer, reader)  # or, for circuits by span, a mask of positions
                if isinstance(kept, Tensor):
                    total = total + torch.where(kept[..., None], live[writer], other[writer])
                else:
                    total = total + (live[writer] if kept else other[writer])
            return total + nudge[reader] if nudge and reader in nudge else total

        def enter(activation: Tensor, hook: Any) -> None:
            if "input" not in live:
                live["input"] = activation

        def part(activation: Tensor, hook: Any, name: str) -> None:
            live[name] = activation

        if self.split_input:
            hooks += [(f"hook_{name}", partial(part, name=name)) for name in ("embed", "pos_embed")]
        else:
            hooks.append(("blocks.0.hook_resid_pre", enter))
        for layer in range(self.n_layers):
            attn = self.model.blocks[layer].attn
            for kind, n, weight, b in (
                ("q", self.n_heads, attn.W_Q, attn.b_Q),
                ("k", self.n_kv, attn.W_K, attn.b_K),
                ("v", self.n_kv, attn.W_V, attn.b_V),
            ):

                def read(
                    activation: Tensor,
                    hook: Any,
                    layer: int = layer,
                    kind: str = kind,
                    n: int = n,
                    w: Any = weight,
                    b: Any = b,
                ) -> Tensor:
                    heads = []
                    for h in range(n):
                        x = self._norm(layer, "ln1", seen(f"a{layer}.h{h}<{kind}>"))
                        heads.append(x @ w[h] + (0 if b is None else b[h]))
                    return torch.stack(heads, dim=2)

                hooks.append((hook(kind, layer), read))

            pending: dict[str, Tensor] = {}

            def heads(z: Tensor, hook: Any, layer: int = layer, pending: dict[str, Tensor] = pending) -> None:
                pending.update(self._heads(layer, z))
                if not self.parallel:
                    land(layer, pending)

            def land(layer: int, pending: dict[str, Tensor]) -> None:
                live.update(pending)
                b_O = self.model.blocks[layer].attn.b_O
                if b_O is not None:
                    constant.append(b_O)

            def mlp_in(activation: Tensor, hook: Any, layer: int = layer) -> Tensor:
                shared = (
                    "ln2" not in self.model.blocks[layer].submodules
                )  # GPT-J, Falcon (post-norm blocks have neither)
                return self._norm(layer, "ln1" if shared else "ln2", seen(f"m{layer}"))

            def mlp_out(
                activation: Tensor, hook: Any, layer: int = layer, pending: dict[str, Tensor] = pending
            ) -> None:
                if self.parallel:
                    land(layer, pending)
                live[f"m{layer}"] = activation

            hooks.append((hook("z", layer), heads))
            if not self.model.cfg.attn_only:
                hooks += [(f"blocks.{layer}.mlp.hook_in", mlp_in), (hook("mlp_out", layer), mlp_out)]
        hooks.append((f"blocks.{self.n_layers - 1}.hook_resid_post", lambda activation, hook: seen("logits")))
        return self.model.run_with_hooks(tokens, fwd_hooks=hooks)

    def edge_scores(
        self, host: Tensor, donor: Tensor, metric: Metric, readers: tuple[str, ...], writers: tuple[str, ...]
    ) -> Tensor:
        """(donor write - host write) . d metric / d reader input, edge by edge, per example: EAP as it is defined."""
        host_writes, donor_writes = self.writes_of(host), self.writes_of(donor)
        like = host_writes[writers[0]]
        nudge = {r: torch.zeros_like(like).requires_grad_(True) for r in readers}
        with torch.enable_grad():
            value = metric(self.run(host, host_writes, lambda w, r: True, nudge)).sum()
            grads = torch.autograd.grad(value, list(nudge.values()))
        scores = torch.zeros(len(host), len(writers), len(readers), dtype=like.dtype)
        for i, writer in enumerate(writers):
            for j in range(len(readers)):
                scores[:, i, j] = ((donor_writes[writer] - host_writes[writer]) * grads[j]).sum(dim=(1, 2))
        return scores
