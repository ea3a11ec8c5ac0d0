"""mechwork discover: the whole path, its files, and every bad input with its one message."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork
from mechwork.circuits import Circuit
from mechwork.cli.console import dump_json
from mechwork.models import load_model
from mechwork.tasks import ioi
from tests.gate import fewer

from .conftest import Cli

ROOT = Path(mechwork.__file__).parents[1]
TABLES = ("circuit.json", "edges.csv", "effects.csv", "curve.csv")
FILES = {"report.html", "report.json", *TABLES, "request.json", "plan.json", "ledger.json"}
FEW = ("--n-pairs", 8, "--quick")


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def left_over(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write_pairs(file: Path, *pairs: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return file


def some_pairs(n: int = 4) -> list[dict[str, Any]]:
    """Pairs as a user would bring them, from prompts that the bundled model knows."""
    task = ioi(load_model("gpt2-6l"), n=n, seed=5, template="When {IO} and {S1} had lunch, {S2} gave a {object} to")
    names = ("clean", "corrupt", "correct", "incorrect")
    texts = zip(task.texts, task.answer_texts, strict=True)
    return [dict(zip(names, ("".join(a[1:]), "".join(b[1:]), *answers), strict=True)) for (a, b), answers in texts]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run of the command as a process of its own: its folder, and what it printed with --json."""
    place = tmp_path_factory.mktemp("discover")
    command = [sys.executable, "-m", "mechwork.cli", "discover", "ioi", "--n-pairs", "8", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True)
    assert "testing all sizes" in finished.stderr
    assert len(finished.stderr.splitlines()) < 25  # a line per stage
    return place / "reports" / "ioi", json.loads(finished.stdout)


def test_every_file_is_written_and_named(done: tuple[Path, dict[str, Any]]) -> None:
    folder, data = done
    assert {file.name for file in folder.iterdir()} == FILES | {"results"}
    assert set(data["files"]) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["ioi"]
    kept = json.loads((folder / "report.json").read_text())
    assert {k: v for k, v in kept.items() if k != "sha256"} == {k: v for k, v in data.items() if k != "files"}
    assert not data["stages"]["to_come"]


def test_the_numbers_hang_together(done: tuple[Path, dict[str, Any]]) -> None:
    folder, data = done
    assert data["task"]["n_train"] == data["task"]["n_test"] == 4
    assert data["task"]["held_out"]
    assert data["baseline"]["train"]["clean"] > 0 > data["baseline"]["train"]["corrupt"]
    tried = {row["n_edges"]: row["faithfulness"] for row in data["circuit"]["sizes_tried"]}
    assert data["circuit"]["n_edges"] <= data["circuit"]["n_requested"] == min(n for n, f in tried.items() if f >= 0.9)
    assert "faithfulness 0.9" in data["circuit"]["why_this_size"]
    assert data["evaluation"]["interval"][0] <= data["evaluation"]["faithfulness"] <= data["evaluation"]["interval"][1]
    assert data["curve"]["faithfulness"][-1] == pytest.approx(1, abs=1e-4)
    assert set(data["agreement"]) == {"resid_pre", "attn_out", "mlp_out", "z"}
    assert data["agreement"]["resid_pre"]["pearson"] > 0.5
    edges = rows(folder / "edges.csv")
    assert len(edges) == data["circuit"]["n_edges_of_graph"]
    assert sum(row["in_circuit"] == "True" for row in edges) == data["circuit"]["n_edges"]
    effects = rows(folder / "effects.csv")
    assert {row["kind"] for row in effects} == {"resid_pre", "attn_out", "mlp_out", "z"}
    assert any(float(row["effect"]) != 0 and float(row["estimate"]) != 0 for row in effects)
    assert len(rows(folder / "curve.csv")) == len(data["curve"]["sizes"])
    robust = data["robustness"]
    assert set(robust["ablations"]) == {"zero"}  # four pairs are too few for means, and for resampling at every length
    assert set(robust["stability"]) >= {"resamples", "seeds"}
    assert 0 < robust["stability"]["seeds"]["jaccard"] <= 1
    assert isinstance(robust["superfluous"], list)
    assert len(Circuit.load(folder / "circuit.json")) == data["circuit"]["n_edges"]


def test_the_report_needs_no_network(done: tuple[Path, dict[str, Any]]) -> None:
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    for tag in ('src="http', "src='http", 'href="http', "@import"):
        assert tag not in page.split("<body")[0], tag


def test_the_same_command_gives_the_same_bytes_and_readable_text(cli: Cli, done: tuple[Path, dict[str, Any]]) -> None:
    outcome = cli("discover", "ioi", *FEW, "--out", "again")
    assert outcome.code == 0, outcome.err
    for name in ("circuit.json", "edges.csv"):
        roles = json.loads((done[0] / "circuit.json").read_text())
        if name == "circuit.json":  # a glance studies no heads
            assert json.loads(Path("again", name).read_text())["edges"] == roles["edges"]
        else:
            assert Path("again", name).read_bytes() == (done[0] / name).read_bytes(), name
    for text in ("faithfulness", "random circuits", "a0.h", "->", "again/report.html"):
        assert text in outcome.out
    other = cli("discover", "ioi", *FEW, "--seed", 1, "--out", "other", "-q", "--json")
    assert other.code == 0
    assert other.err == ""
    assert Path("other", "circuit.json").read_bytes() != (done[0] / "circuit.json").read_bytes()


def test_a_report_for_a_class(cli: Cli) -> None:
    outcome = cli("discover", "ioi", *FEW, "--audience", "class", "--n-edges", 30, "--out", "class")
    assert outcome.code == 0, outcome.err
    page = Path("class", "report.html").read_text(encoding="utf-8")
    assert "data-mw-question=" in page
    assert 'class="mw-term"' in page
    assert cli("discover", "ioi", "--audience", "pupils").code == 2


def test_the_same_command_goes_on_and_another_one_is_refused_unless_forced(cli: Cli, tmp_path: Path) -> None:
    assert cli("discover", "ioi", *FEW, "--n-edges", 20).code == 0
    place = tmp_path / "reports" / "ioi"
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    again = cli("discover", "ioi", *FEW, "--n-edges", 20)
    assert again.code == 0
    assert "scoring edges" not in again.err
    refused = cli("discover", "ioi", *FEW, "--n-edges", 30)
    assert refused.code == 2
    assert "n_edges: 20 there, 30 asked for" in refused.err
    assert "--force" in refused.err
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    forced = cli("discover", "ioi", *FEW, "--n-edges", 30, "--force", "--json")
    assert forced.code == 0
    assert forced.json["circuit"]["n_requested"] == 30


def test_a_folder_of_something_else_is_never_replaced(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for more in ((), ("--force",)):
        refused = cli("discover", "ioi", *FEW, "--out", "mine", *more)
        assert refused.code == 2, refused.err
    assert left_over(tmp_path) == ["mine", "mine/letter.txt"]


def test_a_plan_is_printed_and_nothing_else_happens(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("discover", "ioi", *FEW, "--plan")
    assert outcome.code == 0, outcome.err
    for text in ("check", "scores", "forwards", "pairs to find the circuit"):
        assert text in outcome.out
    assert "minimality" not in outcome.out
    assert "minimality" in cli("discover", "ioi", "--n-pairs", 8, "--plan", "--thorough").out
    assert left_over(tmp_path) == []


def test_the_hint_keeps_the_model(cli: Cli) -> None:
    outcome = cli("discover", "induction", *FEW, "--model", "attn-only-2l", "--out", "two layers")
    assert outcome.code == 0, outcome.err
    hint = next(line for line in outcome.out.splitlines() if "other rules" in line)
    assert "--model attn-only-2l" in hint
    assert "--out 'two layers-relp'" in hint


def test_a_file_of_pairs(cli: Cli) -> None:
    write_pairs(Path("mine.jsonl"), *some_pairs())
    outcome = cli("discover", "mine.jsonl", "--rules", "gradient", "--ig-steps", 2, "--quick")
    assert outcome.code == 0, outcome.err
    assert "split drawn by prompt: 2 to find, 2 held out" in outcome.out
    assert "2 pairs to find the circuit, 2 others to test it" in outcome.out
    assert Path("reports", "mine", "report.html").is_file()


BAD = {
    "unknown task": (("discover", "ioii"), 2, "nearest: ioi"),
    "unknown rules": (("discover", "ioi", "--rules", "relpp"), 2, "nearest: relp"),
    "unknown model": (("discover", "ioi", "--model", "gpt2-6"), 3, "nearest: gpt2-6l"),
    "hub model offline": (("discover", "ioi", "--model", "openai-community/gpt2", "--offline"), 3, "offline"),
    "folder without a model": (("discover", "ioi", "--model", "./nothing"), 3, "nothing"),
    "unknown device": (("discover", "ioi", "--device", "cuda:9"), 2, "--device"),
    "nonsense for a device": (("discover", "ioi", "--device", "gpu"), 2, "--device"),
    "unknown dtype": (("discover", "ioi", "--dtype", "float12"), 2, "float32"),
    "too few pairs": (("discover", "ioi", "--n-pairs", 1), 2, "at least 4"),
    "no pairs at all": (("discover", "ioi", "--n-pairs", "many"), 2, "whole number"),
    "too many edges": (("discover", "ioi", "--n-edges", 10**6), 2, "--n-edges"),
    "size given twice": (("discover", "ioi", "--n-edges", 9, "--fraction", 0.1), 2, "not allowed"),
    "impossible share": (("discover", "ioi", "--fraction", 1.5), 2, "up to 1"),
    "no steps": (("discover", "ioi", "--ig-steps", 0), 2, "at least 1"),
    "no budget": (("discover", "ioi", "--budget", "soon"), 2, "5min"),
    "a budget for nothing": (("discover", "ioi", "--n-pairs", 4, "--budget", "0.000001s"), 2, "Give at least --budget"),
    "quick and thorough": (("discover", "ioi", "--quick", "--thorough"), 2, "not allowed"),
    "no memory": (("discover", "ioi", "--memory-budget", "little"), 2, "2GB"),
    "missing file": (("discover", "nowhere.csv"), 3, "nowhere.csv"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_before_any_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("a long computation was begun")

    for name in ("patch", "attribute", "score_edges", "study_heads", "evaluate"):
        monkeypatch.setattr(f"mechwork.discovery.work.{name}", work)
    arguments, code, message = BAD[case]
    outcome = cli(*arguments)
    assert outcome.code == code, outcome.err
    assert message in outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert left_over(tmp_path) == []


BAD_PAIRS = {
    "identical prompts": ({"corrupt": None}, "identical"),
    "an answer of several tokens": ({"correct": " antidisestablishmentarianism"}, "single token"),
    "a missing column": ({"incorrect": ""}, "incorrect"),
    "the same answer twice": ({"incorrect": None}, "differ"),
    "nothing in common": ({"corrupt": " lunch"}, "without one token in common"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs_are_refused(cli: Cli, tmp_path: Path, case: str) -> None:
    change, message = BAD_PAIRS[case]
    pairs = some_pairs()
    source = {"corrupt": "clean", "incorrect": "correct"}
    pairs[1] |= {key: pairs[1][source[key]] if value is None else value for key, value in change.items()}
    write_pairs(tmp_path / "mine.jsonl", *pairs)
    outcome = cli("discover", "mine.jsonl")
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
    assert left_over(tmp_path) == ["mine.jsonl"]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "place", fewer(["work.evaluate", "publish.write_text", "folder.write_json"], ["publish.write_text"])
)
def test_after_a_failure_the_same_command_goes_on(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(f"mechwork.discovery.{place}", fail)
        outcome = cli("discover", "ioi", *FEW, "--out", "here")
    assert outcome.code == (130 if isinstance(error, KeyboardInterrupt) else 1), outcome.err
    assert outcome.out == ""
    assert not list(tmp_path.rglob("*.part"))
    assert cli("discover", "ioi", *FEW, "--out", "here").code == 0
    assert Path("here", "report.html").is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for single processes")
def test_control_c_in_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mechwork.cli", "discover", "ioi"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a suite run in the background ignores it
    )  # fmt: skip
    assert process.stderr is not None
    assert "loading" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.endswith("mechwork: interrupted\n")
    assert "Traceback" not in err
    assert left_over(tmp_path) == []


def test_offline_reaches_libraries_that_are_already_imported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert cli("discover", "ioi", "--model", "owner/name", "--offline").code == 3
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.HF_HUB_OFFLINE is True


def test_small_models_run_on_one_thread(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    assert cli("tasks", "ioi", "-n", 1).code == 0
    assert cli("tasks", "ioi", "-n", 1, "--threads", 2).code == 0
    assert chosen == [1, 2]


def test_json_of_a_report_is_strict() -> None:
    assert json.loads(dump_json({"x": float("nan")})) == {"x": None}
