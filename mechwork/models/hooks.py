"""Every hook of a model and every replaced forward, as they were at a moment, to be put back after a failure.

Cost: a look at each module, some thirtieth of a forward pass of a model of three blocks: the list of modules is kept
from one time to the next, and made anew when a module came or went. Hooks that the host puts on
in its first forward pass, to stay, are left alone: only those of mechwork and of hook points are taken off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OURS = ("mechwork.", "transformer_lens.hook_points")
"""Where functions are made that are hooks for a while; the host's own, which stay, are made elsewhere."""
HANDLES = ("fwd_hooks", "bwd_hooks")
"""Lists in which a hook point of the host keeps the handles of its hooks."""


_lists: WeakKeyDictionary[nn.Module, tuple[list[ref[nn.Module]], list[int]]] = WeakKeyDictionary()
"""Of each model its modules, held weakly, and the ids of all their children in that order."""


def _modules_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """All modules of a model.

    The kept list holds while its modules live and have the children that they had: what is reached from the model then
    stands in it.
    """
    known, children = _lists.get(model, ([], []))
    modules = tuple([module for one in known if (module := one()) is not None])
    if not known or len(modules) < len(known) or _children(modules) != children:
        modules = tuple(model.modules())
        _lists[model] = [ref(module) for module in modules], _children(modules)
    return modules


def _children(modules: tuple[nn.Module, ...]) -> list[int]:
    return [id(child) for module in modules for child in module.__dict__["_modules"].values()]


def _has_any(own: dict[str, Any]) -> bool:
    """Whether a module has a hook or a forward of its own; spelled out, for it is asked of every module."""
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("fwd_hooks")
        or own.get("bwd_hooks")
        or "forward" in own
    )


@dataclass(frozen=True, eq=False)
class Hooks:
    """What each module had: modules without any hook are only named."""

    modules: tuple[nn.Module, ...]
    tables: dict[tuple[int, str], tuple[Any, ...]]
    forwards: dict[int, Any]

    @classmethod
    def of(cls, model: Any) -> Hooks:
        """Those of a model now (None: of nothing)."""
        modules = () if model is None else _modules_of(model)
        tables: dict[tuple[int, str], tuple[Any, ...]] = {}
        forwards: dict[int, Any] = {}
        for place, own in [(place, own) for place, module in enumerate(modules) if _has_any(own := module.__dict__)]:
            for name in (*TABLES, *HANDLES):
                if table := own.get(name):
                    tables[place, name] = tuple(table)
            if "forward" in own:
                forwards[place] = own["forward"]
        return cls(modules, tables, forwards)

    def put_back(self) -> None:
        """Takes off what was not there, and gives each module the forward that it ran. Bears being run twice."""
        for place, module in enumerate(self.modules):
            own = vars(module)
            for name in TABLES:
                table = own.get(name)
                kept = self.tables.get((place, name), ())
                new = {key: hook for key, hook in (table or {}).items() if key not in kept}
                for key in [key for key, hook in new.items() if str(hook.__module__).startswith(OURS)]:
                    own[name].pop(key, None)
                    for more in (f"{name}_with_kwargs", f"{name}_always_called"):
                        own.get(more, {}).pop(key, None)
            for name in HANDLES:
                if handles := own.get(name):
                    kept = self.tables.get((place, name), ())
                    handles[:] = [handle for handle in handles if any(handle is one for one in kept)]
            if own.get("forward") is not self.forwards.get(place):
                own.pop("forward", None)
                if place in self.forwards:
                    own["forward"] = self.forwards[place]
