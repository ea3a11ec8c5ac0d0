"""Gestures in the shell. That every gesture's command gives its numbers is tested beside the session."""

from __future__ import annotations

import json

import pytest

from mechwork.cli.ask import read_words
from mechwork.live import Ablate, EditPrompts, Steer, ToggleParts, read_gesture
from mechwork.live.commands import say_gesture

from .conftest import Cli


@pytest.mark.parametrize(
    "gesture",
    [Ablate("m3.n17+20@END", "zero"), Steer(3, -0.5), ToggleParts(("a1.h0->a2.h3<q>", "m0")),
     EditPrompts("A 'b' c", "1 2", "3", " x")],
)  # fmt: skip
def test_a_gesture_is_read_as_it_was_said(gesture: object) -> None:
    assert read_gesture(read_words(say_gesture(gesture))) == gesture  # type: ignore[arg-type]


def test_gestures_are_asked_in_turn(cli: Cli) -> None:
    asked = ("ask", "ioi", "ablate place=a4.h1", "restore", "-n", 8)
    found = cli(*asked, "--json")
    assert found.code == 0, found.err
    first, second = (answer["data"] for answer in found.json["answers"])
    assert second["metric"] == first["before"] != first["metric"]
    text = cli(*asked, "--quiet").out
    assert f"metric {first['before']:.3f} -> {first['metric']:.3f}" in text
    assert "controls" in text


@pytest.mark.parametrize(
    ("gesture", "said"),
    [("ablate a4.h1", "name=value"), ("ablate place='a4", "name=value"), ('{"do": 3', "one object"),
     ("explode place=a4.h1", "unknown gesture"), ("ablate", "place")],
)  # fmt: skip
def test_what_is_no_gesture_is_refused_before_anything_is_loaded(cli: Cli, gesture: str, said: str) -> None:
    outcome = cli("ask", "ioi", gesture, "--model", "no-such-model")
    assert outcome.code == 2
    assert said in outcome.err
    assert json.dumps(outcome.out) == '""'
