"""Discoveries of whole answers in a chat and of pairs of different length, from a shell, to a page with faithfulness on
held-out pairs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mechwork as mw
from tests.cli.conftest import Cli
from tests.gate import fewer

NAMES = ("Mary", "Tom", "Anna", "John", "Paul", "Lucy")
TEMPLATE = "<|endoftext|>{% for m in messages %}{{ m.content }}{% endfor %}"
"""A model that is no chat model reads what it knows."""


def rows(corrupt: str, end: str) -> list[dict[str, str]]:
    text = "When {a} and {b} went to the store, {giver} gave a drink to"
    circle = zip(NAMES, NAMES[1:] + NAMES[:1], NAMES[2:] + NAMES[:2], strict=True)
    return [
        {
            "clean": text.format(a=a, b=b, giver=b),
            "corrupt": text.format(a=a, b=b, giver=corrupt.format(a=a, c=c)),
            "correct": f" {a}{end}",
            "incorrect": f" {b}{end}",
        }
        for a, b, c in circle
    ]


CASES = {
    "whole answers in a chat": ("{a}", "'s", ["--chat", "--metric", "sequence_difference"]),
    "different lengths": ("{a} and {c}", "", []),
}


@pytest.mark.parametrize(
    ("case", "depth"),
    fewer([(case, depth) for case in CASES for depth in ((), ("--quick",))], [("different lengths", ("--quick",))]),
)
def test_from_a_file_to_a_report(
    cli: Cli, bundled_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, depth: tuple[str, ...]
) -> None:
    corrupt, end, options = CASES[case]
    file, out = tmp_path / "pairs.jsonl", tmp_path / "report"
    file.write_text("\n".join(map(json.dumps, rows(corrupt, end))), encoding="utf-8")
    monkeypatch.setattr(bundled_model.tokenizer, "chat_template", TEMPLATE, raising=False)
    monkeypatch.setattr("mechwork.cli.discover.load", lambda _: bundled_model)
    assert cli("discover", file, *options, *depth, "--out", out, "--min-accuracy", "0.1").code == 0
    found = mw.load_discovery(out)
    if not depth:
        assert "lens" in found.named
        assert ("direct" in found.named) == (not options)
    assert len(found["evaluation"].per_example) == 3  # held-out questions
    assert found["evaluation"].faithfulness > 0.5
    assert "faithfulness" in (out / "report.html").read_text(encoding="utf-8").lower()
