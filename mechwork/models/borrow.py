"""The model is borrowed: one user at a time, and every hook of mechwork goes on and comes off here.

Hooks, flags and replaced forwards belong to a model, not to a thread. Two threads that run one model at the same time
see each other's, and both get wrong numbers without any sign of it. So a thread that uses a model holds it until it is
done; it may borrow again what it holds (contexts nest). A second thread is *refused at once* rather than made to wait:
a context that stays open (a notebook cell inside ``with``) would otherwise hang it for ever. Its remedies: a model of
its own, or one thread that runs the work of all.

A loan that is `passing` ends by itself, whatever its holder's user does (a gesture of the live workbench): it is waited
for instead, in the order of coming. While a model is `shared`, its plain forwards are such loans too, so that threads
take turns.

    with borrow(model):                      # somebody else's forwards raise BusyError until this ends
        with hooked(model, [(name, function)]):
            model(tokens)

A forward that another thread began before the model was borrowed, and not through mechwork, cannot be seen.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import checked
from ..errors import BusyError
from ..shapes import Tokens
from ..sites import UNEMBED_INPUT
from .hooks import Hooks
from .pulse import pulsing

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint, LensHandle
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable[..., Any]]


LONGEST = 600.0
"""Seconds that a passing loan is waited for."""


@dataclass(eq=False)
class _Loan:
    """Who holds a model, the contexts of his that are open, and whether it ends by itself.

    `before`: the model's hooks when it was lent; they are put back where a context ended by an exception, for an
    interrupt can come between putting a hook on and noting it, or between two steps of taking it off.
    """

    holder: threading.Thread
    passing: bool
    contexts: set[object]
    before: Hooks
    failed: bool = False

    def refusal(self) -> BusyError:
        return BusyError(
            f"one thread at a time uses a model; {self.holder.name!r} is using this one, and "
            f"{threading.current_thread().name!r} wants to. Two at once would see each other's hooks and get wrong "
            "numbers. Load a model per thread, or let one thread do the work of all."
        )


_loans: WeakKeyDictionary[Any, _Loan] = WeakKeyDictionary()
_queues: WeakKeyDictionary[Any, list[threading.Thread]] = WeakKeyDictionary()
_shared: WeakKeyDictionary[Any, tuple[int, ExitStack]] = WeakKeyDictionary()
_lock = threading.RLock()
_turns = threading.Condition(_lock)
"""Entered by the lock itself, in one step: an interrupt inside the condition's own ``__enter__`` would leave it locked.
"""


@contextmanager
def borrow(
    model: TransformerBridge, *, passing: bool = False, patience: float = 0.0, waits: Callable[[], None] | None = None
) -> Iterator[None]:
    """Inside, this thread alone uses the model; raises `BusyError` at once when another one does.

    A `passing` loan of another thread is waited for. A passing loan itself waits up to `patience` seconds for others;
    `waits` is called once when it has to.
    """
    context = object()
    try:
        try:
            _take(model, context, patience, waits, passing=passing)
            yield
        except BaseException:
            _note_failure(model)
            raise
        finally:
            _give_back(model, context)
    except BaseException:  # also of that: an interrupt in its middle
        _note_failure(model)
        _give_back(model, context)
        raise


def _note_failure(model: Any) -> None:
    with _lock:
        if (loan := _loans.get(model)) is not None and loan.holder is threading.current_thread():
            loan.failed = True


def _give_back(model: Any, context: object) -> None:
    """The loan without this context, which it may not know; bears being run twice."""
    with _lock:
        loan = _loans.get(model)
        if loan is None:
            return
        loan.contexts.discard(context)
        if not loan.contexts:
            if loan.failed:
                loan.before.put_back()
            for key in [key for key, hook in model._forward_pre_hooks.items() if hook is _guard]:
                model._forward_pre_hooks.pop(key, None)
            _loans.pop(model, None)
            _turns.notify_all()


def _take(model: Any, context: object, patience: float, waits: Callable[[], None] | None, *, passing: bool) -> None:
    """This thread's loan has the context; waits for its turn where that will come by itself."""
    me, begun = threading.current_thread(), time.monotonic()
    with _lock:
        queue = _queues.setdefault(model, [])
        try:
            while (loan := _loans.get(model)) is None or loan.holder is not me:
                if loan is None and (not queue or queue[0] is me):
                    loan = _loans[model] = _Loan(me, passing, {context}, Hooks.of(model))
                    # Forwards that go past mechwork (a plain ``model(tokens)``) are refused to others as well.
                    model.register_forward_pre_hook(_guard)
                    break
                longest = LONGEST if loan is None or loan.passing else patience
                if (left := begun + longest - time.monotonic()) <= 0:
                    raise (loan or _Loan(queue[0], passing, set(), Hooks.of(None))).refusal()
                if me not in queue:
                    queue.append(me)
                    if waits is not None:
                        waits()
                _turns.wait(left)
        finally:
            if me in queue:
                queue.remove(me)
                _turns.notify_all()
        loan.contexts.add(context)


def _guard(model: Any, _: Any) -> None:
    """The hook by which a model that is held refuses forwards of other threads."""
    _check(model)


def _check(model: Any) -> None:
    """Raises `BusyError` for a forward of another thread; one of a shared model waits by itself."""
    with _lock:
        loan = _loans.get(model)
        waits = loan is not None and loan.passing and model in _shared
        if loan is not None and loan.holder is not threading.current_thread() and not waits:
            raise loan.refusal()


def share(model: TransformerBridge) -> Callable[[], None]:
    """From now on plain forwards of any thread hold the model while they run; returns what ends that (once).

    With it threads take turns at a model that passing loans change for a moment: none sees the other's hooks.
    """
    run = model.forward

    @functools.wraps(run)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with borrow(model, passing=True):
            return run(*args, **kwargs)

    with borrow(model, passing=True), _lock:
        n, undo = _shared.get(model, (0, None))
        if undo is None:
            undo = ExitStack()
            replace_forward(undo, model, forward)
        _shared[model] = (n + 1, undo)

    def end() -> None:
        nonlocal ended
        with _lock:
            n, undo = _shared.get(model, (0, ExitStack()))
            if ended:
                return
            ended = True
            if n > 1:
                _shared[model] = (n - 1, undo)
            else:
                _shared.pop(model, None)
                undo.close()

    ended = False
    return end


P = ParamSpec("P")
R = TypeVar("R")


def borrows(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose first argument is a model, which it holds from its first forward to its last.

    An argument of a wrong type that makes it fail is named (see `arguments`). A callback given as `progress` also hears
    of every block that runs (see `pulse`).
    """
    # Training has a callback of another kind, which hears of steps.
    tells = str(function.__annotations__.get("progress", "")).startswith(("Progress", "Callable[[int, int, str]"))
    function = checked(function)

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        model: Any = args[0] if args else kwargs.get("model")
        if not hasattr(model, "register_forward_pre_hook"):
            return function(*args, **kwargs)  # no model: the function itself says so
        told = kwargs.get("progress") if tells else None
        gradients = torch.is_grad_enabled()
        try:
            with borrow(model), pulsing(model, told, function.__name__.replace("_", " ")) as progress:
                if progress is not None:
                    kwargs["progress"] = progress
                return function(*args, **kwargs)
        except BaseException:
            torch.set_grad_enabled(gradients)  # an interrupt inside `no_grad.__enter__` leaves them off
            raise

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
