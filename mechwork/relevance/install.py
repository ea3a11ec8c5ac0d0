"""Put rules on a model and take them off: hooks that keep every value and replace its derivative.

Hooks are permanent in TransformerLens' sense, so that `model.reset_hooks()` inside a context does not silently turn rules
off; they are removed by their own handles. They act only in the thread that entered the context, and only while that
context is the innermost one on the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..models.anatomy import NATIVE, norm_modules, read_anatomy, read_norm
from ..sites import UNEMBED, Site, block_module, hook_name
from .rules import AHRule, Family, HalfRule, IdentityRule, LNRule, RouterRule, Rule, SoftcapRule
from .straight import straight

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge

Rules = Mapping[tuple[str, Family], Rule]
Active = Callable[[], bool]

_stacks: dict[tuple[int, int], list[object]] = {}
"""Contexts entered per (model, thread); the last is the active one."""


@contextmanager
def install(model: TransformerBridge, rules: Rules) -> Iterator[None]:
    """Install the rules on the model's modules; restores on exit."""
    key, token = (id(model), threading.get_ident()), object()
    stack = _stacks.setdefault(key, [])

    def active() -> bool:
        mine = _stacks.get((id(model), threading.get_ident()))
        return bool(mine) and mine[-1] is token and torch.is_grad_enabled()

    stack.append(token)
    try:
        with ExitStack() as undo:
            _install_norms(model, rules, active, undo)
            for layer in range(len(model.blocks)):
                _install_attention(model, layer, rules, active, undo)
                _install_mlp(model, layer, rules, active, undo)
            _install_softcap(model, rules, active, undo)
            yield
    finally:
        stack.remove(token)
        if not stack:
            _stacks.pop(key, None)


def _hook(point: HookPoint, function: Callable[[Tensor], Tensor | None], undo: ExitStack) -> None:
    """A forward hook on a hook point that outlives `reset_hooks` and is removed by `undo`."""

    def hook(tensor: Tensor, hook: Any) -> Tensor | None:
        return function(tensor)

    handle = point.add_hook(hook, is_permanent=True, prepend=True)

    def remove() -> None:
        handle.hook.remove()
        point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]

    undo.callback(remove)


class _Stash(threading.local):
    """What a module's first hook hands to its last one, per thread."""

    value: Tensor | None = None

    def put(self, tensor: Tensor) -> None:
        self.value = tensor

    def take(self) -> Tensor:
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError(
                "a rule met a module's output without its input; this model runs the module in an unknown way"
            )
        return value


def _install_norms(model: TransformerBridge, rules: Rules, active: Active, undo: ExitStack) -> None:
    for name, module in norm_modules(model):
        rule = rules.get((name, "norm"))
        if isinstance(rule, LNRule):
            _install_norm(cast(Any, module), rule, active, undo)


def _install_norm(module: Any, rule: LNRule, active: Active, undo: ExitStack) -> None:
    norm, stash = read_norm(module), _Stash()

    def before(x: Tensor) -> None:
        if active():
            stash.put(x)

    def after(y: Tensor) -> Tensor | None:
        return straight(y, rule.surrogate(norm, stash.take()).to(y.dtype)) if active() else None

    _hook(module.hook_in, before, undo)
    _hook(module.hook_out, after, undo)


def _install_attention(model: TransformerBridge, layer: int, rules: Rules, active: Active, undo: ExitStack) -> None:
    rule = rules.get((block_module(layer, "attn"), "attention"))
    if isinstance(rule, AHRule):
        point = model.hook_dict[hook_name(Site("pattern", layer))]
        _hook(point, lambda pattern: rule.surrogate(pattern) if active() else None, undo)


def _install_mlp(model: TransformerBridge, layer: int, rules: Rules, active: Active, undo: ExitStack) -> None:
    if read_anatomy(model).attn_only:
        return
    name = block_module(layer, "mlp")
    activation, product = rules.get((name, "activation")), rules.get((name, "product"))
    identity = activation if isinstance(activation, IdentityRule) else None
    half = product if isinstance(product, HalfRule) else None
    if read_anatomy(model).n_experts is not None:
        _install_experts(model, layer, identity, half, rules.get((name, "router")), active, undo)
    elif identity is not None or half is not None:
        _install_dense_mlp(model, layer, identity, half, active, undo)


def _install_dense_mlp(
    model: TransformerBridge,
    layer: int,
    identity: IdentityRule | None,
    half: HalfRule | None,
    active: Active,
    undo: ExitStack,
) -> None:
    """Rules inside an MLP: on act(x), and, when it is gated, on the product act(gate) * linear."""
    gated = read_anatomy(model).gated
    act, gate, linear = activation_of(model), _Stash(), _Stash()
    points = model.hook_dict

    def keep_gate(x: Tensor) -> None:
        if active():
            gate.put(x)

    def keep_linear(x: Tensor) -> None:
        if active():
            linear.put(x)

    def after(y: Tensor) -> Tensor | None:
        if not active():
            return None
        x = gate.take()
        surrogate = identity.surrogate(x, act) if identity else act(x)
        if gated:
            surrogate = surrogate * linear.take()
            surrogate = half.surrogate(surrogate) if half else surrogate
        return straight(y, surrogate)

    _hook(points[hook_name(Site("mlp_pre", layer))], keep_gate, undo)
    if gated:
        _hook(points[hook_name(Site("mlp_pre_linear", layer))], keep_linear, undo)
    _hook(points[hook_name(Site("mlp_post", layer))], after, undo)


def _install_experts(
    model: TransformerBridge,
    layer: int,
    identity: IdentityRule | None,
    half: HalfRule | None,
    router: Rule | None,
    active: Active,
    undo: ExitStack,
) -> None:
    """Rules inside a mixture of experts, whose insides have no hook points: module hooks on the experts themselves.

    Every path from the experts' input to their output runs through the gated product, so halving the gradient at the
    input is the Half-rule.
    """
    experts = cast(Any, model.blocks[layer].mlp).original_component.experts

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not active():
            return None
        hidden, index, weights = args
        hidden = straight(hidden, half.surrogate(hidden)) if half else hidden
        return hidden, index, weights.detach() if isinstance(router, RouterRule) else weights

    def after_activation(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not active() or identity is None:
            return None
        return straight(output, identity.surrogate(args[0], activation_of(model)))

    undo.callback(experts.register_forward_pre_hook(before).remove)
    undo.callback(experts.act_fn.register_forward_hook(after_activation).remove)


def _install_softcap(model: TransformerBridge, rules: Rules, active: Active, undo: ExitStack) -> None:
    """The soft cap lies outside every hook point: the model's own output is given the surrogate's derivative."""
    rule, cap = rules.get((UNEMBED, "softcap")), read_anatomy(model).final_soft_cap
    if not isinstance(rule, SoftcapRule) or cap is None:
        return
    stash = _Stash()

    def before(logits: Tensor) -> None:
        if active():
            stash.put(logits)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return straight(output, rule.surrogate(stash.take(), cap)) if active() and isinstance(output, Tensor) else None

    _hook(model.hook_dict[hook_name(Site("logits"))], before, undo)
    undo.callback(model.register_forward_hook(after).remove)


def activation_of(model: TransformerBridge) -> Callable[[Tensor], Tensor]:
    """The MLP's element-wise non-linearity, by the name in the model's own configuration."""
    original = cast(Any, model.original_model)
    if read_anatomy(model).architecture == NATIVE:
        return ACT2FN[str(original.cfg.act_fn).lower()]
    config = original.config
    for attribute in ("activation_function", "hidden_activation", "hidden_act"):
        name = getattr(config, attribute, None)
        if name is not None:
            return ACT2FN[name]
    raise RuntimeError(f"the configuration of {config.architectures} names no activation function")
