"""How the first look at one prompt is drawn: its report, and the most probable next tokens."""

from __future__ import annotations

from ...discovery.explain import Explanation, TopTokens
from ...display import draws
from ...relevance.tokens import TokenRelevance
from ..findings import reports
from ..page.figure import figures_page
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import percent, show_token, signed
from ..report import render_report
from .tokens import tokens_fragment


@draws(Explanation)
def render_explanation(look: Explanation) -> str:
    """One page with all parts."""
    return render_report(look.task, *look.results, title=f"A first look: {look.answer.strip()!r} after one prompt")


@draws(TopTokens)
def render_top_tokens(answers: TopTokens) -> str:
    """One page: the table."""
    return figures_page("Next tokens", [top_fragment(answers)])


@reports(TopTokens, section="task")
def top_fragment(answers: TopTokens) -> Fragment:
    """The most probable next tokens."""
    columns = [
        Column("next token", [show_token(row.token) for row in answers.rows]),
        Column("probability", [percent(row.probability) for row in answers.rows], numeric=True),
        Column("logit", [signed(row.logit) for row in answers.rows], numeric=True),
    ]
    return Fragment(table(columns, caption="What the model would say next"))


@reports(TokenRelevance, section="localisation")
def relevance_section(relevance: TokenRelevance) -> Fragment:
    """The coloured prompt."""
    return tokens_fragment(relevance)
