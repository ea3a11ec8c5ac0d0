"""Models in bfloat16 and float16: every operation gives finite numbers near those of float32, or says why not."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from mechwork.errors import MechworkError
from tests.families import FAMILIES, build_model
from tests.faults.core import Tally, changes, model_of, small_task, whole_state
from tests.faults.interrupts import OPERATIONS
from tests.faults.together import numbers_of


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if hasattr(result, "items"):
        return [part for value in dict(result.items()).values() for part in _tensors(value)]
    return [value for name in ("per_example", "values", "logits") for value in [getattr(result, name, None)]
            if isinstance(value, torch.Tensor)]  # fmt: skip


def one(tally: Tally, family: str, dtype: torch.dtype, name: str) -> None:
    """One operation: finite, repeatable to the bit, and it leaves the model as it was."""
    model, task = build_model(family, dtype), small_task()
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    what = f"{family} {dtype} {name}"
    plain = model(task.pairs.clean_tokens)
    before = {key: value for key, value in whole_state_of(model).items() if key != "logits"}
    try:
        found = OPERATIONS[name](model, task)
        again = OPERATIONS[name](model, task)
    except MechworkError as error:
        tally.check(len(str(error)) > 15, f"{what}: {error}")
        return
    except Exception as error:  # noqa: BLE001 - counted
        tally.check(False, f"{what}: {type(error).__name__}: {str(error)[:160]}")
        return
    said = changes(before, {key: value for key, value in whole_state_of(model).items() if key != "logits"})
    if not torch.equal(plain, model(task.pairs.clean_tokens)):
        said = "the model's logits changed"
    finite = all(bool(t.isfinite().all()) for t in _tensors(found) if t.is_floating_point())
    if not finite and bool(plain.isfinite().all()):
        reference = _tensors(OPERATIONS[name](model_of(family), task))
        said = "" if any(not bool(t.isfinite().all()) for t in reference) else "numbers that are not finite"
    if not said and not name.startswith("read_lens") and numbers_of(found) != numbers_of(again):
        said = "another answer the second time"
    tally.check(not said, f"{what}: {said}")


def whole_state_of(model: Any) -> dict[str, Any]:
    """`whole_state` without the logits' bytes, which numpy does not know in bfloat16."""
    kept = model.forward
    return {**_without_logits(model), "forward is its own": kept == model.forward}


def _without_logits(model: Any) -> dict[str, Any]:
    from tests.families import _state
    from tests.faults.core import softmax_slope, thread_state

    hooks = tuple(len(point.fwd_hooks) for point in model.hook_dict.values())
    return {**_state(model), **thread_state(), "softmax": softmax_slope(), "hook entries": hooks}


def run(tally: Tally) -> None:
    """Every operation in both dtypes on some families."""
    families = ("gpt2", "llama", "gemma2", "mixtral", "opt", "neox") if tally.scale >= 1 else ("gpt2", "gemma2")
    assert set(families) <= set(FAMILIES)
    cases = list(itertools.product(families, (torch.bfloat16, torch.float16), OPERATIONS))
    for family, dtype, name in tally.draw.sample(cases, min(len(cases), tally.times(len(cases)))):
        one(tally, family, dtype, name)
    assert whole_state(model_of("gpt2"))
