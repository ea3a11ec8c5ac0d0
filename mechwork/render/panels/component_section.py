"""A card per component: what is measured on one side, what is interpretation on the other, never mixed."""

from __future__ import annotations

from ...ablation.heads import HeadRow
from ...display import draws
from ...runs.attention import AttentionPatterns
from ...runs.components import ComponentStudy
from ..findings import Findings
from ..page.cards import Card, Fact, cards_markup, component_cards
from ..page.page import Fragment, assemble
from ..page.text import escape, number, percent, plural, signed

N_CARDS = 12
"""Rows that are shown; the others are folded."""
LOOKS = 0.15
"""Mean attention from which on a row says where the head looks."""


@draws(ComponentStudy)
def render_components(study: ComponentStudy) -> str:
    """One self-contained HTML page with a card per component."""
    known = component_cards(study)
    cards = "".join(_card(node, known[node]) for node in known)
    head = Fragment('<main class="mw-page"><h1>Components</h1>')
    return assemble(
        "Components", [head, Fragment(cards, needs=("heads",)), Fragment("</main>")], body_class="mw-standalone"
    )


def card_fragments(findings: Findings) -> list[Fragment]:
    """A row per node of the circuit (without a circuit: per node that something is known about), strongest first; each
    unfolds.
    """
    known = findings.node_facts()
    circuit = findings.circuit
    roles, notes = (circuit.roles, circuit.notes) if circuit is not None else ({}, {})
    wanted = [node for node in circuit.nodes if node in known] if circuit is not None else list(known)
    rows = {row.head: row for study in findings.studies for row in study.rows}
    wanted.sort(key=lambda node: -abs(rows[node].effect) if node in rows else 0.0)
    if not wanted or not (findings.of(ComponentStudy) or findings.of(AttentionPatterns)):
        return []
    cards = [_row(node, known[node], roles.get(node, ""), notes.get(node, ""), rows.get(node)) for node in wanted]
    where = findings.pairs_word(findings.studies[0].provenance) + "s" if findings.studies else "pairs"
    lead = (
        f"Effect: what the metric loses when the head is mean-ablated, with its standard error over {where}. A row "
        "unfolds; roles are words chosen by rule."
    )
    titles = "".join(
        f'<span class="mw-row-{kind}">{title}</span>'
        for kind, title in (("name", "component"), ("effect", "effect"), ("looks", "looks most"), ("role", "role"))
    )
    body = (
        f'<p class="mw-muted">{escape(lead)}</p><div class="mw-rows"><div class="mw-rows-head" aria-hidden="true">'
        f"{titles}</div>{''.join(cards[:N_CARDS])}</div>"
    )
    if rest := cards[N_CARDS:]:
        body += (
            f'<details class="mw-fallback"><summary>The other {escape(plural(len(rest), "component"))} of the '
            f'circuit</summary><div class="mw-rows">{"".join(rest)}</div></details>'
        )
    return [Fragment(body, needs=("heads",))]


def _row(node: str, known: list[Card], role: str, note: str, row: HeadRow | None) -> str:
    """One line per component: name, effect, where it looks most, role; all else unfolds."""
    name = escape(node)
    effect = f"{signed(row.effect)} ± {number(row.standard_error, 2)}" if row is not None else ""
    looks = max(row.attention.items(), key=lambda item: item[1], default=None) if row is not None else None
    looked = f"{looks[0]} {percent(looks[1], 0)}" if looks is not None and looks[1] >= LOOKS else ""
    spans = "".join(
        f'<span class="mw-row-{kind}">{escape(text)}</span>'
        for kind, text in (("effect", effect), ("looks", looked), ("role", role))
    )
    head = f'<summary data-mw-select="{name}"><b class="mw-row-name">{name}</b>{spans}</summary>'
    return f'<details class="mw-card" data-mw-row="{name}">{head}{_sides(node, known, role, note)}</details>'


def _sides(node: str, known: list[Card], role: str, note: str) -> str:
    name = escape(node)
    said: list[Card] = [card for card in known if card.certainty == "interpretation"]
    if role:
        said.append(Fact("Role", role, "interpretation"))
    if note:
        said.append(Fact("Note", note, "interpretation"))
    found = [card for card in known if card.certainty != "interpretation"]
    words = cards_markup(said) or '<p class="mw-muted">nothing yet</p>'
    return (
        f'<div class="mw-card-sides"><div role="group" aria-label="{name}: measured and '
        f'estimated">{cards_markup(found)}</div>'
        f'<div role="group" aria-label="{name}: interpretation"><p '
        f'class="mw-side-title">Interpretation</p>{words}</div></div>'
    )


def _card(node: str, known: list[Card]) -> str:
    name = escape(node)
    head = f'<h4><button type="button" class="mw-select" data-mw-select="{name}">{name}</button></h4>'
    return (
        f'<article class="mw-card" data-mw-row="{name}" '
        f'aria-label="{name}">{head}{_sides(node, known, "", "")}</article>'
    )
