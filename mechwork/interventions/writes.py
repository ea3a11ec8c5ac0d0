"""Writes: a replacement at a site and at some positions; and the context manager that installs them.

Positional replacements are told the absolute column at which each forward starts (see `positions`), so that they hold
in a forward, in ``run_with_cache`` and in generation with a key-value cache alike. What is no write at one site
installs itself: a `Routing`, an edit of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..models.anatomy import check_ready
from ..models.borrow import borrow, hooked
from ..shapes import PositionMask
from ..sites import SITE_KINDS, Site, hook_name
from .positions import Columns, track_columns
from .replacements import Positional, Replacement, replace_at

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable[..., Tensor | None]]


@runtime_checkable
class Hooked(Protocol):
    """An intervention made of hooks: a `Write`, a `Dosed`."""

    def check(self, model: TransformerBridge) -> None: ...

    def hooks(self, columns: Columns) -> list[Hook]: ...


@runtime_checkable
class Installed(Protocol):
    """An intervention that puts itself in and takes itself out again: a `Routing`, an edit of the weights."""

    def check(self, model: TransformerBridge) -> None: ...

    def install(self, model: TransformerBridge, columns: Columns) -> AbstractContextManager[None]: ...


Intervention = Hooked | Installed
"""What `intervene` takes."""


@dataclass(frozen=True, eq=False)
class Write(Readable):
    """Put `replacement` at `site`, at the positions where `where` is True (None: everywhere).

    A site with a head is written for that head alone; `resid_mid` is written on both branches that read it.
    """

    site: Site
    replacement: Replacement | Positional
    where: PositionMask | None = None

    def check(self, model: TransformerBridge) -> None:
        """Raises `InputError` when the model has no such place, or writing there would silently do nothing."""
        check_ready(model).check_writable(self.site)

    def hooks(self, columns: Columns) -> list[Hook]:
        """The hooks that put it in; `columns` says where each forward starts."""
        if self.site.kind == "resid_mid":
            return _resid_mid_hooks(self, columns)

        def put(activation: Tensor, hook: Any) -> Tensor:
            return self.apply(activation, columns.start)

        return [(hook_name(self.site), put)]

    def apply(self, activation: Tensor, start: int = 0) -> Tensor:
        """The activation with this write done; its first position is the prompt's column `start`."""
        if self.site.head is None:
            return self._masked(activation, replace_at(self.replacement, activation, start))
        axis = SITE_KINDS[self.site.kind].axes.index("head")
        old = activation.select(axis, self.site.head)
        new = activation.clone()
        new.select(axis, self.site.head).copy_(self._masked(old, replace_at(self.replacement, old, start)))
        return new

    def _masked(self, old: Tensor, new: Tensor) -> Tensor:
        if self.where is None:
            return new
        axes = SITE_KINDS[self.site.kind].axes
        if "pos" not in axes:
            raise InputError(f"writes at {self.site} cannot be limited to positions: the site's axes are {axes}")
        if tuple(self.where.shape) != tuple(old.shape[:2]):
            raise InputError(
                f"positions are a mask [batch, pos] = {tuple(old.shape[:2])} for this run; got "
                f"{tuple(self.where.shape)}"
            )
        mask = self.where.to(old.device).reshape(*self.where.shape, *[1] * (old.ndim - 2))
        return torch.where(mask, new, old)


Steering = Replacement | Positional | Intervention | Sequence[Intervention]
"""What a way to steer writes: a replacement at the direction's site, or interventions that say themselves where."""


def is_replacement(steering: Steering) -> TypeGuard[Replacement | Positional]:
    """Whether it is written at a site that others choose, rather than saying itself where."""
    return not isinstance(steering, Hooked | Installed | Sequence)


def as_interventions(site: Site, steering: Steering) -> list[Intervention]:
    """`steering` as a list for `intervene`; a replacement goes to `site`."""
    if isinstance(steering, Hooked | Installed):
        return [steering]
    return list(steering) if isinstance(steering, Sequence) else [Write(site, steering)]


@contextmanager
def intervene(model: TransformerBridge, writes: Sequence[Intervention]) -> Iterator[None]:
    """Inside, the model runs with `writes`, in the order given; on exit, also after an exception, they are gone.

    Raises `InputError` for places that the model does not have, before anything is changed.
    """
    check_ready(model)
    for write in writes:
        write.check(model)
    with borrow(model), ExitStack() as stack:
        columns = stack.enter_context(track_columns(model))
        for write in writes:
            if not isinstance(write, Hooked):
                stack.enter_context(write.install(model, columns))
        hooks = [hook for write in writes if isinstance(write, Hooked) for hook in write.hooks(columns)]
        stack.enter_context(hooked(model, hooks))
        yield


def _resid_mid_hooks(write: Write, columns: Columns) -> list[Hook]:
    """The host's resid_mid hook feeds the MLP alone. Since resid_mid = resid_pre + attn_out, writing attn_out writes
    both.
    """
    layer = write.site.layer
    pre: list[Tensor] = []

    def keep(activation: Tensor, hook: Any) -> None:
        pre[:] = [activation]

    def put(attn_out: Tensor, hook: Any) -> Tensor:
        return write.apply(pre[0] + attn_out, columns.start) - pre[0]

    return [(hook_name(Site("resid_pre", layer)), keep), (hook_name(Site("attn_out", layer)), put)]
