"""The gate's names, its shards, and that the workflows run what it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import gate
from tests.families import FAMILIES

WORKFLOWS = Path(__file__).resolve().parents[1] / ".github" / "workflows"


def test_gates_and_steps() -> None:
    assert gate.plan([]) == gate.plan(["whole"]) == ["format", "lint", "types", "layers", "tests"]
    assert gate.plan(["quick"]) == ["format", "lint", "types", "layers", "few"]
    assert gate.plan(["types", "lint"]) == ["lint", "types"]
    with pytest.raises(SystemExit, match="unknown step lnit"):
        gate.plan(["lnit"])
    assert set(gate.QUICK_FAMILIES.split(",")) < set(gate.WHOLE_FAMILIES.split(",")) < set(FAMILIES)


@pytest.mark.parametrize(
    ("path", "fixtures", "shard"),
    [
        ("tests/patching/test_exact.py", {"family_model64", "family"}, "families"),
        ("tests/patching/test_words.py", {"tiny_gpt2"}, "unit"),
        ("tests/render/test_browser_graph.py", {"open_page"}, "browser"),
        ("tests/notebooks/test_course.py", set(), "pages"),
        ("notebooks/01_first_circuit.ipynb", set(), "pages"), ("tests/test_docs.py", set(), "pages"),
    ],
)  # fmt: skip
def test_every_test_is_in_one_shard(path: str, fixtures: set[str], shard: str) -> None:
    assert gate.shard_of(path, fixtures) == shard
    assert [wanted for wanted in gate.SHARDS if gate.kept(shard, wanted)] == [shard]
    assert gate.kept(shard, "")
    assert gate.kept(shard, "quick") == (shard in ("unit", "families"))
    assert set(gate.SHARDS) <= set(gate.STEPS)


def test_workflows_run_the_gate() -> None:
    quick = (WORKFLOWS / "quick.yml").read_text(encoding="utf-8")
    whole = (WORKFLOWS / "whole.yml").read_text(encoding="utf-8")
    assert "python -m tests.gate quick" in quick
    assert "python -m tests.gate ${{ matrix.shard }}" in whole
    listed = re.search(r"shard: \[(.*)\]", whole)
    assert listed
    assert tuple(listed[1].split(", ")) == ("checks", *gate.SHARDS)


def test_what_is_measured_as_slow_exists_and_is_left_out_of_quick_alone() -> None:
    names = gate.measured_slow()
    assert len(names) > 100
    for name in names:
        path, _, function = name.partition("::")
        assert f"def {function}(" in (gate.ROOT / path).read_text(encoding="utf-8"), name
        assert not gate.kept("unit", "quick", name)
        assert gate.kept("unit", "unit", name)


def test_what_is_dear_exists_and_is_left_out_of_the_whole_gate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lessons = gate.answered_lessons()
    assert len(lessons) >= 4
    for name in gate.DEAR | {f"{path}::{Path(path).name}" for path in lessons}:
        path, _, function = name.partition("::")
        assert (gate.ROOT / path).is_file()
        assert path.endswith(".ipynb") or f"def {function}(" in (gate.ROOT / path).read_text(encoding="utf-8"), name
        monkeypatch.setenv(gate.FAMILIES, gate.WHOLE_FAMILIES)
        assert not gate.kept("unit", "", name)
        monkeypatch.delenv(gate.FAMILIES)
        assert gate.kept("unit", "", name)
        assert gate.kept("unit", "unit", name)
