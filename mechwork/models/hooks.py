"""Every hook of a model and every replaced forward, as they were at a moment, to be put back after a failure.

Cost: a look at each module, less than a tenth of a forward pass of a model of three blocks. Hooks that the host puts on
in its first forward pass, to stay, are left alone: only those of mechwork and of hook points are taken off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OURS = ("mechwork.", "transformer_lens.hook_points")
"""Where functions are made that are hooks for a while; the host's own, which stay, are made elsewhere."""
HANDLES = ("fwd_hooks", "bwd_hooks")
"""Lists in which a hook point of the host keeps the handles of its hooks."""


@dataclass(frozen=True, eq=False)
class Hooks:
    """What each module had: modules without any hook are only named."""

    modules: tuple[nn.Module, ...]
    tables: dict[tuple[int, str], tuple[Any, ...]]
    forwards: dict[int, Any]

    @classmethod
    def of(cls, model: Any) -> Hooks:
        """Those of a model now (None: of nothing)."""
        modules = () if model is None else tuple(model.modules())
        tables: dict[tuple[int, str], tuple[Any, ...]] = {}
        forwards: dict[int, Any] = {}
        for place, module in enumerate(modules):
            own = vars(module)
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
