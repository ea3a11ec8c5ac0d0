"""The report: everything found on a task as one self-contained HTML file that opens offline in any browser.

    report("ioi.html", task, exact, approx, scores, circuit, curve)

The file is written beside its final place and moved there when it is complete, so a failure leaves nothing
half-written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, UnknownNameError
from ..files import write_text
from ..tasks.task import Task
from .findings import collect
from .page.page import Fragment, assemble, embed_json
from .page.text import escape
from .sections import SECTIONS, Section, build_sections, machine_readable
from .teaching import QUESTIONS, definitions, for_class

AUDIENCES = ("research", "class")


def report(
    path: str | Path,
    task: Task,
    *results: object,
    force: bool = False,
    title: str | None = None,
    texts: Mapping[str, str] | None = None,
    audience: str = "research",
    record: Mapping[str, Any] | None = None,
    pending: Sequence[str] = (),
) -> Path:
    """Write one offline HTML file about `results` on `task`. Returns its path.

    `results` are any of effects (measured or estimated), edge scores, circuits, faithfulness curves, evaluations,
    attention patterns, head and component studies, stability, completeness and minimality, in any order; other modules
    add their own with `reports`. `texts` adds your own words to a section, by its name: summary, task, localisation,
    graph, evaluation, robustness, heads, agreement, limits, provenance. For the `audience` ``"class"`` a question
    stands before each result, words are explained, and the summary comes after the results. `record` is kept in the
    page as it is, for programs (``mechwork discover`` puts hashes of its files there). `pending` names what is still to
    come (stages of a discovery under way): the first screen says so, and a page without any results yet is allowed.

    Raises:
        InputError: the file exists (pass ``force=True``), its folder is missing or cannot be written to, or `results`
            holds something that a report cannot show.
        UnknownNameError: `texts` names a section that does not exist, or there is no such `audience`.
    """
    path = Path(path)
    _check_target(path, force=force)
    page = render_report(task, *results, title=title, texts=texts, audience=audience, record=record, pending=pending)
    write_text(path, page)
    return path


def render_report(
    task: Task,
    *results: object,
    title: str | None = None,
    texts: Mapping[str, str] | None = None,
    audience: str = "research",
    record: Mapping[str, Any] | None = None,
    pending: Sequence[str] = (),
) -> str:
    """The report as a string of HTML; see `report`."""
    texts = dict(texts or {})
    for name in texts:
        if name not in SECTIONS:
            raise UnknownNameError("section of a report", name, SECTIONS)
    if audience not in AUDIENCES:
        raise UnknownNameError("audience", audience, AUDIENCES)
    findings = collect(task, results, empty=bool(pending))
    what = f"The circuit for {task.name}" if findings.circuit is not None else task.name
    heading = title or f"{what} in {findings.model_name}"
    taught = audience == "class"
    sections = build_sections(findings, "" if taught else heading, pending)
    # A text for a section without results still deserves its place.
    present = {section.name for section in sections}
    sections += [Section(name, SECTIONS[name][0], ()) for name in texts if name not in present]
    sections.sort(key=lambda section: list(SECTIONS).index(section.name))
    terms = definitions(spans=bool(task.pairs.spans) or "word-spans" in sections[0].fragments[0].body)
    if taught:
        sections = for_class(sections, terms)
    fragments = [Fragment(f'<header class="mw-report-head"><h1>{escape(heading)}</h1></header>')] if taught else []
    body = Fragment(f'{_contents(sections)}<div class="mw-report-body">')
    fragments.append(Fragment("<main>"))
    for k, section in enumerate(sections):
        question = QUESTIONS.get(section.name, "") if taught else ""
        first = section.name == "summary" and not taught
        if k == (0 if taught else 1):
            fragments.append(body)
        fragments += [_open(section, texts.get(section.name, ""), question, first=first), *section.fragments]
        fragments.append(Fragment("</div></section>"))
    if not taught:
        fragments.append(Fragment(f'<details class="mw-fallback"><summary>Words used here</summary>{terms}</details>'))
    kept = machine_readable(findings, record or {})
    fragments.append(Fragment(f"</div></div></main>{embed_json(kept, name='mechwork-report')}", needs=("report",)))
    return assemble(heading, fragments, body_class="mw-report")


def _contents(sections: list[Section]) -> str:
    links = "".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in sections)
    selected = '<p class="mw-selected" data-mw-selected role="status"></p>'
    return (
        f'<div class="mw-report-rest"><nav class="mw-contents" aria-label="Contents"><ol>{links}</ol>{selected}</nav>'
    )


def _open(section: Section, text: str, question: str, *, first: bool = False) -> Fragment:
    paragraphs = "".join(f'<p class="mw-own">{escape(part)}</p>' for part in text.split("\n\n") if part.strip())
    if first:
        return Fragment(f'<section id="summary" aria-label="Summary" class="mw-first-screen"><div>{paragraphs}')
    covered = f' data-mw-question="{escape(question)}"' if question else ""
    return Fragment(
        f'<section id="{section.name}" aria-labelledby="h-{section.name}"><h2 '
        f'id="h-{section.name}">{escape(section.title)}</h2>{paragraphs}'
        f"<div{covered}>"
    )


def _check_target(path: Path, *, force: bool) -> None:
    """Refuses a target that cannot be written, before anything is drawn."""
    folder = path.parent
    if path.is_dir():
        raise InputError(f"a report is a file; {path} is a folder. Name a file in it, e.g. {path / 'report.html'}")
    if not folder.is_dir():
        raise InputError(f"the report's folder {folder} does not exist. Make it first, or choose another path.")
    if path.exists() and not force:
        raise InputError(f"{path} exists. Pass force=True to replace it, or choose another path.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"the report's folder {folder} cannot be written to. Choose another path.")
