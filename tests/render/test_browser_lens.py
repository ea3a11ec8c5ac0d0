"""The lens table in a real browser: hover, keyboard, equal tokens apart, hostile tokens, without scripts; and the other
pictures.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.lenses import (
    LOGIT_LENS,
    LensTable,
    attribute_logits,
    evaluate_lens,
    load_lens,
    read_head,
    read_lens,
    read_neurons,
    trajectory,
)
from mechwork.lenses.trajectory import compare_trajectories
from mechwork.render import lens_fragment
from tests.browser import OpenPage

PROMPT = "Mary and John and Mary and John and Mary"
HOSTILE = {0: "<s>", 1: "</script><img src=x onerror=alert(1)>", 2: " \u202eJohn", 3: "\n", 4: "x" * 200}


def hostile_table() -> LensTable:
    """Two prompts of four and three tokens, three places, every cell different."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 4)
    top = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(24)]).reshape(*shape, 3)
    values = {name: torch.rand(shape, generator=generator) for name in ("entropy", "kl", "surprisal")}
    return LensTable(
        "logit lens", ("resid_pre.0", "resid_pre.1", "resid_post.1"), torch.tensor([[0, 1, 2, 1], [0, 3, 4, 0]]),
        torch.tensor([[True] * 4, [True] * 3 + [False]]),
        top, torch.rand(*shape, 3, generator=generator).sort(dim=-1, descending=True).values / 3, values["entropy"],
        values["kl"],
        torch.tensor([[1, 2, 1, 0], [3, 4, 0, 0]]), torch.randint(5, shape, generator=generator), values["surprisal"],
        HOSTILE, {},
    )  # fmt: skip


def test_every_position_has_its_own_column_and_hover_shows_the_top_k(open_page: OpenPage, bundled_model: Any) -> None:
    table = read_lens(bundled_model, PROMPT, top_k=5)
    tab = open_page(table.to_html(), wait=".mw-lens-grid td")
    tab.picture("lens", full_page=True)
    n = int(table.mask.sum())
    assert tab.page.locator(".mw-lens-grid thead th").count() == n + 1
    assert tab.page.locator(".mw-lens-grid thead bdi", has_text="Mary").count() == 3
    assert tab.page.locator(".mw-lens-grid td").count() == n * len(table.places)
    assert tab.page.locator(".mw-lens-grid tbody th").first.inner_text() == "resid_post.5"
    tab.page.locator("td[data-place='3'][data-pos='4']").hover()
    tip = tab.page.locator(".mw-lens-tip")
    assert tip.is_visible()
    text = tip.inner_text()
    assert "resid_pre.3, position 4" in text
    for word, _ in table.words(3, 0, 4):
        assert (word.strip() or "␣")[:10] in text
    assert tip.locator("tr").count() == 5


def test_keyboard_and_colours(open_page: OpenPage, bundled_model: Any) -> None:
    table = read_lens(bundled_model, PROMPT)
    tab = open_page(table.to_html(), wait=".mw-lens-grid td")
    tab.page.locator(f"td[data-place='{len(table.places) - 1}'][data-pos='0']").focus()
    tip = tab.page.locator(".mw-lens-tip")
    # The columns run from the answer backwards: the first position is the last column, and the next one is left of it.
    tab.page.keyboard.press("ArrowRight")
    assert "resid_post.5, position 0" in tip.inner_text()
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("ArrowDown")
    assert "resid_pre.5, position 1" in tip.inner_text()
    one, other = (tab.page.locator(f"td[data-place='5'][data-pos='{pos}']").bounding_box() for pos in (0, 1))
    assert one
    assert other
    assert other["x"] < one["x"]
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowUp")
    assert "resid_post.5, position 0" in tip.inner_text()
    tab.page.keyboard.press("Escape")
    assert not tip.is_visible()
    colours = (
        "() => [...document.querySelectorAll('.mw-lens-grid td')].map((cell) => cell.style.backgroundColor).join()"
    )
    before = tab.page.evaluate(colours)
    tab.page.locator("[data-lens-measure]").select_option("kl")
    tab.settle()
    assert tab.page.evaluate(colours) != before
    assert "bits" in tab.page.locator("[data-lens-range]").inner_text()


def test_hostile_tokens_and_several_prompts(open_page: OpenPage) -> None:
    tab = open_page(hostile_table().to_html(), wait=".mw-lens-grid td")
    assert tab.page.locator("main img").count() == 0
    assert tab.page.locator(".mw-lens-grid:visible").count() == 1
    tab.page.locator("[data-lens-row]").select_option("1")
    tab.settle()
    assert tab.page.locator(".mw-lens-grid:visible").get_attribute("data-lens-table") == "1"
    tab.page.locator(".mw-lens-grid:visible td[data-place='0'][data-pos='2']").hover()
    assert "position 2" in tab.page.locator(".mw-lens-tip").inner_text()
    assert tab.page.locator(".mw-lens-tip img").count() == 0


def test_the_table_is_there_without_scripts(open_page: OpenPage) -> None:
    tab = open_page(hostile_table().to_html(), scripts=False)
    assert tab.page.locator(".mw-lens-grid").first.locator("tbody tr").count() == 3
    assert "resid_pre.1" in tab.page.locator("main").inner_text()


def test_settled_cells_are_those_from_the_prediction_depth_on() -> None:
    table = hostile_table()
    body = lens_fragment(table).body
    settled = int(sum((len(table.places) - table.prediction_depth)[table.mask]))
    assert body.count("class=is-settled") == settled > 0


@pytest.mark.parametrize("picture", ["evaluation", "comparison", "attribution", "neurons", "head"])
def test_the_other_pictures_are_drawn(open_page: OpenPage, bundled_model: Any, picture: str) -> None:
    lens = load_lens(bundled_model)
    if picture == "evaluation":
        result: Any = evaluate_lens(bundled_model, lens, "gpt2-6l", n_rows=12, transfer=True)
    elif picture == "comparison":
        result = compare_trajectories(
            *(trajectory(read_lens(bundled_model, [PROMPT, "The cats"], one)) for one in (LOGIT_LENS, lens))
        )
    elif picture == "attribution":
        result = attribute_logits(bundled_model, PROMPT, " and", " Mary")
    elif picture == "neurons":
        result = read_neurons(bundled_model, 5)
    else:
        result = read_head(bundled_model, 3, 1, [" Mary", " John"])
    plotted = picture in ("evaluation", "comparison", "attribution")
    tab = open_page(result.to_html(), wait=".js-plotly-plot .main-svg" if plotted else "table tbody tr")
    tab.picture(f"lens-{picture}", full_page=True)
    if picture == "evaluation":
        assert tab.page.locator(".js-plotly-plot").count() == 2
    assert tab.page.locator("table tbody tr").count() > 1
