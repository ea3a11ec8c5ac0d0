"""The first screen of a report: what the model did on one prompt, the strongest part of the circuit, three numbers, the
caveat.

At most 90 words. Nothing stands before the picture. A part whose results are missing is left out; what is still to come
is said when the caller names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..circuits.testing.curves import CircuitEvaluation
from .example import answer_line, find_example, prompt_line
from .findings import Findings
from .graph.payload import GraphOptions, graph_payload
from .graph.skeleton import interpolate
from .graph.static import PAGE, draw_graph
from .page.page import Fragment
from .page.text import count, escape, fixed, percent, plural, shorten, words
from .words import SPAN_WORDS, main_caveat, term


def first_screen(findings: Findings, heading: str, pending: Sequence[str] = ()) -> Fragment:
    """The section's content; `heading` is the title of the page (empty: the page has it elsewhere)."""
    example = find_example(findings)
    title = f"<h1>{escape(heading)}</h1>" if heading else ""
    shade = f'<p class="mw-muted">Shade: {term("effect", example.said)}.</p>' if example.said else ""
    tiles = "".join(_tile(*tile) for tile in three_numbers(findings))
    caveat = main_caveat(findings)
    waiting = (
        f'<p class="mw-pending" data-mw-pending>Still to come: {escape(", ".join(map(words, pending)))}.</p>'
        if pending
        else ""
    )
    said = (
        f'{title}<p class="mw-example" data-mw-prompt>{prompt_line(example)}</p><p class="mw-answer" '
        f"data-mw-answer>{answer_line(example)}</p>{shade}"
        + (f'<dl class="mw-tiles">{tiles}</dl>' if tiles else "")
        + (f'<p class="mw-caveat" data-mw-caveat>{escape(caveat)}</p>' if caveat else "")
        + waiting
    )
    return Fragment(f'<div class="mw-first">{_picture(findings)}<div class="mw-first-said">{said}</div></div>')


def three_numbers(findings: Findings) -> list[tuple[str, str, str, str]]:
    """(name for programs, number, term and words after it): size, held-out faithfulness with its interval, random
    control.
    """
    circuit = findings.circuit
    if circuit is None:
        return []
    size = f"of {term('edge', 'edges')} ({count(circuit.n_edges)} of {count(circuit.space.n_edges)})"
    found = [("size", percent(circuit.fraction), size, "")]
    evaluation = findings.evaluation_of(circuit)
    if evaluation is None:
        return found
    low, high = evaluation.interval()
    held = "held-out " if findings.pairs_word(evaluation.provenance) == "test pair" else ""
    kept = f"{held}{term('faithfulness', 'faithfulness')} ({fixed(low, 2)} to {fixed(high, 2)})"
    found.append(("faithfulness", fixed(evaluation.faithfulness, 2), kept, ""))
    if evaluation.random:
        found.append(("random", fixed(_mean(evaluation), 2), "random circuits of this size", ""))
    return found


def _mean(evaluation: CircuitEvaluation) -> float:
    return sum(evaluation.random) / len(evaluation.random)


def _tile(name: str, value: str, said: str, detail: str) -> str:
    return (
        '<div class="mw-tile" '
        f'data-mw-number="{name}"><dt><b>{escape(value)}</b></dt><dd>{said}{escape(detail)}</dd></div>'
    )


def _picture(findings: Findings) -> str:
    """The strongest connected edges as SVG in the page itself: sharp, and in the page's colours."""
    circuit = findings.circuit
    if circuit is None or not circuit.n_edges:
        return ""
    payload = graph_payload(circuit, GraphOptions(curve=findings.curve_of(circuit)))
    n = payload["shown"]
    shapes, width, height = draw_graph(payload, n, PAGE)
    part = interpolate(payload["faithfulness"], n)
    alone = f"; about {fixed(part, 2)} faithful" if part is not None and n < circuit.n_edges else ""
    roles = _roles(payload, n)
    label = f"Circuit for {findings.task.name}: its {plural(n, 'strongest connected edge')}"
    return (
        f'<figure class="mw-first-graph"><a href="#graph">'
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{1.25 * width:.0f}" role="img" '
        f'aria-label="{escape(label)}; the interactive graph is below" font-family="inherit">{shapes}</svg></a>'
        f"<figcaption>{roles}{count(n)} of "
        f"{escape(plural(circuit.n_edges, 'edge'))}{escape(alone)}. {escape(_reading(payload, n))}</figcaption>"
        "</figure>"
    )


def _reading(payload: dict, n: int) -> str:
    """How to read a node's name, by one that is drawn."""
    drawn = dict.fromkeys([*payload["edges"]["source"][:n], *payload["edges"]["target"][:n]])
    names = [payload["nodes"]["name"][i] for i in drawn]
    found = next((parts for name in names if (parts := re.fullmatch(r"a(\d+)\.h(\d+)", name))), None)
    said = "" if found is None else f"{found[0]}: head {found[2]} of layer {found[1]}."
    shared = next((name for name in names if ".kv" in name), "")
    return f"{said} {shared}: keys and values of several heads." if shared else said


def _roles(payload: dict, n: int) -> str:
    drawn = {*payload["edges"]["source"][:n], *payload["edges"]["target"][:n]}
    shown = {payload["nodes"]["role"][i] for i in drawn}
    keys = [
        f'<span class="mw-role-key mw-role-{k}">{_spelled(shorten(role, 48))}</span>'
        for k, role in enumerate(payload["roles"][:8])
        if role in shown
    ]
    return "".join(keys)


def _spelled(role: str) -> str:
    """A role, with names of groups of words (``S2+``) linked to what they stand for."""
    link = f'<a class="mw-term" href="#word-spans" title="{escape(SPAN_WORDS)}">\\1</a>'
    return re.sub(r"\b((?:IO|S1|S2)\+?|END)", link, escape(role))
