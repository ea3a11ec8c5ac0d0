"""The site: its reference has every public name, every function has an example that runs, and it builds without a
warning.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mechwork
from notebooks.course.pairing import sources
from notebooks.course.site import PACKAGES, launch_buttons, lessons, public_names, reference

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_covers_every_subpackage() -> None:
    folders = {module.name for module in pkgutil.iter_modules(mechwork.__path__) if module.ispkg}
    assert folders - {"cli", "zoo"} == {package for package in PACKAGES if "." not in package}


def test_the_reference_has_every_public_name() -> None:
    pages = reference()
    for package in PACKAGES:
        names = public_names(package)
        assert names
        for name in names:
            assert f"::: mechwork.{package}.{name}\n" in pages[f"reference/{package}.md"] + "\n"
    listed = {name for package in PACKAGES for name in public_names(package)}
    top = {name for name in vars(mechwork) if not name.startswith("_") and inspect.isclass(getattr(mechwork, name))}
    assert top - {"Site"} <= listed


@pytest.mark.parametrize("package", PACKAGES)
def test_every_function_is_called_in_code_that_runs(package: str) -> None:
    """On a page, in a notebook or in the README: all of their code is run by tests."""
    pages = [*(ROOT / "notebooks" / "docs").rglob("*.md"), ROOT / "README.md"]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    code = "\n".join([*blocks, *(source.read_text(encoding="utf-8") for source in sources())])
    used = set(re.findall(r"\w+", code))
    module = importlib.import_module(f"mechwork.{package}")
    functions = {name for name in public_names(package) if inspect.isfunction(getattr(module, name))}
    by_results = {
        "reports",
        "render_leaderboard",
        "render_check",
        "render_discovery",
        "render_review",
        "power_figure",
        "render_mechanisms",
        "render_power",
        "render_stability_card",
        "stability_card_figure",
    }  # called by results' show() and by what registers a drawing
    assert functions - used - by_results == set()


def test_there_is_a_page_per_notebook() -> None:
    assert len(lessons()) == len(sources())
    assert all("Predict first" in text for text in lessons().values())


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_for_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for needed in ("mkdocs", "mkdocstrings", "material"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip('the builder of the site is not installed: pip install ".[docs]"')
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".mkdocs.yml", "-d", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    for package in PACKAGES:
        page = (site / "reference" / f"{package}.html").read_text(encoding="utf-8")
        for name in public_names(package):
            assert f"mechwork.{package}.{name}" in page, name
    tab = request.getfixturevalue("open_page")("<p></p>", wait="")
    for path in ("index.html", "reference/patching.html", "lessons/04_attribution_patching.html"):
        tab.page.goto((site / path).as_uri())
        tab.settle()
        tab.picture(f"site-{Path(path).stem}")
    tab.page.keyboard.press("f")  # the search, also in a site that is opened from disk
    tab.page.keyboard.type("faithfulness")
    tab.page.wait_for_selector(".md-search-result__item")
    assert "reference/circuits.html" in (tab.page.locator(".md-search-result__link").first.get_attribute("href") or "")
    found = re.findall(r'(?:src|href)="(https?://[^"]+)"', (site / "index.html").read_text(encoding="utf-8"))
    assert all("squidfunk" in link or "github.com" in link for link in found), found


def test_lessons_open_on_hosted_machines_where_the_repository_is_named() -> None:
    assert not any("mybinder" in page for page in lessons("").values())
    page = lessons("someone/mechwork@v1.0")["lessons/01_first_circuit.md"]
    assert "https://mybinder.org/v2/gh/someone/mechwork/v1.0?urlpath=lab/tree/notebooks/01_first_circuit.ipynb" in page
    assert (
        "https://colab.research.google.com/github/someone/mechwork/blob/v1.0/notebooks/01_first_circuit.ipynb" in page
    )
    assert "git clone -q -b v1.0 https://github.com/someone/mechwork" in page
    assert "blob/main/notebooks" in launch_buttons("x.ipynb", "someone/mechwork")
    for wrong in ("mechwork", "https://example.org/a/b", "a/b@c)d"):
        with pytest.raises(ValueError, match="owner/name"):
            launch_buttons("x.ipynb", wrong)
