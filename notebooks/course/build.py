"""Judging a method that a student wrote: run it on several models, watch what it does to them, compare with the
library.

A judge says one sentence: what kind of mistake it is (nothing returned, shape, number type, NaN, model changed, hook
left, too slow), or which known mistake gives these numbers, or how far off they are. Whatever happened, the model is
put back.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

SECONDS = 60
"""Longer than this, a function is stopped."""


@dataclass(frozen=True)
class Case:
    """One call: `truth` is what a right function returns, `mistakes` what known wrong ones return, by what to
    say then.
    """

    label: str
    model: Any
    arguments: tuple[Any, ...]
    truth: Any
    mistakes: tuple[tuple[str, Any], ...] = ()


class _TooSlowError(BaseException):
    """Raised by the clock; no ``except Exception`` of the student's catches it."""


AVERAGED_TWICE = (
    "the mean over pairs was taken twice: once in the metric whose slope was asked for, once at the end. Ask for the "
    "slope of the *sum* of the metric over pairs."
)
NO_FUNCTION = "the answer is the function itself: its name, without parentheses."


def judges(make: Callable[..., Sequence[Case]]) -> Callable[..., str | None]:
    """Decorator: the judge that tries an answer on the cases which `make` makes.

    They are made once a kernel, by what is given beside the answer: models and truths are the same for every attempt.
    A function gets copies, so that it cannot spoil them for the next attempt.
    """
    made = cache(make)

    @wraps(make)
    def judge(answer: Any, *evidence: Any) -> str | None:
        return judge_function(answer, made(*evidence)) if callable(answer) else NO_FUNCTION

    return judge


def judge_function(answer: Any, cases: Sequence[Case], tolerance: float = 2e-3) -> str | None:
    """None when `answer` gives every case's truth, else one sentence."""
    if not callable(answer):
        return NO_FUNCTION
    for case in cases:
        with _borrowed(case.model) as changed:
            try:
                with _clock(SECONDS):
                    got = answer(*map(_copy, case.arguments))
            except _TooSlowError:
                return f"on {case.label} it ran for more than {SECONDS} seconds and was stopped."
            except Exception as error:  # noqa: BLE001 whatever a student's code raises is to be explained
                return f"on {case.label} it raised {_explained(error)}"
            wrong = changed() or _compare(got, case, tolerance)  # before the model is put back
        if wrong is not None:
            return wrong
    return None


REMEDIES = (
    ("name 'torch' is not defined", "Write `import torch` first."),
    ("only for scalar outputs", "A gradient is asked of one number: sum the metric over pairs first."),
    (
        "does not require grad",
        "Nothing on the way to the metric asks for gradients: make a tensor that does, let the hook *return* it.",
    ),
    ("positional argument", "Compare your parameters with those of the exercise."),
    ("unexpected keyword argument 'hook'", "A hook takes two arguments: `def put(value, hook)`."),
    ("must match the size", "Print the shapes of the two; a mean with keepdim=True keeps its axis."),
    ("shapes cannot be multiplied", "Print the shapes of the two."),
    ("out of bounds", "Print the shape of what is indexed: which axis is it?"),
    ("out of range", "Print the shape of what is indexed: which axis is it?"),
)
"""What a message of Python or torch says, and what to do then."""


def _explained(error: Exception) -> str:
    """The first line of what was raised, and the remedy where it is a known one."""
    message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    remedy = next((remedy for part, remedy in REMEDIES if part in message), "")
    return f"{message.rstrip('.')}. {remedy}".rstrip()


def _copy(argument: Any) -> Any:
    """Tensors, and the tokens of a task, of one's own; everything else is the same."""
    import torch

    if isinstance(argument, torch.Tensor):
        return argument.clone()
    return copy.deepcopy(argument) if type(argument).__name__ == "Task" else argument


def _compare(got: Any, case: Case, tolerance: float) -> str | None:
    import torch

    if got is None:
        return "the function returns nothing yet. End it with `return ...`."
    truth = torch.as_tensor(case.truth).detach().double()
    try:
        numbers = torch.as_tensor(got).detach()
    except (TypeError, ValueError, RuntimeError):
        return f"it returned a {type(got).__name__}; a number or a tensor is asked for."
    if not numbers.is_floating_point():
        return f"it returned {numbers.dtype}; real numbers are asked for (did something get rounded or compared?)."
    if numbers.shape != truth.shape:
        for sentence, value in case.mistakes:
            if _alike(numbers.double(), torch.as_tensor(value).detach().double(), tolerance):
                return sentence
        shape = "a single number" if truth.ndim == 0 else f"the shape {tuple(truth.shape)}"
        return f"on {case.label} it returned the shape {tuple(numbers.shape)}; {shape} is asked for."
    numbers = numbers.double()
    if not bool(numbers.isfinite().all()):
        return f"on {case.label} it returned NaN or infinity: look for a division by zero."
    size = float(truth.abs().max())
    if float((numbers - truth).abs().max()) <= tolerance * max(size, 1e-6):
        return None
    return _diagnosis(numbers, truth, case, tolerance)


def _diagnosis(numbers: Any, truth: Any, case: Case, tolerance: float) -> str:
    """Which mistake gives these numbers, which have the right shape: a known one of the case, or one of everybody."""
    import torch

    size = float(truth.abs().max())
    for sentence, value in case.mistakes:
        if _alike(numbers, torch.as_tensor(value).detach().double(), tolerance):
            return sentence
    if float((numbers + truth).abs().max()) <= tolerance * size:
        return "the sign is the wrong way round."
    if not bool(numbers.any()):
        return (
            f"on {case.label} it is 0 everywhere: were two things compared that are the same, or does a hook not "
            "return what it has made?"
        )
    for n, of in _sizes(case):
        for factor, sentence in ((n, "too large: a sum over"), (1 / n, "too small: a mean over")):
            if _alike(numbers, truth * factor, tolerance):
                other = "mean" if factor > 1 else "sum"
                return f"it is {n} times {sentence} the {n} {of}, where their {other} is asked for?"
    off = float((numbers - truth).abs().max())
    return f"on {case.label} the largest deviation is {off:.3g}, where the largest value is {size:.3g}."


def _sizes(case: Case) -> list[tuple[int, str]]:
    """Over how many of what a sum and a mean may be mixed up, as far as the arguments say."""
    found = []
    if case.model is not None:
        found += [(case.model.cfg.d_model, "numbers of the stream"), (case.model.cfg.d_head, "numbers of a head")]
    for argument in case.arguments:
        if type(argument).__name__ == "Task":
            positions = argument.pairs.clean_tokens.shape[1]
            both = [(n * positions, f"{of} at all positions") for n, of in found]
            found = [(len(argument), "pairs"), (positions, "positions"), *found, *both]
    return [(n, of) for n, of in found if n > 1]


def _alike(numbers: Any, other: Any, tolerance: float) -> bool:
    if other.shape != numbers.shape:
        return False
    return float((numbers - other).abs().max()) <= tolerance * float(other.abs().max())


@contextlib.contextmanager
def _borrowed(model: Any) -> Iterator[Callable[[], str | None]]:
    """Whatever the call does to `model` is seen, said and undone; so is a switch of torch's own that it leaves over.

    `model` may be None, for a function without one.
    """
    import torch

    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    with contextlib.nullcontext(lambda: None) if model is None else _lent(model) as changed:

        def anything_changed() -> str | None:
            if torch.is_grad_enabled() != gradients:
                return "gradients are switched off (or on) for good: write `with torch.no_grad():` around your lines."
            if torch.get_default_dtype() != dtype:
                return "torch's default number type is another one afterwards."
            return changed()

        try:
            yield anything_changed
        finally:
            torch.set_grad_enabled(gradients)
            torch.set_default_dtype(dtype)


@contextlib.contextmanager
def _lent(model: Any) -> Iterator[Callable[[], str | None]]:
    module = getattr(model, "original_model", model)  # the weights themselves; the bridge hands out views of some
    weights = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    constants = {name: tensor.clone() for name, tensor in module.named_buffers()}
    asked = {name: tensor.requires_grad for name, tensor in module.named_parameters()}
    training, hooks, own = model.training, _n_hooks(model), _own_hooks(model)

    def changed() -> str | None:
        if _n_hooks(model) != hooks or _own_hooks(model) != own:
            return "a hook is still on the model afterwards: use run_with_hooks, which takes it off again."
        for name, tensor in module.named_parameters():
            if not bool((tensor == weights[name]).all()):
                return "the model's weights are changed afterwards: work on copies."
            if tensor.requires_grad != asked[name]:
                return "some weights ask for gradients afterwards that did not before, or the other way round."
        if any(not bool((tensor == constants[name]).all()) for name, tensor in module.named_buffers()):
            return "the model's constants (its masks, say) are changed afterwards: work on copies."
        return None if model.training == training else "the model is in another mode afterwards (train or eval)."

    try:
        yield changed
    finally:
        if _n_hooks(model) != hooks:
            model.reset_hooks()
        for which, key in _own_hooks(model) - own:
            del which.hooks[key]
        for name, tensor in module.named_buffers():
            tensor.copy_(constants[name])
        for name, tensor in module.named_parameters():
            tensor.data.copy_(weights[name])
            tensor.requires_grad_(asked[name])
            tensor.grad = None
        model.train(training)


@dataclass(frozen=True)
class _Hooks:
    """One table of torch's own hooks, which not counted by TransformerLens; equal if it is the same table."""

    hooks: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hooks) and self.hooks is other.hooks

    def __hash__(self) -> int:
        return id(self.hooks)


def _own_hooks(model: Any) -> set[tuple[_Hooks, int]]:
    """What hangs on any module by ``register_forward_hook`` and its like."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = {*model.modules(), *getattr(model, "original_model", model).modules()}
    tables = [getattr(module, kind) for module in modules for kind in kinds]
    return {
        (_Hooks(table), key)
        for table in tables
        for key, hook in table.items()
        if not str(getattr(hook, "__module__", "")).startswith("transformer")  # libraries hang up their own
    }


def _n_hooks(model: Any) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


@contextlib.contextmanager
def _clock(seconds: int) -> Iterator[None]:
    """Stop what runs inside after `seconds`, where the system has an alarm and this is the main thread."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise _TooSlowError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- what the exercises share
# ------------------------------------------------------------------------------------------

TEMPLATE = "Then, {IO} and {S1} went to the {place}. {S2} gave a {object} to"
"""One template, so that a position means the same in all prompts."""


def trials(names: Sequence[str] = ("gpt2-6l", "llama-6l", "neox-6l"), n: int = 8) -> list[tuple[str, Any, Any]]:
    """(name, model, task) of several bundled models: a method that is right is right on all of them."""
    import mechwork as mw

    models = [(name, mw.load_model(name)) for name in names]
    return [(name, model, mw.tasks.ioi(model, n=n, seed=3, template=TEMPLATE)) for name, model in models]


def place_of_change(task: Any) -> int:
    """The position at which the clean and the corrupt prompts differ."""
    return int((task.pairs.clean_tokens != task.pairs.corrupt_tokens).any(0).nonzero()[0])
