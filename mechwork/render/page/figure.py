"""Plotly figures on a page: built in Python, drawn by plotly's own script, coloured by the page.

Figures carry their data and layout as JSON; `assets/figures.js` draws them and gives them the page's colours, light or
dark. Nothing here touches plotly's templates or default renderer. Text from prompts goes through `plotly_text`, since
plotly reads a small markup language.
"""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

from .page import Fragment, assemble, embed_json
from .text import escape, show_token

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
PAPER = 700
"""Pixels that fit the width of a printed page; wider figures are scaled down on paper."""
POSITIVE, NEGATIVE, NEUTRAL, INK, MUTED = "#0072B2", "#D55E00", "#6e7781", "#1b1f24", "#57606a"


def plotly_text(text: str, limit: int = 24) -> str:
    """`text` for a title, tick or hover label: one line, no markup, never a template."""
    return html.escape(show_token(text, limit), quote=False).replace("%{", "%\u200a{").replace("$", "\uff04")


def titled(figure: Figure, title: str, subtitle: str, *, width: int, height: int) -> Figure:
    """Gives a figure its title, size and typography; colours of text and grid are the page's."""
    figure.update_layout(
        title={
            "text": html.escape(title, quote=False),
            "subtitle": {"text": html.escape(subtitle, quote=False), "font": {"size": 12, "color": MUTED}},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 8, "t": 14},
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "font": {"size": 15, "color": INK},
        },
        font={"family": FONT, "size": 12, "color": INK},
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        width=width,
        height=height,
        hoverlabel={"font": {"family": FONT, "size": 12}, "align": "left"},
    )
    figure.update_xaxes(title={"font": {"size": 12}})
    figure.update_yaxes(title={"font": {"size": 12}})
    figure.update_annotations(font={"size": 12})
    return figure


def figure_fragment(figure: Figure, alternative: str, *, follow: str = "") -> Fragment:
    """The figure as part of a page. `alternative` describes it in words; `follow` names how it shows selections."""
    spec: dict[str, Any] = json.loads(figure.to_json() or "{}")
    wide = " wide" if spec["layout"].get("width", 0) > PAPER else ""
    kind = f' data-mw-follow="{escape(follow)}"' if follow else ""
    body = (
        f'<div class="mw-figure{wide}" data-mw-figure{kind} role="figure" aria-label="{escape(alternative)}" '
        f'data-mw-height="{int(spec["layout"].get("height", 400))}">{embed_json(spec)}'
        f"<noscript><p>{escape(alternative)}</p></noscript></div>"
    )
    return Fragment(body, needs=("figures",))


def figures_page(title: str, fragments: list[Fragment]) -> str:
    """A page of figures alone."""
    head = Fragment(f'<main class="mw-page"><h1>{escape(title)}</h1>')
    return assemble(title, [head, *fragments, Fragment("</main>")], body_class="mw-standalone")
