"""The public list of names is what this file says; adding or removing one is a decision."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mechwork

PUBLIC = {
    "AblationSpec",
    "AttentionPatterns",
    "Circuit",
    "CircuitEvaluation",
    "Composite",
    "Direction",
    "Discovery",
    "EdgeScores",
    "EdgeSpace",
    "Effects",
    "FaithfulnessCurve",
    "HeadStudy",
    "LensTable",
    "LogitAttribution",
    "PromptPairs",
    "Site",
    "Task",
    "TokenRelevance",
    "TunedLens",
    "ablate",
    "attribute",
    "attribute_logits",
    "attribute_tokens",
    "check_conservation",
    "discover",
    "errors",
    "evaluate",
    "executor",
    "explain",
    "explore",
    "figure",
    "find_composite",
    "fit_direction",
    "ground_truth",
    "load_circuit",
    "load_discovery",
    "load_lens",
    "load_model",
    "metrics",
    "patch",
    "read_lens",
    "record_attention",
    "record_run",
    "referee",
    "report",
    "save_model",
    "score_edges",
    "study_heads",
    "steered_pairs",
    "study_steering",
    "tasks",
    "train_lens",
}


def declared() -> dict[str, str]:
    """Name -> the name it is imported as, from every import in `mechwork/__init__.py` that is part of the list."""
    tree = ast.parse(Path(mechwork.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return {alias.name: alias.asname or "" for node in imports for alias in node.names}


def test_the_file_declares_the_list_explicitly() -> None:
    assert declared() == {name: name for name in PUBLIC}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_can_be_used_and_is_documented(name: str) -> None:
    assert getattr(mechwork, name).__doc__


def test_python_sees_the_same_list() -> None:
    names = {name for name in dir(mechwork) if not name.startswith("_")}
    modules = {name for name in names if isinstance(getattr(mechwork, name), ModuleType)} - PUBLIC
    assert names - modules == PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_modle"):
        getattr(mechwork, "load_modle")  # noqa: B009


def test_importing_does_nothing() -> None:
    """No print, no download; plotly and circuitsvis only when something is drawn, transformers when a model is
    loaded.
    """
    heavy = {"plotly", "circuitsvis", "transformers", "transformer_lens", "pandas"}
    heavy |= {"torch", "numpy", "mechwork.render"}
    _in_fresh_process(f"import sys, mechwork; print({heavy} & set(sys.modules))")
    heavy -= {"torch", "numpy", "mechwork.render"}
    _in_fresh_process(f"import sys, mechwork as mw; mw.load_model; mw.report; print({heavy} & set(sys.modules))")


def test_python_finds_every_name_where_type_checkers_do() -> None:
    tree = ast.parse(Path(mechwork.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level and node.module]
    assert {alias.name: node.module for node in imports for alias in node.names} == mechwork._HOME_OF


def test_folders_are_attributes_and_results_are_drawn_without_importing_the_drawings() -> None:
    assert mechwork.circuits.score_nodes.__module__.startswith("mechwork.circuits")
    _in_fresh_process(
        "import sys; from mechwork import display; from mechwork.errors import MechworkError\n"
        "try: display.page(3)\nexcept MechworkError as error: assert 'Effects' in str(error)\nprint(set())"
    )


def test_help_needs_no_torch_and_half_a_second() -> None:
    """2.9 s of processor time before folders were imported on demand; 0.2 s after."""
    _in_fresh_process(
        "import contextlib, io, sys, time; from mechwork.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert main(['--help']) == main(['ablate', '--help']) == main(['--version']) == 0\n"
        "assert time.process_time() < 0.5, time.process_time()\nprint({'torch', 'numpy'} & set(sys.modules))"
    )


def _in_fresh_process(script: str) -> None:
    """Runs a script that must print ``set()`` and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(mechwork.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
