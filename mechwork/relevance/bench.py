"""What rules are fitted with: hooks at a model's hook points and modules, in an order, undone together."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ..models.borrow import remove_hook, replace_forward, surely
from ..sites import Site, hook_name
from .rules import Family, Rule
from .straight import Witness

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint, LensHandle
    from transformer_lens.model_bridge import TransformerBridge

    from .targets import Target

Rules = Mapping[tuple[str, Family], Rule]


@dataclass(eq=False)
class Bench:
    """A model with the tools to fit rules to it; everything fitted is undone by `undo`."""

    model: TransformerBridge
    rules: Rules
    active: Callable[[], bool]
    undo: ExitStack
    probing: bool = False
    acted: set[Target] = field(default_factory=set)
    readers: list[Callable[[], None]] = field(default_factory=list)

    def rule(self, name: str, family: Family) -> Rule | None:
        return self.rules.get((name, family))

    def witness(self, name: str, family: Family) -> Witness | None:
        """While probing, notes that a backward pass went through the rule."""
        return (lambda: self.acted.add((name, family))) if self.probing else None

    @cached_property
    def points(self) -> dict[str, HookPoint]:
        """The host makes this table anew each time it is asked for."""
        return self.model.hook_dict

    def point(self, kind: str, layer: int | None = None) -> HookPoint:
        return self.points[hook_name(Site(kind, layer))]

    def make(self, point: HookPoint, function: Callable[[Tensor], Tensor | None]) -> None:
        """A hook before all others on the point."""
        self._hook(point, function)

    def read(self, point: HookPoint, function: Callable[[Tensor], None]) -> None:
        """A hook after all others on the point, also those added later."""
        handle = self._hook(point, function)
        hooks = cast(OrderedDict[int, Any], point._forward_hooks)
        self.readers.append(lambda: hooks.move_to_end(handle.hook.id))

    def _hook(self, point: HookPoint, function: Callable[[Tensor], Tensor | None]) -> LensHandle:
        """A hook that outlives `reset_hooks` and acts while this context is active."""

        def hook(tensor: Tensor, hook: Any) -> Tensor | None:
            return function(tensor) if self.active() else None

        handle = point.add_hook(hook, is_permanent=True, prepend=True)

        self.undo.callback(surely, lambda: remove_hook(point, handle))
        return handle

    def order(self) -> None:
        """Puts the readers last, before a forward pass."""
        for put_last in self.readers:
            put_last()

    def after(self, module: nn.Module, function: Callable[[tuple[Any, ...], Any], Any]) -> None:
        """A hook on a module's output, given its inputs; sees the inputs after every hook point on them."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return function(args, output) if self.active() else None

        self.undo.callback(surely, module.register_forward_hook(hook).remove)

    def before(self, module: nn.Module, function: Callable[[tuple[Any, ...]], Any]) -> None:
        """A hook on a module's inputs."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return function(args) if self.active() else None

        self.undo.callback(surely, module.register_forward_pre_hook(hook).remove)

    def around(self, module: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """A context that is entered whenever the module runs.

        A replaced forward, not a pair of hooks: torch runs the second of them after an exception, not after an
            interrupt.
        """
        plain = module.forward

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with context() if self.active() else nullcontext():
                return plain(*args, **kwargs)

        replace_forward(self.undo, module, forward)


class Stash(threading.local):
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
