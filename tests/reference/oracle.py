"""Rules a second time, at the level of torch's own functions: the model's forward pass with its operations overridden.

Independent of `mechwork.relevance`: no hooks, no module names, no surrogate tensors. A `TorchFunctionMode` sees every
call the forward pass makes and detaches, halves or re-weights what the definitions say, recognising an operation by the
function and by the width of its last axis (which is unique for vocabulary, MLP, experts and keys in the tiny models).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Oracle(TorchFunctionMode):
    """Forward passes inside have gradients according to the switched-on rules; `widths` are those of the model
    at hand.
    """

    def __init__(
        self, *, d_vocab: int, d_mlp: int, n_experts: int | None, gated: bool, rules: set[str], cap: bool
    ) -> None:
        super().__init__()
        self.d_vocab, self.d_mlp, self.n_experts, self.gated = d_vocab, d_mlp, n_experts, gated
        self.rules, self.cap = rules, cap

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x: Any = args[0] if args else None
        if func is F.layer_norm and "ln" in self.rules:
            return _layer_norm(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in {torch.rsqrt, torch.Tensor.rsqrt, torch.sqrt, torch.Tensor.sqrt} and "ln" in self.rules:
            return out.detach()  # the only roots in a forward pass are the scales of norms
        if func in {F.softmax, torch.softmax, torch.Tensor.softmax}:
            if out.shape[-1] == self.n_experts:
                return out.detach() if "router" in self.rules else out
            return self._pattern(args[0], out)
        if func in {F.silu, F.gelu, F.relu} and "identity" in self.rules:
            return _times(x, _slope(func, x, **kwargs))
        if func in {torch.tanh, torch.Tensor.tanh}:
            if out.shape[-1] == self.d_vocab and "softcap" in self.rules:
                return _times(x, torch.where(x == 0, 1.0, out / x))
            if out.shape[-1] == self.d_mlp and "identity" in self.rules:
                return out.detach()  # gelu_new(x) = x * (1 + tanh(...)) / 2
        if func in {torch.mul, torch.Tensor.mul, torch.Tensor.__mul__} and self._is_gate(args):
            return _half(out)
        if (
            func in {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.baddbmm}
            and out.ndim == 4
        ):
            return _half(out) if "bilinear" in self.rules else out
        return out

    def _pattern(self, scores: Tensor, pattern: Tensor) -> Tensor:
        if "ah" in self.rules:
            return pattern.detach()
        if "temperature" in self.rules:
            warm = 2.0 * torch.softmax(scores / 2.0, dim=-1).to(pattern.dtype)
            return pattern.detach() + warm - warm.detach()
        return pattern

    def _is_gate(self, args: Any) -> bool:
        return (
            "half" in self.rules
            and self.gated
            and all(isinstance(a, Tensor) and a.ndim >= 2 and a.shape[-1] == self.d_mlp for a in args[:2])
        )


def rules_of(preset: str) -> set[str]:
    """What each preset switches on, spelled out a second time."""
    relp = {"ln", "identity", "half", "router", "softcap"}
    return {
        "gradient": set(),
        "relp": relp,
        "relp_ah": relp | {"ah"},
        "cp_lrp": {"ln", "ah"},
        "attnlrp": relp | {"bilinear"},
        "gim": {"ln", "temperature", "bilinear", "half"},
    }[preset]


def coefficient(model: Any, tokens: Tensor, metric: Callable[[Tensor], Tensor], preset: str, *, d_mlp: int) -> Tensor:
    """d (sum of the metric) / d (embedded tokens) under a preset, by overriding torch's functions."""
    cfg, leaf = model.cfg, []

    def start(activation: Tensor, hook: Any) -> Tensor:
        leaf.append(activation.detach().requires_grad_(True))
        return leaf[0]

    oracle = Oracle(
        d_vocab=cfg.d_vocab,
        d_mlp=d_mlp,
        n_experts=cfg.num_experts,
        gated=bool(cfg.gated_mlp),
        rules=rules_of(preset),
        cap=True,
    )
    with torch.enable_grad(), model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", start)]):
        with oracle:
            logits = model(tokens)
        return torch.autograd.grad(metric(logits).sum(), leaf[0])[0]


def _layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = weight * centred / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt().detach()
    return y if bias is None else y + bias


def _slope(func: Any, x: Tensor, approximate: str = "none", inplace: bool = False) -> Tensor:
    """act(x) / x in closed form."""
    if func is F.silu:
        return torch.sigmoid(x)
    if func is F.relu:
        return (x > 0).to(x)
    if approximate == "tanh":
        return 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return 0.5 * (1 + torch.erf(x / 2**0.5))


def _times(x: Tensor, slope: Tensor) -> Tensor:
    return x * slope.detach()


def _half(out: Tensor) -> Tensor:
    return 0.5 * out + (0.5 * out).detach()
