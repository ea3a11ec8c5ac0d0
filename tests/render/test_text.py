import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechwork.render.page.page import to_json
from mechwork.render.page.text import MINUS, escape, fixed, number, percent, plain, shorten, show_token, signed
from tests.render.synthetic import HOSTILE


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1.0, "1.00"),
        (-0.1234, f"{MINUS}0.123"),
        (1234.5, "1234"),
        (1e-7, f"1.00e{MINUS}07"),
        (float("nan"), "n/a"),
        (float("inf"), "∞"),
    ],
)
def test_numbers_as_people_read_them(value: float, shown: str) -> None:
    assert number(value) == shown


def test_signs_are_explicit_and_zero_has_none() -> None:
    assert signed(0.5) == "+0.500"
    assert signed(-0.5) == f"{MINUS}0.500"
    assert fixed(-0.0001) == "0.000"
    assert percent(0.055) == "5.5\u202f%"


@pytest.mark.parametrize("token", HOSTILE)
def test_hostile_tokens_become_one_visible_harmless_word(token: str) -> None:
    shown = show_token(token)
    assert shown
    assert len(shown) <= 24
    assert not set(shown) & set("\n\r\t\x00\u202e\u2028")
    markup = escape(show_token(token, 300))
    assert "<" not in markup
    assert '"' not in markup


@given(st.text())
def test_escape_leaves_no_markup_and_is_writable(text: str) -> None:
    markup = escape(text)
    assert not set(markup) & set("<>\"'")
    markup.encode("utf-8")


@given(
    st.recursive(
        st.text() | st.floats() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_never_ends_its_element(value: object) -> None:
    text = to_json(value)
    assert "<" not in text
    assert "NaN" not in text.replace('"', "") or "NaN" in str(value)
    text.encode("utf-8")


def test_lone_surrogates_can_be_written() -> None:
    assert plain("a\ud800b") == "a\ufffdb"
    to_json("a\ud800b").encode("utf-8")


def test_shorten_keeps_the_limit() -> None:
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("abc", 4) == "abc"
