"""One user of a model at a time: a second thread is refused, and what would come out without that is wrong."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.errors import BusyError
from mechwork.interventions import Value, Write, intervene
from mechwork.models.borrow import borrow, borrows, hooked
from mechwork.models.hooks import Hooks
from mechwork.relevance import RELP
from mechwork.runs.record import record_run
from mechwork.runs.restart import restart_at
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import build_model


def elsewhere(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises in a thread of its own."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:  # noqa: BLE001 - handed back
            found.append(error)

    thread = threading.Thread(target=run, name="the second")
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("way", ["write", "hooks", "rules", "restart"])
def test_a_second_thread_is_refused_while_the_first_has_hooks_on(tiny_gpt2: Any, tiny_task: Task, way: str) -> None:
    """Without the loan the second thread would run with the first one's write, and report its numbers as the model's
    own.
    """
    pairs = tiny_task.pairs
    plain = record_run(tiny_gpt2, pairs, ["resid_post"]).logits
    zero = Write(Site("mlp_out", 0), Value(torch.tensor(0.0)))
    contexts = {
        "write": lambda: intervene(tiny_gpt2, [zero]),
        "hooks": lambda: hooked(tiny_gpt2, [("blocks.0.hook_mlp_out", lambda x, hook: 0 * x)]),
        "rules": lambda: RELP.context(tiny_gpt2),
        "restart": lambda: restart_at(tiny_gpt2, 1, torch.zeros(3, 10, 32)),
    }
    with contexts[way]():
        mine = tiny_gpt2(pairs.clean_tokens)
        for work in (
            lambda: record_run(tiny_gpt2, pairs, ["resid_post"]).logits,
            lambda: tiny_gpt2(pairs.clean_tokens),
            lambda: mw.attribute(tiny_gpt2, tiny_task, ["resid_pre"]),
        ):
            error = elsewhere(work)
            assert isinstance(error, BusyError), error
            assert "'MainThread' is using this one" in str(error)
            assert "Load a model per thread" in str(error)
    assert (way == "rules") == torch.equal(
        mine, plain
    )  # the hooks did something, which the second thread would have met
    torch.testing.assert_close(elsewhere(lambda: tiny_gpt2(pairs.clean_tokens)), plain, rtol=0, atol=0)


def test_long_work_holds_the_model_from_end_to_end(tiny_gpt2: Any, tiny_task: Task) -> None:
    """Also between its own forwards: a second thread is refused whenever it comes."""
    errors: list[Any] = []

    def progress(done: int, total: int, what: str) -> None:
        errors.append(elsewhere(lambda: mw.patch(tiny_gpt2, tiny_task, ["resid_pre"])))

    alone = mw.patch(tiny_gpt2, tiny_task, ["resid_pre"])
    found = mw.patch(tiny_gpt2, tiny_task, ["resid_pre"], progress=progress)
    assert errors
    assert all(isinstance(error, BusyError) for error in errors)
    assert torch.equal(found["resid_pre"].values, alone["resid_pre"].values)


def test_one_thread_nests_and_gives_back(tiny_gpt2: Any, tiny_task: Task) -> None:
    with borrow(tiny_gpt2), borrow(tiny_gpt2):
        record_run(tiny_gpt2, tiny_task.pairs, ["resid_pre"])
    assert elsewhere(lambda: record_run(tiny_gpt2, tiny_task.pairs, ["resid_pre"])).n_bytes > 0
    with pytest.raises(KeyboardInterrupt), borrow(tiny_gpt2):
        raise KeyboardInterrupt
    assert elsewhere(lambda: record_run(tiny_gpt2, tiny_task.pairs, ["resid_pre"])).n_bytes > 0


def test_an_interrupt_while_hooks_come_off_leaves_none(tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = tiny_gpt2._remove_temporary_hook, []

    def remove(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        plain(*args)

    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
    with pytest.raises(KeyboardInterrupt), hooked(tiny_gpt2, [(name, lambda x, hook: x) for name in names]):
        monkeypatch.setattr(type(tiny_gpt2), "_remove_temporary_hook", staticmethod(remove))
    monkeypatch.undo()
    assert len(calls) == 2
    assert not any(point.fwd_hooks for point in tiny_gpt2.hook_dict.values())


def test_a_module_that_comes_later_is_given_back_too() -> None:
    """The list of modules is kept from loan to loan: it must notice what is put in, by whatever way, and what goes."""
    model = build_model("gpt2")

    def spoil(part: Any) -> None:
        part.register_forward_hook(hooked)  # what mechwork makes, so that it may be taken off
        part.forward = abs

    def loan(parts: list[Any]) -> None:
        with pytest.raises(KeyboardInterrupt), borrow(model):
            for part in parts:
                spoil(part)
            raise KeyboardInterrupt
        for part in parts:
            assert not part._forward_hooks
            assert "forward" not in vars(part)

    loan([model.blocks[0]])
    late = [torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(3)]
    model.late = late[0]
    loan([late[0], late[0][0]])
    late[0].append(late[1])
    loan([late[1]])
    late[0]._modules["0"] = late[2]  # past what registers modules, as many as before
    loan([late[2][0]])
    del model.late
    loan([model.blocks[1]])
    assert late[2] not in Hooks.of(model).modules
    assert set(Hooks.of(model).modules) == set(model.modules())
    gone = weakref.ref(model)  # nor does the list keep a model
    del model, loan
    gc.collect()
    assert gone() is None


def test_a_borrowing_function_says_itself_what_is_no_model() -> None:
    @borrows
    def double(model: Any) -> Any:
        return 2 * model

    assert double(4) == 8
