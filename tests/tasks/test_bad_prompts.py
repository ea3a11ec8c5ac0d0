"""Every bad prompt, answer, turn and span gives one message before any pass: these models cannot run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mechwork as mw
from mechwork.errors import InputError
from mechwork.tasks import from_chat, from_file, from_text
from mechwork.tasks.task import Task
from tests.tasks.test_chat import PAIR, TEMPLATE

TEXT = {**PAIR, "correct": " Mary", "incorrect": " John"}


@contextmanager
def no_pass(model: Any) -> Iterator[None]:
    """Inside, a forward is an error."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a forward ran before the message")

    guard = model.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        guard.remove()


def chat(**change: Any) -> Callable[[Any, Path], Any]:
    return lambda model, _: from_chat(model, [{**PAIR, **change}], metric="sequence_difference")


def text(metric: str = "sequence_difference", **change: Any) -> Callable[[Any, Path], Any]:
    return lambda model, _: from_text(model, **{**TEXT, **change}, metric=metric)


def file(**change: Any) -> Callable[[Any, Path], Any]:
    def build(model: Any, folder: Path) -> Any:
        path = folder / "pairs.jsonl"
        path.write_text(json.dumps({**TEXT, **change}), encoding="utf-8")
        return from_file(model, path)

    return build


def half_named(model: Any, folder: Path) -> Any:
    longer = {**TEXT, "corrupt": f"Yesterday, {TEXT['corrupt']}"}
    rows = [{**TEXT, "spans": {"PLACE": "the store"}}, longer]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return from_file(model, folder / "pairs.jsonl")


def tokens(**spans: Any) -> Callable[[Any, Path], Any]:
    return lambda *_: Task.from_tokens([[1, 2, 3]], [[1, 4, 3]], [5], [6], **spans)


BAD: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "answers share their first token": (text("first_token", correct=" Mary's", incorrect=" Mary"), "share it"),
    "an answer that the template swallows": (chat(correct=" Mary"), "swallows part of the answer ' Mary'"),
    "roles out of order": (
        chat(clean=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        "user and assistant in turn, user first; got user, user",
    ),
    "spans that overlap": (tokens(spans=[{"A": [0, 1], "B": [1, 2]}]), "spans must not overlap; position 1"),
    "spans that overlap in a file": (file(spans={"A": [0, 9], "B": [5, 13]}), "overlap"),
    "spans in some pairs of different length only": (half_named, "pair 1 has prompts of .* and names no span"),
    "a span of no token": (tokens(spans=[{"A": [3]}]), "names position 3; the prompt has 3 tokens"),
    "a prompt longer than the context": (text(clean=TEXT["clean"] + " the store" * 200), "context of [0-9]+ tokens"),
    "a chat longer than the context": (chat(clean="the store" + " the store" * 200), "context of [0-9]+ tokens"),
    "one prompt longer than the context": (
        lambda model, _: mw.explain(model, "the store" + " the store" * 200),
        "context of [0-9]+ tokens",
    ),
    "an empty answer": (text(correct=""), "needs text, or a list of texts .* in column 'correct'"),
    "an empty answer among several": (text(correct=[" Mary", ""]), "needs text, or a list of texts"),
    "an alignment that matches nothing": (text(corrupt="store"), "without one token in common"),
    "an answer of several tokens": (text("logit_difference", correct=" Mary's"), "must be a single token"),
    "one answer on both sides": (text(incorrect=" Mary"), "must differ"),
    "identical prompts": (text(corrupt=TEXT["clean"]), "identical"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_message_before_any_pass(
    bundled_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(bundled_model.tokenizer, "chat_template", TEMPLATE, raising=False)
    build, message = BAD[case]
    with no_pass(bundled_model), pytest.raises(InputError, match=message) as caught:
        build(bundled_model, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_what_spans_leave_out_is_a_span_of_its_own(bundled_model: Any, tmp_path: Path) -> None:
    task = file(spans={"PLACE": "the store"})(bundled_model, tmp_path)
    assert {"start", "PLACE", "PLACE+", "END"} == set(task.pairs.spans)
    assert "tokens that no span names are spans too: start, PLACE+" in task.describe()
    assert "no span names" not in file()(bundled_model, tmp_path).describe()
