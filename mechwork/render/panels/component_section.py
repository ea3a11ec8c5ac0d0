"""A card per component: what is measured on one side, what is interpretation on the other, never mixed."""

from __future__ import annotations

from ...display import draws
from ...runs.components import ComponentStudy
from ..findings import Findings
from ..page.cards import Card, Fact, cards_markup, component_cards
from ..page.page import Fragment, assemble
from ..page.text import escape, plural

N_CARDS = 12
"""Cards that stand open; the others are folded."""


@draws(ComponentStudy)
def render_components(study: ComponentStudy) -> str:
    """One self-contained HTML page with a card per component."""
    known = component_cards(study)
    cards = "".join(_card(node, known[node], "", "") for node in known)
    head = Fragment('<main class="mw-page"><h1>Components</h1>')
    return assemble(
        "Components", [head, Fragment(cards, needs=("heads",)), Fragment("</main>")], body_class="mw-standalone"
    )


def card_fragments(findings: Findings) -> list[Fragment]:
    """Cards of the circuit's nodes (without a circuit: of every node that something is known about), strongest first."""
    known = findings.node_facts()
    circuit = findings.circuit
    roles, notes = (circuit.roles, circuit.notes) if circuit is not None else ({}, {})
    wanted = [node for node in circuit.nodes if node in known] if circuit is not None else list(known)
    effect = {row.head: abs(row.effect) for study in findings.studies for row in study.rows}
    wanted.sort(key=lambda node: -effect.get(node, 0.0))
    if not wanted or not (findings.components or findings.patterns):
        return []
    cards = [_card(node, known[node], roles.get(node, ""), notes.get(node, "")) for node in wanted]
    body = f"<h3>One by one</h3><p>Left, what was measured or estimated; right, what people or rules make of it.</p>{''.join(cards[:N_CARDS])}"
    if rest := cards[N_CARDS:]:
        body += f'<details class="mw-fallback"><summary>The other {escape(plural(len(rest), "component"))} of the circuit</summary>{"".join(rest)}</details>'
    return [Fragment(body, needs=("heads",))]


def _card(node: str, known: list[Card], role: str, note: str) -> str:
    name = escape(node)
    said: list[Card] = [card for card in known if card.certainty == "interpretation"]
    if role:
        said.append(Fact("Role", role, "interpretation"))
    if note:
        said.append(Fact("Note", note, "interpretation"))
    found = [card for card in known if card.certainty != "interpretation"]
    words = cards_markup(said) or '<p class="mw-muted">nothing yet</p>'
    return (
        f'<article class="mw-card" data-mw-row="{name}" aria-label="{name}"><h4><button type="button" class="mw-select" data-mw-select="{name}">{name}</button></h4>'
        f'<div class="mw-card-sides"><div role="group" aria-label="{name}: measured and estimated">{cards_markup(found)}</div>'
        f'<div role="group" aria-label="{name}: interpretation"><h5>Interpretation</h5>{words}</div></div></article>'
    )
