"""Every failure that an earlier attack found, by its number in that account, as a test of its own."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation import AblationSpec
from mechwork.arguments import checked, fits, misfit, no_number
from mechwork.artefact import write_artefact
from mechwork.checkpoint import Checkpoint
from mechwork.circuits import measure_completeness
from mechwork.directions import Direction, Examples
from mechwork.edits import compare_with_patch
from mechwork.errors import BusyError, InputError, MetricError, StorageError
from mechwork.features import record_features
from mechwork.files import read_json, write_json
from mechwork.lenses import open_text
from mechwork.models.borrow import borrow, borrows
from mechwork.patching import fit_das, study_agreement
from mechwork.relevance.install import install
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import build_model, build_task
from tests.faults.core import changes, softmax_slope, thread_state
from tests.faults.interrupts import Counter, fault

STREAM = Site("resid_post", 1)


def test_1_a_checkpoint_is_one_file(tmp_path: Path) -> None:
    """Two files, one of which knew the other's hash, could be killed between; see also tests/artefacts/test_killed."""
    Checkpoint(tmp_path, {"n": 1}).save({"x": torch.ones(2)}, {"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_2_a_second_thread_is_refused_and_the_same_one_may_nest(tiny_gpt2: Any, tiny_task: Task) -> None:
    said: list[object] = []

    def other() -> None:
        for call in (
            lambda: mw.patch(tiny_gpt2, tiny_task, ["z"]),
            lambda: tiny_task.accuracy(tiny_gpt2),
            lambda: tiny_gpt2(tiny_task.pairs.clean_tokens),
        ):
            try:
                said.append(call())
            except BusyError as error:
                said.append(str(error))

    with borrow(tiny_gpt2), borrow(tiny_gpt2):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 3
    assert all(isinstance(text, str) and "one thread at a time" in text for text in said), said
    mw.patch(tiny_gpt2, tiny_task, ["z"])


def test_4_an_interrupt_under_gim_leaves_no_function_mode(tiny_task: Task) -> None:
    """Of OPT, whose softmax is inside the wrapped module: every later softmax gradient of the thread was wrong."""
    model = build_model("opt", torch.float32)
    mw.attribute(model, tiny_task, ["resid_pre"], rules="gim")
    before, slope = thread_state(), softmax_slope()
    for k in (3, 9, 15, 21):
        for kind in ("before a module", "after a module"):
            with pytest.raises(KeyboardInterrupt), fault(kind, Counter(k, KeyboardInterrupt("injected"))):
                mw.attribute(model, tiny_task, ["resid_pre"], rules="gim")
            assert not changes(before, thread_state())
            assert softmax_slope() == slope


def test_cleanup_that_fails_once_leaves_no_hook(tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechwork.models import borrow as module
    from mechwork.relevance import bench as installed

    composite = mw.find_composite("relp").bind(tiny_gpt2)
    entries = [len(point.fwd_hooks) for point in tiny_gpt2.hook_dict.values()]
    real, calls = module.remove_hook, [0]

    def failing(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError("injected")
        real(*args)

    monkeypatch.setattr(installed, "remove_hook", failing)
    with pytest.raises(OSError, match="injected"), install(tiny_gpt2, composite.rules):
        pass
    assert [len(point.fwd_hooks) for point in tiny_gpt2.hook_dict.values()] == entries


def test_an_interrupt_at_any_line_of_a_loan_gives_the_model_back() -> None:
    """Between counting a context and entering its ``try``, one left the model lent for good: other threads refused."""
    from mechwork.models.borrow import _loans
    from mechwork.models.hooks import _lists

    model: Any = torch.nn.Linear(1, 1)

    def lent(k: int | None) -> int:
        counter, error = Counter(k, KeyboardInterrupt("injected")), None
        _lists.pop(model, None)  # as at the first loan
        try:
            with fault("line", counter), borrow(model), borrow(model):
                pass
        except KeyboardInterrupt as caught:
            error = caught
        if error is not None:
            error.__traceback__ = None  # its frames hold contexts open
        assert (error is None) == (k is None)
        return counter.n

    for k in range(1, lent(None) + 1):
        lent(k)
        assert model not in _loans, k
        assert not model._forward_pre_hooks, k


def test_an_interrupt_at_the_door_of_no_grad_gives_gradients_back(tiny_gpt2: Any) -> None:
    """Between switching them off and entering the block, one left them off for the whole thread."""

    @borrows
    def interrupted(model: Any) -> None:
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt("injected")

    with pytest.raises(KeyboardInterrupt):
        interrupted(tiny_gpt2)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        with pytest.raises(KeyboardInterrupt):
            interrupted(tiny_gpt2)
        assert not torch.is_grad_enabled()


def test_an_interrupt_between_putting_a_hook_on_and_noting_it_leaves_none(
    tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.hook_points import HookPoint

    composite = mw.find_composite("relp").bind(tiny_gpt2)
    entries = [len(point.fwd_hooks) for point in tiny_gpt2.hook_dict.values()]
    real, calls = HookPoint.add_hook, [0]

    def interrupted(*args: Any, **more: Any) -> Any:
        handle = real(*args, **more)
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt("injected")
        return handle

    monkeypatch.setattr(HookPoint, "add_hook", interrupted)
    with pytest.raises(KeyboardInterrupt), install(tiny_gpt2, composite.rules):
        pass
    assert [len(point.fwd_hooks) for point in tiny_gpt2.hook_dict.values()] == entries


def test_6_parts_of_a_killed_run_are_no_strangers(tmp_path: Path, tiny_gpt2: Any, tiny_task: Task) -> None:
    (tmp_path / ".plan.json.part").write_text("{")
    (tmp_path / f".plan.json.{os.getpid()}.7.part").write_text("{")
    mw.patch(tiny_gpt2, tiny_task, ["z"], checkpoint=tmp_path)
    assert (tmp_path / "plan.json").is_file()


def _nan_of(effects: Any) -> mw.Effects:
    import dataclasses

    effect = effects["z"]
    return mw.Effects({"z": dataclasses.replace(effect, per_example=effect.per_example * math.nan)})


SILENT: dict[str, Callable[[Any, Task], object]] = {
    "positions that no prompt has": lambda m, t: mw.ablate(m, t, AblationSpec(["a0.h1"], "zero", positions=[999])),
    "float ids": lambda m, t: Task.from_tokens([[1.0, 2]], [[1, 3]], [4], [5]),  # pyright: ignore[reportArgumentType]
    "negative ids": lambda m, t: Task.from_tokens([[-1, 2]], [[1, 3]], [4], [5]),
    "negative steps": lambda m, t: mw_learn(m, t, n_steps=-1),
    "negative count": lambda m, t: mw.evaluate(m, t, mw.score_edges(m, t), n_random=-1),
    "NaN budget": lambda m, t: mw.patch(m, t, ["z"], memory_budget=math.nan),
    "matrix as direction": lambda m, t: Direction(torch.ones(2, 2), Site("resid_pre", 1)),
    "NaN strength": lambda m, t: AblationSpec(["a0.h1"], "noise", strength=math.nan),
    "NaN value": lambda m, t: AblationSpec(["a0.h1"], "constant", value=math.nan),
    "a seed below 0": lambda m, t: mw.evaluate(m, t, mw.score_edges(m, t), seed=-1),
    "a seed of 100 bits": lambda m, t: AblationSpec(["a0.h1"], "noise", seed=2**100),
}


def evaluation(model: Any, task: Task, **more: Any) -> object:
    return mw.evaluate(model, task, mw.score_edges(model, task), **more)


def completeness(model: Any, task: Task, **more: Any) -> object:
    return measure_completeness(model, task, mw.score_edges(model, task).circuit(9), **more)


def mw_learn(model: Any, task: Task, **more: Any) -> object:
    from mechwork.circuits import learn_circuit

    return learn_circuit(model, task, 5, **more)


@pytest.mark.parametrize("name", SILENT)
def test_7_what_gave_a_number_silently_is_refused(name: str, tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises((InputError, TypeError)) as refusal:  # TypeError: the tests' own check of hints comes first
        SILENT[name](tiny_gpt2, tiny_task)
    assert len(str(refusal.value)) > 15


def test_7_nothing_agrees_with_nan_and_labels_have_two_values(tiny_gpt2: Any, tiny_task: Task) -> None:
    effects = mw.attribute(tiny_gpt2, tiny_task, ["z"])
    with pytest.raises(MetricError):
        _nan_of(effects).agreement(effects)
    with pytest.raises((InputError, TypeError)):
        Examples.of_tokens([[1], [2], [3]], [0, 1, 2])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full_is_one_clear_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    file = write_json(tmp_path / "it.json", {"old": True})

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(
            StorageError, match=r"it\.json cannot be written: .*What was there before is as it was\."
        ) as e:
            write_json(file, {"new": True})
        with pytest.raises(StorageError):
            write_artefact(tmp_path / "it.safetensors", "thing", {}, {"x": torch.ones(2)})
    assert e.value.errno == number
    assert read_json(file) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]


def test_a_folder_that_is_not_there_and_names_that_no_file_has(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none" / "it.json", "Make its folder first"),
        (tmp_path / ("x" * 300), "shorter name"),
    ):
        with pytest.raises(StorageError, match=said):
            write_json(path, {})
    with pytest.raises(StorageError):
        write_artefact(tmp_path / "none" / "x.safetensors", "thing", {}, {"x": torch.ones(1)})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Checkpoint(tmp_path / "file" / "below", {}).save({"x": torch.ones(1)}, {})


def test_threads_that_write_one_path_leave_one_content_whole(tmp_path: Path) -> None:
    """They had one half-written neighbour in common, named by the process alone."""
    from tests.faults.core import Tally
    from tests.faults.together import one_file

    tally = Tally("one file", 0)
    one_file(tally, n=4, times=6)
    assert not tally.failures, tally.report()


def test_wrong_types_are_named_and_right_ones_are_not() -> None:
    @checked
    def search(task: Task, threshold: float, names: list[str] | None = None) -> float:
        return threshold + len(names or "")

    task: Any = build_task()
    wrong: Any = ["x"]
    assert search(task, 2) == 2
    with pytest.raises(InputError, match=r"threshold of search is float; got \['x'\]"):
        search(task, wrong)
    with pytest.raises(InputError, match="names of search is"):
        search(task, 1.0, 5)  # pyright: ignore[reportArgumentType]
    for value, hint, expected in (
        (1, int, True), (True, int, False), (1.5, int, False), (torch.tensor(2), int, True), (1, float, True),
        ("x", float, False), (None, int | None, True), ([1, "x"], list[int], False), ((1, 2), tuple[int, int], True),
        ("ab", list[str], False),
        ({"a": 1}, dict[str, str], False), ({"a": 1}, Mapping[str, int], True),
        (len, Callable[..., int], True), (3, Callable[..., int], False), (3, "unknown", True),
    ):  # fmt: skip
        assert fits(value, hint) is expected, (value, hint)
    assert misfit(search, (task,), {"nonsense": 3}) == ""
    for bad in (math.inf, 10**30, torch.tensor(math.nan)):
        assert "threshold of search is a finite number" in misfit(search, (task, bad), {})
    with pytest.raises(InputError, match="threshold of search is a number, not NaN; got nan"):
        search(task, math.nan)
    for name, hint, value, held in (
        ("n_rows", int, -1, False), ("n_rows", int, 0, True), ("layer", int, -1, True), ("layer", int, 2**63, False),
        ("batch_size", int, 0, False), ("k", int, 2.0, False), ("x", float, math.inf, True), ("x", float, "y", True),
    ):  # fmt: skip
        assert (no_number(value, hint, name) == "") is held, (name, value)


def test_text_that_is_no_rows_of_ids_is_refused_before_any_steering(tiny_gpt2: Any, tiny_task: Task) -> None:
    direction = Direction(torch.ones(32), Site("resid_post", 1))
    for text in (torch.tensor(math.nan), torch.tensor([1, 2]), torch.ones(2, 3)):
        with pytest.raises((InputError, TypeError), match=r"token ids|Type-check"):
            mw.study_steering(tiny_gpt2, tiny_task, direction, methods=["add"], text=text)


EMPTY: dict[str, Callable[[Any, Task], object]] = {
    "no kinds": lambda m, t: study_agreement(m, [t], sites=[]),
    "no strengths": lambda m, t: mw.study_steering(m, t, Direction(torch.ones(32), STREAM), text=t.pairs.clean_tokens,
                                                   strengths=[]),
    "no rank": lambda m, t: fit_das(m, t, STREAM, position=8, rank=0),
    "too large a rank": lambda m, t: fit_das(m, t, STREAM, position=8, rank=33),
    "no direction among neurons": lambda m, t: compare_with_patch(m, t, Direction(torch.ones(32), STREAM), t),
    "no rows": lambda m, t: record_features(m, torch.tensor([1, 2]), []),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_what_is_empty_or_of_no_shape_is_refused_before_any_forward(name: str, tiny_gpt2: Any, tiny_task: Task) -> None:
    runs: list[int] = []
    handle = tiny_gpt2.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        with pytest.raises((InputError, TypeError)) as refusal:
            EMPTY[name](tiny_gpt2, tiny_task)
    finally:
        handle.remove()
    assert len(str(refusal.value)) > 15
    assert not runs


NAMED: dict[str, tuple[Callable[[Any, Task, Any], object], tuple[Any, ...]]] = {
    "a model that is none": (lambda m, t, bad: mw.read_lens(bad, [[1, 2]]), ([], 0, "\x00")),
    "a lens that is none": (lambda m, t, bad: mw.read_lens(m, [[1, 2]], bad), (None, -1, len, Path("x"))),
    "an answer that is none": (lambda m, t, bad: mw.attribute_tokens(m, [1, 2], bad), ([-1], [None], torch.ones(2))),
    "prompts of floats": (lambda m, t, bad: mw.attribute_logits(m, bad), (torch.ones(2), [[1.7, 2]], [None], b"x")),
    "a kind that is none": (lambda m, t, bad: Site(bad, 1), ({}, [None], "x")),
    "a layer that is none": (lambda m, t, bad: Site("resid_pre", bad), ("x", 1.5, True, -1, 10**30)),
    "a revision that is none": (lambda m, t, bad: mw.load_model("no/such", revision=bad), (math.nan, b"x", len)),
    "a device that is none": (lambda m, t, bad: mw.load_model("no/such", bad), (10**30,)),
    "a folder that is none": (lambda m, t, bad: mw.load_discovery(bad), ([None], True)),
    "answers that are none": (lambda m, t, bad: Task.from_tokens([[1]], [[2]], bad, [5]), (torch.tensor(1.0), "x")),
    "a name that no file has": (lambda m, t, bad: (mw.load_circuit(bad), mw.load_model(bad)), ("z" * 300,)),
    "a model that no file has": (lambda m, t, bad: mw.load_model(bad), ("z" * 300,)),
    "targets that are none": (lambda m, t, bad: mw.ablate(m, t, AblationSpec(bad, "zero")), (torch.ones(2),)),
    "fractions that are none": (lambda m, t, bad: evaluation(m, t, fractions=bad), (torch.ones(2),)),
    "a flag that is none": (lambda m, t, bad: mw.score_edges(m, t).circuit(9, prune=bad), (torch.ones(2),)),
    "no whole number": (lambda m, t, bad: mw_learn(m, t, n_steps=bad), (math.inf, math.nan, 1.5, 10**30)),
    "knock-outs without end": (lambda m, t, bad: completeness(m, t, n_knockouts=bad), (-1, 10**30, 1.5)),
    "a batch that is none": (lambda m, t, bad: mw.score_edges(m, t, batch_size=bad), (0, -1, 1.5, math.inf)),
    "a penalty that is none": (lambda m, t, bad: mw_learn(m, t, penalty=bad), (math.nan, math.inf, -1.0)),
    "prompts of one number": (lambda m, t, bad: mw.read_lens(m, bad), (torch.tensor(1.0), torch.tensor(3))),
    "text of one number": (lambda m, t, bad: open_text(m, bad), (torch.tensor(3),)),
    "a direction of one number": (lambda m, t, bad: AblationSpec(["d@0"], "zero", directions=bad), ({"x": 1},)),
    "a seed of 100 bits": (lambda m, t, bad: completeness(m, t, seed=bad), (2**100,)),
    "documents that are none": (lambda m, t, bad: open_text(m, bad), ([None], [[1.5, 2]], [b"x"], lambda: None)),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_arguments_of_a_wrong_type_are_named_not_met_inside(name: str, tiny_gpt2: Any, tiny_task: Task) -> None:
    """Each ended in an AttributeError, a ValueError or an OverflowError, or, as [[1.7, 2]], in other prompts."""
    call, values = NAMED[name]
    here = (
        (InputError, TypeError) if name.startswith(("a kind", "a layer", "targets", "a direction")) else InputError
    )  # the tests' check of hints
    for bad in values:
        with pytest.raises(here) as refusal:
            call(tiny_gpt2, tiny_task, bad)
        assert len(str(refusal.value)) > 15


def test_exact_edges_of_a_model_in_half_precision() -> None:
    """Gemma's scaled embedding made the changed stream float32, which the unembedding refused."""
    model = build_model("gemma2", torch.bfloat16)
    scores = mw.score_edges(model, build_task(n=1), preset="exact")
    assert bool(scores.values.isfinite().all())
