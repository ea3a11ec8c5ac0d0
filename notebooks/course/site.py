"""Pages that the site makes while it is built: the lessons, from the notebooks' sources, and the reference, from
docstrings.

A hook of mkdocs (see .mkdocs.yml): ``mkdocs build --strict -f .mkdocs.yml``. In the navigation, LESSONS, TOPICS and
REFERENCE stand for all lessons, all pages at the top of the documentation, and all pages of the reference. Where the
environment variable MECHWORK_REPOSITORY names the repository on GitHub, ``owner/name`` or ``owner/name@branch``, every
lesson has buttons that open it on Binder and Colab.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "models", "tasks", "execute", "runs", "interventions", "directions", "relevance", "patching", "edits", "ablation",
    "lenses", "circuits",
    "circuits.ground_truth", "features", "comparison", "discovery", "render", "live",
)  # fmt: skip
"""Subpackages whose public names are the reference, in the order in which data flows."""


def _pairing() -> ModuleType:
    """The module beside this one; mkdocs loads hooks by path, outside any package."""
    spec = importlib.util.spec_from_file_location("_course_pairing", Path(__file__).with_name("pairing.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch_buttons(notebook: str, repository: str) -> str:
    """Links that open a lesson on a hosted machine; raises `ValueError` for what names no repository."""
    place, _, branch = repository.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place) or not re.fullmatch(r"[\w./-]*", branch):
        raise ValueError(f"MECHWORK_REPOSITORY is owner/name or owner/name@branch on GitHub; got {repository!r}")
    branch, name = branch or "main", place.partition("/")[2]
    binder = f"https://mybinder.org/v2/gh/{place}/{quote(branch, safe='')}?urlpath=lab/tree/notebooks/{notebook}"
    colab = f"https://colab.research.google.com/github/{place}/blob/{branch}/notebooks/{notebook}"
    return (
        f"[Open on Binder]({binder}) [Open on Colab]({colab})\n\n"
        f"*On Colab, run this in a new first cell, which brings what stands beside the notebook:* "
        f"`!git clone -q -b {branch} https://github.com/{place}` *and* `%cd {name}/notebooks`"
    )


def lessons(repository: str | None = None) -> dict[str, str]:
    """Path in the site -> Markdown of every notebook."""
    repository = os.environ.get("MECHWORK_REPOSITORY", "") if repository is None else repository
    pairing = _pairing()
    pages = {}
    for source in pairing.sources():
        cells = pairing.pair(source)["cells"]
        parts = [_cell(cell) for cell in cells]
        note = (
            f"*This is the source of `notebooks/{source.stem}.ipynb`. Open it in Jupyter to run it and do the "
            "exercises.*"
        )
        launch = [launch_buttons(f"{source.stem}.ipynb", repository)] if repository else []
        pages[f"lessons/{source.stem}.md"] = "\n\n".join([parts[0], note, *launch, *parts[1:]])
    return pages


def _cell(cell: dict[str, Any]) -> str:
    """A cell in Markdown: prose, or code and what it printed and drew when the outputs were made."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    parts = [f"```python\n{text}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            words = html.escape(" ".join("".join(data.get("text/plain", "")).split())[:300])
            parts.append(f'<img alt="{words}" src="data:image/png;base64,{data["image/png"].strip()}">')
        else:
            printed = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
            parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts)


def public_names(package: str) -> list[str]:
    """What a subpackage exports on purpose: ``from .x import y as y``, functions and classes of its own."""
    module = importlib.import_module(f"mechwork.{package}")
    lazy = {
        name: getattr(importlib.import_module(f"mechwork.{package}.{home}"), name)
        for name, home in getattr(module, "_HOMES", {}).items()
    }
    return [
        name
        for name, value in {**vars(module), **lazy}.items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and str(getattr(value, "__module__", "")).startswith("mechwork.")
        and hasattr(value, "__qualname__")
    ]


def reference() -> dict[str, str]:
    """Path in the site -> Markdown of every subpackage's page, one entry per public name."""
    pages = {}
    for package in PACKAGES:
        try:
            names = public_names(package)
        except ModuleNotFoundError:
            continue
        entries = [f"::: mechwork.{package}.{name}" for name in names]
        summary = (importlib.import_module(f"mechwork.{package}").__doc__ or "").partition("\n")[0]
        pages[f"reference/{package}.md"] = "\n\n".join([f"# mechwork.{package}", summary, *entries])
    pages["reference/errors.md"] = "# mechwork.errors\n\n::: mechwork.errors"
    pages["reference/sites.md"] = "# mechwork.sites\n\n::: mechwork.sites"
    return pages


def on_config(config: Any) -> Any:
    """Fills in the navigation."""
    sys.path.insert(0, str(ROOT))
    docs = Path(config["docs_dir"])
    topics = sorted(page.name for page in docs.glob("*.md") if page.name != "index.md")
    stands_for = {"LESSONS": list(lessons()), "TOPICS": topics, "REFERENCE": list(reference())}

    def fill(entries: list[Any]) -> list[Any]:
        filled: list[Any] = []
        for entry in entries:
            if isinstance(entry, dict):
                filled.append({title: fill(part) if isinstance(part, list) else part for title, part in entry.items()})
            else:
                filled += stands_for.get(entry, [entry])
        return filled

    config["nav"] = fill(config["nav"])
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made."""
    from mkdocs.structure.files import File

    for path, text in {**lessons(), **reference()}.items():
        files.append(File.generated(config, path, content=text))
    return files
