"""Hostile text through pages, terminal and JSON: it stays text.

A page with hostile text has the same tags and attributes, in the same order, as one with harmless text of that length;
nothing that is printed holds a control character; JSON comes back as it was.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mechwork as mw
from mechwork.circuits import Circuit
from mechwork.render import render_graph
from mechwork.render.report import render_report
from tests.faults.core import Tally
from tests.render import synthetic

HOSTILE = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>",
    "'\"><svg onload=a>", "javascript:alert(1)", "<!--", "-->", "]]>", "</style><style>*{}", "&lt;b&gt;", "&#60;b&#62;",
    "${alert(1)}", "{{7*7}}", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x00", "\r\nX", "\u202egnp.exe", "\u2028",
    "a\u0300" * 20, "<" * 500, "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "<b",
    "<iframe srcdoc='<script>1</script>'>", "\\u003cscript\\u003e",
)  # fmt: skip


class Shape(HTMLParser):
    """Tags and names of attributes, and what embedded JSON says."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.handlers += [value for _, value in attrs if value and value.strip().lower().startswith("javascript:")]


def shape(page: str) -> Shape:
    found = Shape()
    found.feed(page)
    found.close()
    return found


def task_with(text: str) -> Any:
    """A task in whose name, description, prompts and answers the text stands."""
    task = synthetic.task()
    texts = tuple(((text, *clean[1:]), corrupt) for clean, corrupt in task.texts)
    answers = tuple((text, wrong) for _, wrong in task.answer_texts)
    return replace(task, name=f"n {text}", description=f"d {text}", texts=texts, answer_texts=answers)


def circuit_with(text: str) -> Circuit:
    circuit = synthetic.circuit()
    node = next(iter(circuit.nodes))
    return replace(circuit, notes={node: text}, roles={node: text}, supernodes={text or "x": (node,)})


def pages(text: str) -> dict[str, str]:
    """Pages in which the text stands."""
    task, circuit = task_with(text), circuit_with(text)
    return {
        "report": render_report(task, circuit, title=f"t {text}", texts={"summary": f"s {text}"}),
        "class report": render_report(task, circuit, audience="class"),
        "graph": render_graph(circuit),
    }


def printed(text: str, what: str, tally: Tally) -> None:
    bad = [c for c in text if not (c.isprintable() or c in "\n\t")]
    tally.check(not bad, f"{what}: prints {bad[:3]!r}")


def run(tally: Tally) -> None:
    """Every text everywhere."""
    twins = [pages(text) for text in ("harmless", "<harmless>")]  # a word, and what looks like a special token
    plain = {name: [sorted(shape(twin[name]).tags) for twin in twins] for name in twins[0]}
    tally.check(not any("harmless" in tags for known in plain.values() for tags in known), "a twin became a tag")
    for text in HOSTILE if tally.scale >= 1 else tally.draw.sample(HOSTILE, tally.times(len(HOSTILE) * 2)):
        try:
            made = pages(text)
        except mw.errors.MechworkError:
            tally.check(True, f"{text!r} is refused")
            made = {}
        for name, page in made.items():
            found = shape(page)
            same = sorted(found.tags) in plain[name]
            tally.check(same, f"{name} with {text!r:.40}: {len(found.tags)} tags, not {len(plain[name][0])}")
            tally.check(not found.handlers, f"{name} with {text!r:.40}: {found.handlers[:2]}")
        task = task_with(text)
        printed(task.describe(3), f"describe with {text!r:.40}", tally)
        with tempfile.TemporaryDirectory() as place, tally.attempt(f"JSON with {text!r:.40}"):
            circuit = circuit_with(text)
            file = circuit.save(Path(place) / "it.json")
            again = Circuit.load(file)
            assert again.notes == circuit.notes
            assert again.supernodes == circuit.supernodes
            assert json.loads(json.dumps(circuit.to_json()))["notes"] == circuit.notes
        with tally.attempt(f"a table with {text!r:.40}"):
            table = io.StringIO()
            circuit_with(text).to_dataframe().to_csv(table, index=False)
            rows = list(csv.reader(io.StringIO(table.getvalue().replace("\0", ""))))
            assert all(len(row) == len(rows[0]) for row in rows if row)
