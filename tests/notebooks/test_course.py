"""The package beside the notebooks: the first cell's messages, and exercises that judge anything without
falling over.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from notebooks.course import EXERCISES, check, hint, passed, predict, solution, start
from notebooks.course.exercise import Exercise

NO_NUMBER = object()


def test_begin_says_that_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    start.begin("1")
    start.begin("1")
    said = capsys.readouterr().out
    assert said.count("bundled models found") == 2
    assert "No network" in said


def test_a_machine_without_a_browser_is_fine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures are shown by the browser that Jupyter runs in; nothing in a notebook looks for another."""
    monkeypatch.setenv("PATH", str(tmp_path))
    start.begin("1")
    assert "no other browser" in capsys.readouterr().out
    folder = Path(start.__file__).resolve().parents[1]
    for file in (*folder.glob("*.py"), *folder.glob("course/n*.py")):
        assert not {"playwright", "chromium", "webbrowser", "selenium"} & set(file.read_text(encoding="utf-8").split())


def test_an_older_python_is_told_to_change_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start.sys, "version_info", (3, 9, 7))
    with pytest.raises(start.NotReadyError, match=r"needs Python 3.11 or newer; this kernel runs 3.9.7") as caught:
        start.begin("1")
    assert "Change Kernel" in str(caught.value)
    assert "pip install" in str(caught.value)


def test_no_mechwork_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(start.NotReadyError, match="mechwork is not installed") as caught:
        start.begin("1")
    assert sys.executable in str(caught.value)
    assert caught.value._render_traceback_() == [str(caught.value)]


@pytest.mark.parametrize("hosted", ["COLAB_RELEASE_TAG", "BINDER_SERVICE_HOST"])
@pytest.mark.parametrize("there", ["wheel", "repository", "nothing"])
def test_a_hosted_machine_installs_offline_first(
    hosted: str, there: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel beside the notebook, else the repository above it; with neither, the usual message."""
    ran: list[list[str]] = []
    monkeypatch.setenv(hosted, "1")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    if there != "nothing":
        (tmp_path / "pyproject.toml").touch()
    if there == "wheel":
        Path("mechwork-0.1.0-py3-none-any.whl").touch()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if ran else None)
    monkeypatch.setattr(start.subprocess, "check_call", ran.append)
    if there == "nothing":
        with pytest.raises(start.NotReadyError, match="not installed"):
            start.begin("1")
        assert not ran
        return
    start.begin("1")
    wheel = ["mechwork-0.1.0-py3-none-any.whl"]
    asked = wheel if there == "wheel" else ["-c", str(Path("..", "constraints.txt")), ".."]
    assert ran == [[sys.executable, "-m", "pip", "install", "-q", *asked]]


@pytest.mark.parametrize("hosted", ["COLAB_RELEASE_TAG", "BINDER_SERVICE_HOST", ""])
def test_nothing_is_installed_where_mechwork_is_there(hosted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hosted or "NOT_HOSTED", "1")
    monkeypatch.setattr(start.subprocess, "check_call", lambda command: pytest.fail("nothing is to be installed"))
    start.begin("1")


def test_a_machine_of_ones_own_is_never_installed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mechwork-0.1.0-py3-none-any.whl").touch()
    monkeypatch.chdir(tmp_path)
    for variable in ("COLAB_RELEASE_TAG", "BINDER_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(start.subprocess, "check_call", lambda command: pytest.fail("nothing is to be installed"))
    with pytest.raises(start.NotReadyError, match="not installed"):
        start.begin("1")


def test_another_mechwork_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(__file__="/elsewhere/mechwork.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: other)
    monkeypatch.setitem(sys.modules, "mechwork", other)
    with pytest.raises(start.NotReadyError, match="elsewhere"):
        start.begin("1")


def test_missing_models_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechwork.bundled.model_names", list)
    with pytest.raises(start.NotReadyError, match="bundled models are not part"):
        start.begin("1")


def test_a_name_that_no_cell_has_made_says_which_cells_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[object] = []
    shell = SimpleNamespace(showtraceback=lambda what, tb_offset: shown.append(what))
    start._say_above(shell, NameError, NameError("name 'task' is not defined"), None)
    assert "name 'task' is not defined Run the cells above first" in capsys.readouterr().out
    assert len(shown) == 1


@pytest.mark.parametrize("file", ["__init__.py", "start.py"])
def test_the_first_cell_can_be_read_by_an_older_python(file: str) -> None:
    """It has to run there, in order to say that the Python is too old."""
    text = (Path(start.__file__).parent / file).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 7))
    assert "f'" not in text
    assert 'f"' not in text.replace('if"', "")


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_no_answer_is_said_to_be_no_answer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for answer in (..., None):
        check(name, answer)
        assert "not answered yet" in capsys.readouterr().out
        assert not passed(name)


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_a_strange_answer_gets_a_message_and_no_traceback(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, NO_NUMBER)
    assert "not yet" in capsys.readouterr().out
    hint(name)
    solution(name)
    assert "one solution" in capsys.readouterr().out


def test_a_prediction_is_taken_down_and_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    for nothing in (..., None, " "):
        predict("1", nothing)
        assert "not written down yet" in capsys.readouterr().out
    predict("1", "at S2, then at END")
    assert "written down: at S2, then at END" in capsys.readouterr().out
    assert not passed("1")


def test_an_unknown_exercise_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"1\.1"):
        check("9.9", 1)


def test_an_exercise_needs_all_its_parts() -> None:
    with pytest.raises(ValueError, match="needs a hint"):
        Exercise("9.1", lambda answer: None, hint=" ", solution="x = 1", why="so")


INSTALLED = """
import sys
sys.modules["mechwork"] = None  # not there
import course
assert not hasattr(course, "check")
course.start.subprocess.check_call = lambda command: sys.modules.pop("mechwork")
course.begin("1")
assert callable(course.check) and "1.1" in course.EXERCISES
"""


def test_after_an_installation_the_exercises_are_there() -> None:
    """In a Python that had no mechwork when the course was imported, as on a hosted machine."""
    hosted = os.environ | {"COLAB_RELEASE_TAG": "1", "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", INSTALLED], cwd="notebooks", env=hosted, check=True)
