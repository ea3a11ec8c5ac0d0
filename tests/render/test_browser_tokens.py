"""The relevance of tokens in a real browser: drawn by circuitsvis, with hostile tokens, and its table without
scripts.
"""

from __future__ import annotations

import torch

from mechwork.relevance import TokenRelevance
from mechwork.render import render_tokens
from tests.browser import OpenPage

TOKENS = ("<s>", "</script><img src=x onerror=alert(1)>", " Mary", "\n", " \u202eJohn", " gave", "🙂", "x" * 200)
VALUES = torch.tensor([0.1, -0.2, 3.5, 0.0, -2.75, 0.4, 0.01, -0.3], dtype=torch.float64)
RELEVANCE = TokenRelevance(TOKENS, VALUES, 1.25, "logit ' Mary' - logit ' John'", "relp_ah", {})


def test_every_token_is_coloured(open_page: OpenPage) -> None:
    tab = open_page(render_tokens(RELEVANCE), wait=".mw-paper span")
    tab.picture("tokens", full_page=True)
    text = tab.page.locator(".mw-paper").inner_text().replace("\u00a0", " ")
    assert " Mary" in text
    assert "onerror" in text  # as text, not as an element
    assert tab.page.locator(".mw-paper img").count() == 0
    colours = tab.page.evaluate(
        "() => [...document.querySelectorAll('.mw-paper span')].map((s) => getComputedStyle(s).backgroundColor)"
    )
    assert len(set(colours)) >= 4


def test_the_table_adds_up_without_scripts(open_page: OpenPage) -> None:
    tab = open_page(render_tokens(RELEVANCE), scripts=False)
    rows = tab.page.locator("tbody tr")
    assert rows.count() == len(TOKENS) + 1
    numbers = [float(t.replace("\u2212", "-")) for t in tab.page.locator("tbody td.number").all_inner_texts()]
    assert abs(sum(numbers) - RELEVANCE.value) < 1e-9
