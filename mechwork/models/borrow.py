"""The model is borrowed: one user at a time, and every hook of mechwork goes on and comes off here.

Hooks, flags and replaced forwards belong to a model, not to a thread. Two threads that run one model at the same time
see each other's, and both get wrong numbers without any sign of it. So a thread that uses a model holds it until it is
done; it may borrow again what it holds (contexts nest). A second thread is *refused at once* rather than made to wait:
a context that stays open (a notebook cell inside ``with``) would otherwise hang it for ever. Its remedies: a model of
its own, or one thread that runs the work of all.

    with borrow(model):                      # somebody else's forwards raise BusyError until this ends
        with hooked(model, [(name, function)]):
            model(tokens)

A forward that another thread began before the model was borrowed, and not through mechwork, cannot be seen.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import checked
from ..errors import BusyError
from ..shapes import Tokens
from ..sites import UNEMBED_INPUT
from .pulse import pulsing

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint, LensHandle
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable[..., Any]]


@dataclass(eq=False)
class _Loan:
    """Who holds a model, and how many contexts of his are open."""

    holder: threading.Thread
    depth: int = 0

    def check(self) -> None:
        me = threading.current_thread()
        if me is not self.holder:
            raise BusyError(
                f"one thread at a time uses a model; {self.holder.name!r} is using this one, and {me.name!r} wants "
                "to. Two at "
                "once would see each other's hooks and get wrong numbers. Load a model per thread, or let one thread "
                "do the "
                "work of all."
            )


_loans: WeakKeyDictionary[Any, _Loan] = WeakKeyDictionary()
_counter = threading.Lock()


@contextmanager
def borrow(model: TransformerBridge) -> Iterator[None]:
    """Inside, this thread alone uses the model; raises `BusyError` at once when another one does."""
    with _counter:
        loan = _loans.setdefault(model, _Loan(threading.current_thread()))
        loan.check()
        loan.depth += 1
    guard = None
    try:
        if loan.depth == 1:
            # Forwards that go past mechwork (a plain ``model(tokens)``) are refused to others as well.
            guard = model.register_forward_pre_hook(lambda *_: loan.check())
        yield
    finally:
        with _counter:
            loan.depth -= 1
            if loan.depth == 0:
                _loans.pop(model, None)
        if guard is not None:
            guard.remove()


P = ParamSpec("P")
R = TypeVar("R")


def borrows(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose first argument is a model, which it holds from its first forward to its last.

    An argument of a wrong type that makes it fail is named (see `arguments`). A callback given as `progress` also hears
    of every block that runs (see `pulse`).
    """
    function = checked(function)

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        model: Any = args[0] if args else kwargs.get("model")
        if not hasattr(model, "register_forward_pre_hook"):
            return function(*args, **kwargs)  # no model: the function itself says so
        with borrow(model), pulsing(model, kwargs.get("progress"), function.__name__.replace("_", " ")) as progress:
            if progress is not None:
                kwargs["progress"] = progress
            return function(*args, **kwargs)

    return held


@contextmanager
def hooked(model: TransformerBridge, hooks: Sequence[Hook]) -> Iterator[None]:
    """Inside, forwards run with these forward hooks, (name, function); on exit they are gone, whatever happened.

    The host's own context takes them off one after another, and an interrupt in the middle of that leaves the rest:
    then what was not there before is taken off here.
    """
    with borrow(model):
        table = model.hook_dict  # made anew each time it is asked for
        points = [table[name] for name, _ in hooks if name in table]
        before = [(point, tuple(point.fwd_hooks)) for point in points]
        try:
            with model.hooks(fwd_hooks=list(hooks)):
                yield
        except BaseException:
            for point, kept in before:
                for handle in [handle for handle in point.fwd_hooks if all(handle is not one for one in kept)]:
                    surely(lambda point=point, handle=handle: remove_hook(point, handle))
            raise


def remove_hook(point: HookPoint, handle: LensHandle) -> None:
    """Takes a hook off its point, also when it is half off already."""
    handle.hook.remove()
    point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


def surely(undo: Callable[[], object]) -> None:
    """Runs a piece of cleanup, and once more when it fails or is interrupted; it must bear being run twice."""
    try:
        undo()
    except BaseException:
        undo()
        raise


def replace_forward(undo: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Until `undo` closes, calls of the module run `forward`; then what it ran before."""
    own = vars(module).get("forward")

    def restore() -> None:
        vars(module).pop("forward", None)
        if own is not None:
            object.__setattr__(module, "forward", own)

    undo.callback(surely, restore)
    object.__setattr__(module, "forward", forward)


def run_tail(
    model: TransformerBridge, tokens: Tokens, n_tail: int | None, **extra: Any
) -> Float[Tensor, "batch tail d_vocab"]:
    """Logits of the last `n_tail` columns (None: all). Cost: 1 forward, the unembedding at those columns.

    They come back on the device of `tokens`, wherever the last layer lies. `extra` goes to the model as it is (a cache
    of earlier columns, say). The columns are made contiguous, or each pair would get a product of its own.
    """
    if n_tail is None:
        with borrow(model):
            return model(tokens, **extra).to(tokens.device)
    with hooked(model, [(UNEMBED_INPUT, _contiguous)]):
        return model(tokens, logits_to_keep=n_tail, **extra).to(tokens.device)


def _contiguous(activation: Tensor, hook: Any) -> Tensor:
    return activation.contiguous()
