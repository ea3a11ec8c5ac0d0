"""Contrast in both themes, from the styles themselves: 4.5 for text, 3 for marks (WCAG 2.2, 1.4.3 and 1.4.11)."""

import re

import pytest

from mechwork.render.graph import static as graph_static
from mechwork.render.page.page import asset

TEXT = ("ink", "muted", "pos-text", "neg-text", "accent")
MARKS = (*(f"role-{k}" for k in range(8)), "pos", "neg", "neutral", "in1", "in2", "in3", "accent", "control")
GROUNDS = ("bg", "surface")


def palette(*, dark: bool) -> dict[str, tuple[int, int, int]]:
    css = asset("base.css")
    start = css.index("prefers-color-scheme: dark") if dark else 0
    block = css[start : css.index("@media print" if dark else "@media", start)]
    found = re.findall(r"--mw-([\w-]+): #([0-9a-f]{6})", block)
    return {name: (int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for name, c in found}


def luminance(colour: tuple[float, ...]) -> float:
    shares = [c / 255 for c in colour]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def over(colour: tuple[int, ...], ground: tuple[int, ...], share: float) -> tuple[float, ...]:
    return tuple(share * c + (1 - share) * g for c, g in zip(colour, ground, strict=True))


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_marks_can_be_seen(dark: bool) -> None:
    colours = palette(dark=dark)
    for ground in GROUNDS:
        for name in TEXT:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in MARKS:
            assert contrast(colours[name], colours[ground]) >= 3, (name, ground)


@pytest.mark.parametrize("dark", [False, True])
def test_edges_are_seen_at_the_opacity_they_are_drawn_with(dark: bool) -> None:
    found = re.search(r"\.mw-edge \{[^}]*stroke-opacity: ([\d.]+)", asset("graph.css"))
    assert found is not None
    colours, share = palette(dark=dark), float(found[1])
    for ground in GROUNDS:
        for name in ("pos", "neg", "neutral", "in1", "in2", "in3"):
            assert contrast(over(colours[name], colours[ground], share), colours[ground]) >= 3, (name, ground)


def test_the_static_picture_has_the_colours_of_the_light_theme() -> None:
    colours = palette(dark=False)
    for name in ("pos", "neg", "neutral", "ink", "muted", *(f"role-{k}" for k in range(8))):
        value = graph_static.LIGHT[name]
        assert "#{:02x}{:02x}{:02x}".format(*colours[name]) == value.lower()
