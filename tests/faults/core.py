"""What every part shares: counts, the state of a model and of a thread, and errors that are answers."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from mechwork.errors import MechworkError
from tests.families import _state, build_model, build_task

SHOWN = 12
NATIVE: Any = torch._C


class InjectedError(Exception):
    """A fault that a part puts in; nothing in mechwork knows it."""


@dataclass
class Tally:
    """Counts of one part. `check` notes one attempt."""

    part: str
    seed: int
    scale: float = 1.0
    tried: int = 0
    draws: int = 0
    failures: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.process_time)

    @property
    def draw(self) -> random.Random:
        """A new generator each time; the same ones in every run with this seed."""
        self.draws += 1
        return random.Random(f"{self.part} {self.seed} {self.draws}")

    def times(self, n: int) -> int:
        """`n` at this scale, at least one."""
        return max(1, round(n * self.scale))

    def check(self, held: bool, what: str) -> None:
        self.tried += 1
        if not held and os.environ.get("MECHWORK_FAULTS_AT_ONCE"):
            print(f"    {what}", flush=True)
        if not held:
            self.failures.append(f"{what} (attempt {self.tried}, seed {self.seed})")

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """One attempt; any exception that leaves it is a failure."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the answer to an attack must not be this
            self.check(False, f"{what}: {type(error).__name__}: {str(error)[:200]}")
        else:
            self.check(True, what)

    def line(self) -> str:
        seconds = time.process_time() - self.begun
        return (
            f"{self.part:<14}{self.tried:>8}{self.tried - len(self.failures):>8}{len(self.failures):>10}"
            f"{seconds:>8.0f}{self.seed:>8}"
        )

    def report(self) -> str:
        more = len(self.failures) - SHOWN
        lines = [f"    {failure}" for failure in self.failures[:SHOWN]] + ([f"    and {more} more"] if more > 0 else [])
        return "\n".join([self.line(), *lines])


HEADER = f"{'part':<14}{'tried':>8}{'held':>8}{'failures':>10}{'CPU s':>8}{'seed':>8}"


def answered(call: Callable[[], Any]) -> tuple[str, str]:
    """``("accepted" | "refused" | "raw", text)``: a refusal is one of mechwork's own errors with something to read."""
    try:
        found = call()
    except MechworkError as error:
        return ("refused" if len(str(error)) > 15 else "raw"), str(error)
    except Exception as error:  # noqa: BLE001 - that is what is counted
        return "raw", f"{type(error).__name__}: {str(error)[:160]}"
    return "accepted", repr(type(found))


@cache
def model_of(family: str) -> Any:
    """A tiny model, set up by one forward pass; `forget` it after damage."""
    model = build_model(family, torch.float32)
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    return model


def forget() -> None:
    """So that damage found in one attempt is not found again in the next."""
    model_of.cache_clear()


@cache
def small_task() -> Any:
    return build_task()


def thread_state() -> dict[str, Any]:
    """What torch keeps per thread or process and an interrupted operation could leave changed."""
    return {
        "gradients enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "live threads": threading.active_count(),
        "saved-tensor hooks": NATIVE._autograd._top_saved_tensors_default_hooks(True) is not None,
        "global hooks": len(torch.nn.modules.module._global_forward_hooks)
        + len(torch.nn.modules.module._global_forward_pre_hooks),
    }


def softmax_slope() -> list[float]:
    """The gradient of a softmax in this thread: a function mode that was left active changes it."""
    with torch.enable_grad():
        x = torch.tensor([0.1, 0.5, -0.3], requires_grad=True)
        return torch.autograd.grad(torch.nn.functional.softmax(x, dim=-1)[1], x)[0].tolist()


def whole_state(model: Any) -> dict[str, Any]:
    """Hooks, flags, modes, dtypes, requires_grad, weights; the thread; loans; logits and a gradient to the bit."""
    from mechwork.models.borrow import _loans
    from mechwork.relevance.install import _stacks

    state = {**_state(model), **thread_state(), "softmax": softmax_slope()}
    state["hook entries"] = tuple(len(point.fwd_hooks) for point in model.hook_dict.values())
    state["backward entries"] = tuple(len(point.bwd_hooks) for point in model.hook_dict.values())
    state["dtypes"] = tuple(str(p.dtype) for p in model.parameters())
    state["loans"] = model in _loans
    state["stacks"] = len(_stacks)
    tokens = small_task().pairs.clean_tokens
    with torch.no_grad():
        state["logits"] = model(tokens).numpy().tobytes()
    return state


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Names of what differs."""
    return ", ".join(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))[:6])
