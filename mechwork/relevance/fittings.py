"""How each family of rules is fitted to the modules of a model: which tensor is replaced, and from which it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedModelError
from ..models.anatomy import NATIVE, norm_modules, read_anatomy, read_norm
from ..sites import UNEMBED, block_module
from .bench import Bench, Stash
from .linear import LinearRule, read_linear
from .rules import (
    AHRule,
    BilinearRule,
    Family,
    HalfRule,
    IdentityRule,
    LNRule,
    PassRule,
    RouterRule,
    SoftcapRule,
    TemperatureRule,
    at_least_float32,
)
from .straight import scale_gradient, straight
from .targets import ATTENTION_LINEAR, MLP_LINEAR, Target

SOFTMAXES = (torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax)


def fit_all(bench: Bench) -> None:
    """Every rule of the bench."""
    anatomy = read_anatomy(bench.model)
    _fit_norms(bench)
    for layer in range(anatomy.n_layers):
        _fit_softmax(bench, layer)
        _fit_attention(bench, layer)
        if anatomy.attn_only:
            continue
        fit = _fit_mlp if anatomy.n_experts is None else _fit_experts
        fit(bench, layer)
    _fit_softcap(bench)
    _fit_linear(bench)


def _fit_norms(bench: Bench) -> None:
    for name, module in norm_modules(bench.model):
        if bench.rule(name, "norm") is not None:
            _fit_norm(bench, name, cast(Any, module))


def _fit_norm(bench: Bench, name: str, module: Any) -> None:
    rule, norm, stash, witness = bench.rule(name, "norm"), read_norm(module), Stash(), bench.witness(name, "norm")

    def after(y: Tensor) -> Tensor:
        x = stash.take()
        surrogate = rule.surrogate(norm, at_least_float32(x)) if isinstance(rule, LNRule) else x
        return straight(y, surrogate.to(y.dtype), witness)

    bench.read(module.hook_in, stash.put)
    bench.make(module.hook_out, after)


def _fit_attention(bench: Bench, layer: int) -> None:
    """Attention is two products with a softmax between them, scores = q k^T and z = pattern v; a rule says what each
    sends back.

    Fitted at the outputs of the products, so that the coefficients at q, k and v have it. Where the wrapped module
    keeps the first one to itself, what it sends to q and k is scaled instead.
    """
    name = block_module(layer, "attn")
    rule, witness = bench.rule(name, "attention"), bench.witness(name, "attention")
    attn, is_open = cast(Any, bench.model.blocks[layer].attn), read_anatomy(bench.model).open_attention
    if isinstance(rule, AHRule):
        if is_open:
            bench.make(bench.point("pattern", layer), lambda pattern: scale_gradient(pattern, 0.0, witness))
        else:
            for module in (attn.q, attn.k):
                bench.after(module, lambda _, y: scale_gradient(y, 0.0, witness))
    elif isinstance(rule, BilinearRule):
        if is_open:
            bench.make(bench.point("attn_scores", layer), lambda scores: scale_gradient(scores, 0.5, witness))
        else:
            for module in (attn.q, attn.k):
                bench.after(module, lambda _, y: scale_gradient(y, 0.5, witness))
        bench.make(bench.point("z", layer), lambda z: scale_gradient(z, 0.5, witness))


def _fit_softmax(bench: Bench, layer: int) -> None:
    name = block_module(layer, "attn")
    rule, stash, witness = bench.rule(name, "softmax"), Stash(), bench.witness(name, "softmax")
    if not isinstance(rule, TemperatureRule):
        return

    def ruled(scores: Tensor, pattern: Tensor) -> Tensor:
        return straight(pattern, rule.surrogate(scores).to(pattern.dtype), witness)

    if read_anatomy(bench.model).open_attention:
        bench.read(bench.point("attn_scores", layer), stash.put)
        bench.make(bench.point("pattern", layer), lambda pattern: ruled(stash.take(), pattern))
    else:
        bench.around(cast(Any, bench.model.blocks[layer].attn).original_component, lambda: _RuledSoftmax(ruled))


class _RuledSoftmax(TorchFunctionMode):
    """While entered (in one thread), every softmax is given a rule: for attention that runs inside the wrapped
    module.
    """

    def __init__(self, ruled: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.ruled = ruled

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return self.ruled(args[0], output) if func in SOFTMAXES else output


def _fit_mlp(bench: Bench, layer: int) -> None:
    """Rules inside an MLP: on act(x), and, when it is gated, on the product act(gate) * linear."""
    name = block_module(layer, "mlp")
    activation, product = bench.rule(name, "activation"), bench.rule(name, "product")
    if activation is None and product is None:
        return
    gated, act = read_anatomy(bench.model).gated, activation_of(bench.model)
    gate, linear = Stash(), Stash()

    families: tuple[Family, ...] = ("activation", "product")
    bound: list[Target] = [(name, family) for family in families if bench.rule(name, family) is not None]
    witness = (lambda: bench.acted.update(bound)) if bench.probing else None

    def after(y: Tensor) -> Tensor:
        x = gate.take()
        surrogate = _activated(activation, x, act)
        if gated:
            surrogate = surrogate * linear.take()
            surrogate = product.surrogate(surrogate) if isinstance(product, HalfRule) else surrogate
        return straight(y, surrogate, witness)

    bench.read(bench.point("mlp_pre", layer), gate.put)
    if gated:
        bench.read(bench.point("mlp_pre_linear", layer), linear.put)
    bench.make(bench.point("mlp_post", layer), after)


def _fit_experts(bench: Bench, layer: int) -> None:
    """Rules inside a mixture of experts, whose insides have no hook points: module hooks on the experts themselves.

    Every path from the experts' input to their output runs through the gated product, so halving the gradient at the
    input is the Half-rule.
    """
    name = block_module(layer, "mlp")
    experts, act = cast(Any, bench.model.blocks[layer].mlp).original_component.experts, activation_of(bench.model)
    half = isinstance(bench.rule(name, "product"), HalfRule)
    constant = isinstance(bench.rule(name, "router"), RouterRule)
    activation = bench.rule(name, "activation")

    def before(args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, index, weights = args
        if half:
            hidden = scale_gradient(hidden, 0.5, bench.witness(name, "product"))
        if constant:
            weights = scale_gradient(weights, 0.0, bench.witness(name, "router"))
        return hidden, index, weights

    if half or constant:
        bench.before(experts, before)
    if activation is not None:
        witness = bench.witness(name, "activation")
        bench.after(experts.act_fn, lambda args, y: straight(y, _activated(activation, args[0], act), witness))


def _activated(rule: Any, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act(x) under the activation's rule."""
    if isinstance(rule, IdentityRule):
        return rule.surrogate(x, act)
    return x if isinstance(rule, PassRule) else act(x)


def _fit_softcap(bench: Bench) -> None:
    """The soft cap lies outside every hook point: the model's own output is given the surrogate's derivative."""
    rule, cap = bench.rule(UNEMBED, "softcap"), read_anatomy(bench.model).final_soft_cap
    if not isinstance(rule, SoftcapRule) or cap is None:
        return
    stash, witness = Stash(), bench.witness(UNEMBED, "softcap")

    def after(args: tuple[Any, ...], output: Any) -> Any:
        return straight(output, rule.surrogate(stash.take(), cap), witness) if isinstance(output, Tensor) else None

    bench.read(bench.point("logits"), stash.put)
    bench.after(bench.model, after)


def _fit_linear(bench: Bench) -> None:
    """Linear modules, on the wrapped modules themselves: their inputs come after every hook point, their outputs
    before.
    """
    for layer, block in enumerate(bench.model.blocks):
        for part in ATTENTION_LINEAR:
            _fit_linear_module(bench, block_module(layer, "attn", part), getattr(block.attn, part, None))
        for part in MLP_LINEAR:
            _fit_linear_module(
                bench, block_module(layer, "mlp", part), getattr(getattr(block, "mlp", None), part, None)
            )
    _fit_linear_module(bench, UNEMBED, bench.model.unembed)


def _fit_linear_module(bench: Bench, name: str, component: Any) -> None:
    rule, witness = bench.rule(name, "linear"), bench.witness(name, "linear")
    if not isinstance(rule, LinearRule):
        return
    module = component.original_component
    bench.after(
        module, lambda args, y: straight(y, rule.surrogate(read_linear(module), args[0], y).to(y.dtype), witness)
    )


def activation_of(model: Any) -> Callable[[Tensor], Tensor]:
    """The MLP's element-wise non-linearity, by the name in the model's own configuration."""
    from transformers.activations import ACT2FN

    if read_anatomy(model).architecture == NATIVE:
        return ACT2FN[str(model.original_model.cfg.act_fn).lower()]
    config = model.original_model.config
    for attribute in ("activation_function", "hidden_activation", "hidden_act", "activation"):
        name = getattr(config, attribute, None)
        if isinstance(name, str):
            return ACT2FN[name]
    raise UnsupportedModelError(f"the configuration of {config.architectures} names no activation function")
