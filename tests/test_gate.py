"""The gate's names, its shards, and that the workflows run what it has."""

from __future__ import annotations

import os
import re
from pathlib import Path

import hypothesis.core
import pytest
import yaml

from tests import gate, mutants
from tests.families import FAMILIES
from tests.mutations import Mutant

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


def test_the_attack_runs_every_week_with_another_seed_and_a_floor() -> None:
    weekly = (WORKFLOWS / "faults.yml").read_text(encoding="utf-8")
    install = re.search(r"- run: (pip install .* -e)", (WORKFLOWS / "whole.yml").read_text(encoding="utf-8"))
    assert install
    assert weekly.count(install[1]) == weekly.count("runs-on:") == 3
    assert '-e ".[dev,ray]"' in weekly, "the part `workers` needs Ray"
    assert "schedule:" in weekly
    assert "workflow_dispatch:" in weekly
    assert "MECHWORK_SEED: ${{ inputs.seed || github.run_number }}" in weekly
    assert 'python -m tests.faults --seed "$MECHWORK_SEED"' in weekly
    assert "python -m tests.mutants --n 426 --seed 28 --floor 95" in weekly
    listed = re.search(r"shard: \[(.*)\]", weekly)
    assert listed
    assert set(listed[1].split(", ")) <= set(gate.SHARDS)
    assert "upload" not in weekly
    assert set(yaml.safe_load(weekly)["jobs"]) == {"faults", "shard", "mutants"}


def test_mutants_have_a_score_per_folder_and_a_floor(capsys: pytest.CaptureFixture[str]) -> None:
    def made(folder: str, number: int) -> Mutant:
        return Mutant(f"mechwork/{folder}/it.py", "it", 1, "Add -> Sub", number)

    tried = [made("tasks", n) for n in range(4)] + [made("lenses", n) for n in range(3)]
    found = ["killed"] * 3 + ["survived", "killed", "equivalent", "not called"]
    outcomes = {mutant.name: outcome for mutant, outcome in zip(tried, found, strict=True)}
    share = mutants.share_of(mutants.Judge(lambda judge: None), tried, outcomes, dict.fromkeys(outcomes, ""), 3)
    rows = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert (rows["tasks"], rows["lenses"], rows["all"]) == ("75.0%", "50.0%", "66.7%")
    assert share == 4 / 6
    assert [mutants.status([share], floor) for floor in (0, 66, 66.7, 95)] == [0, 0, 1, 1]
    assert mutants.status([], 0) == 1


def test_the_seed_is_told_and_draws_begin_with_it(pytestconfig: pytest.Config, seed: int) -> None:
    said = pytestconfig.hook.pytest_report_header(config=pytestconfig, start_path=pytestconfig.rootpath)
    lines = [line for part in said for line in ([part] if isinstance(part, str) else part)]
    given = os.environ.get("MECHWORK_SEED", "")
    assert (f"MECHWORK_SEED={given}" if given else "MECHWORK_SEED is not set: the seeds of every run") in lines
    assert hypothesis.core.global_force_seed == (int(given) if given else None)
    assert hypothesis.settings.default is not None
    assert hypothesis.settings.default.derandomize is not bool(given)
    assert not given or seed == int(given)


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
