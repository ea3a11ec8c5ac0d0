"""Relevance of tokens: the prompt coloured by circuitsvis, blue raises the metric and vermillion lowers it, and a
table.
"""

from __future__ import annotations

from ...display import draws
from ...relevance.tokens import TokenRelevance
from ..page.page import Fragment, assemble, embed_json
from ..page.table import Column, table
from ..page.text import escape, shorten, show_token, signed

BIASES = "biases and the rest"
LONGEST = 40
"""Longer tokens are cut in the coloured prompt."""


@draws(TokenRelevance)
def render_tokens(relevance: TokenRelevance) -> str:
    """One self-contained HTML page with the relevance of every token of a prompt."""
    title = f"Token relevance: {relevance.metric_name}"
    head = Fragment(f'<main class="mw-page"><h1>{escape(title)}</h1>')
    return assemble(title, [head, tokens_fragment(relevance), Fragment("</main>")], body_class="mw-standalone")


def tokens_fragment(relevance: TokenRelevance) -> Fragment:
    """The coloured prompt and its table, as part of a page."""
    values = relevance.values.tolist()
    data = {
        # circuitsvis puts these into the page as markup.
        "tokens": [escape(shorten(token.replace("\n", "↵"), LONGEST)) for token in relevance.tokens],
        "values": [float(f"{value:.4g}") for value in values],
        "extent": max(map(abs, values), default=0.0) or 1.0,
    }
    says = (
        f"{relevance.metric_name} is {signed(relevance.value)}. Each token's relevance under {relevance.rules} is its "
        "share, in the same "
        f"units: blue raises it, vermillion lowers it. Tokens and the last row add up to it."
    )
    columns = [
        Column("position", [*map(str, range(len(values))), ""]),
        Column("token", [*map(show_token, relevance.tokens), BIASES]),
        Column(
            "relevance",
            [*map(signed, values), signed(relevance.remainder)],
            numeric=True,
            signs=[*values, relevance.remainder],
        ),
    ]
    body = (
        f'<div class="mw-tokens" data-mw-tokens>{embed_json(data)}<p class="mw-muted">{escape(says)}</p>'
        '<div class="mw-paper" role="img" aria-label="The prompt with every token coloured by its relevance; the '
        'table below has the numbers"></div></div>'
        f"{table(columns, caption='Relevance of each token')}"
    )
    return Fragment(body, needs=("tokens",))
