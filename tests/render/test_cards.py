"""What is said about nodes: every card's certainty, its text made harmless, its pictures true."""

import base64
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from mechwork.errors import InputError
from mechwork.render import Excerpts, Fact, Pattern, Picture, TokenList, render_components, render_report, reports
from mechwork.render.findings import EXTENSIONS
from mechwork.render.page.cards import attention_cards, cards_markup, component_cards
from mechwork.render.page.page import Fragment
from tests.render import synthetic

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>window.pwned=1</script></svg>'
CARDS = [
    lambda text: Fact(text, text, "estimated", text or "x"),
    lambda text: TokenList(text, [(text, 1.5), (text, -0.25)]),
    lambda text: Excerpts(text, [((text, "b"), (0.5, 1.0))]),
    lambda text: Pattern(text, (text, "b"), ((1.0, 0.0), (0.25, 0.75))),
    lambda text: Picture(text, SVG, text, "interpretation"),
]


class Tags(HTMLParser):
    """Every tag and attribute of some markup."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.parametrize("make", CARDS, ids=range(len(CARDS)))
@pytest.mark.parametrize("text", synthetic.HOSTILE, ids=range(len(synthetic.HOSTILE)))
def test_no_text_becomes_an_element_or_a_handler(make: object, text: str) -> None:
    plain, hostile = (Tags(cards_markup([make(t)])) for t in ("word", text))  # type: ignore[operator]
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert all(value.startswith("data:image/") for name, value in hostile.attributes if name == "src")


def test_each_card_says_how_sure_it_is_and_refuses_other_words() -> None:
    for make in CARDS:
        card = make("x")
        marked = f'class="mw-badge {card.certainty}"' in card.markup()
        assert marked == (card.certainty != "measured")  # only what is not measured carries a mark
        with pytest.raises(InputError, match="interpretation; got"):
            replace(card, certainty="certain")
    with pytest.raises(InputError, match="one value per token"):
        Excerpts("x", [(("a",), ())])
    with pytest.raises(InputError, match="one row and one column"):
        Pattern("x", ("a", "b"), ((1.0,),))
    with pytest.raises(InputError, match="SVG"):
        Picture("x", "<p>", "")
    assert cards_markup([]) == ""


def test_the_picture_of_a_pattern_has_a_pixel_per_cell() -> None:
    markup = Pattern("x", ("a", "b"), ((1.0, 0.0), (0.25, 0.75))).markup()
    found = re.search(r"base64,([^\"]+)", markup)
    assert found is not None
    data = base64.b64decode(found[1])
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (2, 2)
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    rows = zlib.decompress(data[start + 4 : start + 4 + length])
    pixels = [rows[1:4], rows[4:7], rows[8:11], rows[11:14]]
    assert pixels[0] == bytes((0, 114, 178))
    assert pixels[1] == bytes((236, 236, 236))
    assert pixels[2] == bytes(round(255 + (c - 255) * 0.5) for c in (0, 114, 178))
    assert "looks most at b (0.75)" in markup


def test_the_darkest_token_is_the_largest_of_all_prompts() -> None:
    markup = Excerpts("x", [(("a", "b"), (0.0, 4.0)), (("c", "d"), (2.0, 0.0))]).markup()
    shares = [int(share) for share in re.findall(r"mw-s(\d+)", markup)]
    assert shares == [round(20 * 0.6), round(20 * 0.6 * 0.5**1.5)]
    long = Excerpts("x", [(tuple(f"t{i}" for i in range(100)), tuple(float(i == 90) for i in range(100)))]).markup()
    assert "… <bdi" in long
    assert ">t90<" in long
    assert ">t20<" not in long


def test_components_and_patterns_become_cards_of_their_nodes() -> None:
    study, patterns = synthetic.components(), synthetic.patterns()
    known = component_cards(study)
    assert list(known) == [row.node for row in study.rows]
    head, mlp = cards_markup(known["a4.h1"]), cards_markup(known["m0"])
    assert "previous token 70\u202f%" in head
    assert "copying score" in head
    assert "copying score" not in mlp
    assert list(attention_cards(patterns)) == list(patterns.heads)
    page = render_components(study)
    assert page.count('class="mw-card"') == len(study.rows)


def test_a_report_keeps_what_is_measured_and_what_is_said_apart() -> None:
    page = render_report(synthetic.task(), *synthetic.everything())
    start = page.index('<details class="mw-card" data-mw-row="a4.h1"')
    card = page[page.index("</summary>", start) : page.index("</details>", start)]
    measured, said = card.split('<p class="mw-side-title">Interpretation</p>')
    assert "name mover" in said
    assert "name mover" not in measured
    assert "interpretation" not in measured.split(": interpretation")[0]
    assert "mw-badge measured" not in measured
    assert "mw-badge interpretation" in said
    assert "95 % interval" in measured


def test_other_modules_add_their_results_to_a_section() -> None:
    class Reading:
        def __init__(self) -> None:
            self.provenance = {}

    reports(Reading, section="localisation")(lambda reading: Fragment("<p>a reading of a lens</p>"))
    try:
        page = render_report(synthetic.task(), Reading(), synthetic.circuit())
        assert "a reading of a lens" in page[page.index('id="localisation"') : page.index('id="limits"')]
    finally:
        del EXTENSIONS[Reading]
    with pytest.raises(InputError, match="a report shows"):
        render_report(synthetic.task(), Reading())


def test_what_is_registered_is_the_only_list_of_what_a_report_shows() -> None:
    """Also for results that stand side by side, such as stability beside completeness."""
    stability = next(r for r in synthetic.robustness() if type(r).__name__ == "Stability")
    assert "bootstrap resamples" in render_report(synthetic.task(), synthetic.circuit(), stability)
    kept = EXTENSIONS.pop(type(stability))
    try:
        with pytest.raises(InputError, match="got Stability"):
            render_report(synthetic.task(), synthetic.circuit(), stability)
    finally:
        EXTENSIONS[type(stability)] = kept


def test_a_single_pair_has_no_interval() -> None:
    effects = synthetic.effects()
    one = replace(effects["z"], per_example=effects["z"].per_example[:1])
    page = render_report(synthetic.task(), one, synthetic.circuit())
    assert "one pair" in page
    assert torch.isfinite(one.values).all()
