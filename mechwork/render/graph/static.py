"""The graph as static SVG: the picture where no script runs, on paper, in a notebook and on a slide.

Same geometry as the script; only presentation attributes and plain shapes, which every program reads. Colours are those
of
a `Palette`: fixed ones for a file that stands alone, the page's variables (light or dark) for a picture inside a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..page.text import escape, shorten, signed
from .layout import Layout, control_points
from .levels import ports
from .routing import route_points

Palette = Mapping[str, str]
ROLE_COLOURS = ("#009e73", "#8a63c9", "#c2519a", "#9a8400", "#1f8a9a", "#8b6b4a", "#5f8f2f", "#a05252")
"""Colours of roles, in the order in which the circuit names them: none is a sign's blue or orange."""
LIGHT: Palette = {
    "paper": "#ffffff", "pos": "#0072B2", "neg": "#D55E00", "neutral": "#6e7781", "ink": "#1b1f24", "muted": "#57606a",
    "line": "#e6e9ed", **{f"role-{k}": colour for k, colour in enumerate(ROLE_COLOURS)},
}  # fmt: skip
PAGE: Palette = {
    "paper": "var(--mw-bg)", **{name: f"var(--mw-{name})" for name in LIGHT if name != "paper"},
}  # fmt: skip
ARROW = 7.0
CUT = 11


def static_svg(payload: dict[str, Any], limit: int | None = None) -> str:
    """A standalone SVG of the first `limit` edges of a graph's payload (default: those shown at first)."""
    n = min(limit or payload["shown"], len(payload["edges"]["source"]))
    shapes, width, height = draw_graph(payload, n, LIGHT)
    height += 40 if payload["places"] else 0
    said = f"{payload['title']} · {n:,} of {payload['nEdgesOfGraph']:,} edges"
    caption = f'<text x="12" y="{height + 14:.0f}" font-size="12" fill="{LIGHT["muted"]}">{escape(said)}</text>'
    return standalone(f"{shapes}{caption}", width, height + 24, said)


def standalone(body: str, width: float, height: float, said: str) -> str:
    """An SVG file with a white ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" '
        f'font-family="Helvetica, Arial, sans-serif"><title>{escape(said)}</title><rect width="100%" height="100%" '
        'fill="#ffffff"/>'
        f"{body}</svg>"
    )


def draw_graph(payload: dict[str, Any], n: int, palette: Palette, *, ghosts: bool = False) -> tuple[str, float, float]:
    """The shapes of the first `n` edges and their nodes, and the size they need."""
    place = geometry(payload, n)
    nodes, edges = payload["nodes"], payload["edges"]
    scores = edges["score"]
    largest = max(map(abs, scores), default=0.0) if scores else 0.0
    size = place["size"]
    shapes = [_band(band, size[0], palette) for band in place["layers"]]
    columns = zip(payload["places"], place.get("places", payload["places"]), strict=True)
    shapes += [_place({**column, **at}, size[1], palette) for column, at in columns]
    if ghosts:
        paths = (curve_of(payload, place, e, bend) for e, bend in place["ghosts"])
        shapes += [
            f'<path d="{path_of(p)}" fill="none" stroke="{palette["neutral"]}" stroke-opacity=".22" stroke-width="1"/>'
            for p in paths
        ]
    for e in reversed(range(n)):
        shapes.append(
            _edge(curve_of(payload, place, e), scores[e] if scores else None, largest, palette, _said(payload, e))
        )
    shapes += [_link(payload, place, link, route, palette) for link, route in place["links"]]
    drawn = {*edges["source"][:n], *edges["target"][:n]}
    ends = {i for i, t in enumerate(nodes["type"]) if t in (0, 3) and not payload["places"]}
    shapes += [
        _node(payload, i, place["x"][i], place["y"][i], palette)
        for i in sorted(drawn | ends)
        if place["x"][i] is not None
    ]
    return "".join(shapes), size[0], size[1]


def geometry(payload: dict[str, Any], n: int) -> dict[str, Any]:
    """The layout that holds while `n` edges are shown."""
    for level in payload["levels"]:
        if n <= level["edges"]:
            return level
    nodes = payload["nodes"]
    return {
        "x": nodes["x"],
        "y": nodes["y"],
        "routes": [],
        "ghosts": [],
        "links": [],
        "size": payload["size"],
        "layers": payload["layers"],
    }


def curve_of(payload: dict[str, Any], place: dict[str, Any], e: int, bend: float | None = None) -> list[float]:
    """Control points of an edge, x and y in turn: along its route, or bent around what is in the way."""
    edges, types = payload["edges"], payload["nodes"]["type"]
    s, t, kind = edges["source"][e], edges["target"][e], edges["kind"][e]
    port = ports(np.array([types[t]]), np.array([kind]))
    if bend is None and e < len(place["routes"]):
        x3 = place["x"][t] + float(port[0]) * payload["widths"][types[t]]
        y0 = place["y"][s] - payload["heights"][types[s]] / 2
        return route_points(place["x"][s], y0, place["routes"][e], x3, place["y"][t] + payload["heights"][types[t]] / 2)
    layout = Layout(np.array([place["x"][s], place["x"][t]]), np.array([place["y"][s], place["y"][t]]), (), 0.0, 0.0)
    bends = place.get("bends", edges["bend"])
    bent = np.array([float(bends[e] if bend is None else bend)])
    x, y = control_points(layout, np.array([types[s], types[t]]), np.array([0]), np.array([1]), port, bent)
    return np.stack([x[0], y[0]], axis=1).flatten().tolist()


def path_of(points: list[float]) -> str:
    """SVG path data of a chain of cubic curves."""
    p = [f"{value:.1f}".removesuffix(".0") for value in points]
    curves = (" ".join(p[k : k + 6]) for k in range(2, len(p), 6))
    return f"M{p[0]} {p[1]}C{'C'.join(curves)}"


def _said(payload: dict[str, Any], e: int) -> str:
    edges, names = payload["edges"], payload["nodes"]["name"]
    kind = payload["kinds"][edges["kind"][e]]
    into = f" ({kind})" if kind in "qkv" else ""
    score = f", score {signed(edges['score'][e])}" if edges["score"] else ""
    return f"{names[edges['source'][e]]} to {names[edges['target'][e]]}{into}{score}"


def _band(band: dict[str, Any], width: float, palette: Palette) -> str:
    line = f'<line x1="0" x2="{width:g}" y1="{band["top"]:g}" y2="{band["top"]:g}" stroke="{palette["line"]}"/>'
    if band["bottom"] - band["top"] < 20:
        return line
    y = band["top"] + 15
    return f'{line}<text x="6" y="{y:g}" font-size="12" fill="{palette["muted"]}">{escape(str(band["label"]))}</text>'


def _place(place: dict[str, Any], height: float, palette: Palette) -> str:
    x = (place["left"] + place["right"]) / 2
    text = (
        f'<text x="{x:g}" y="{height + 14:g}" font-size="12" text-anchor="middle" '
        f'fill="{palette["muted"]}">{escape(shorten(place["label"], 12))}</text>'
    )
    if place.get("words"):
        said = escape(shorten(place["words"], max(5, round((place["right"] - place["left"]) / 7))))
        ink = palette["ink"]
        text += f'<text x="{x:g}" y="{height + 30:g}" font-size="12" text-anchor="middle" fill="{ink}">{said}</text>'
    return (
        f'<line x1="{place["left"]:g}" x2="{place["left"]:g}" y1="0" y2="{height:g}" stroke="{palette["line"]}"/>{text}'
    )


def _edge(points: list[float], score: float | None, largest: float, palette: Palette, said: str) -> str:
    colour, dash, width = palette["neutral"], "", 1.8
    if score is not None:
        colour = palette["pos" if score > 0 else "neg" if score < 0 else "neutral"]
        dash = ' stroke-dasharray="6 4"' if score < 0 else ""
        width = 1.0 + 4.0 * (abs(score) / largest) ** 0.5 if largest else 1.0
    x, y, half = points[-2], points[-1], 2.6 + 0.55 * width
    if points[1] == y:  # an arch between two places arrives from the side
        line = [*points[:-2], x - ARROW + 1, y]
        tip = f"M{x:.1f} {y:.1f}L{x - ARROW:.1f} {y - half:.1f}V{y + half:.1f}Z"
    else:
        line = [*points[:-1], y + ARROW - 1]
        tip = f"M{x:.1f} {y:.1f}L{x - half:.1f} {y + ARROW:.1f}H{x + half:.1f}Z"
    return (
        f'<g><title>{escape(said)}</title><path d="{path_of(line)}" fill="none" stroke="{colour}" stroke-opacity=".9" '
        f'stroke-width="{width:.2f}"{dash}/><path d="{tip}" fill="{colour}"/></g>'
    )


def _link(payload: dict[str, Any], place: dict[str, Any], link: int, route: list[float], palette: Palette) -> str:
    """The line from a key/value group to one of its heads; it carries no score."""
    s, t = payload["links"][link]
    types, heights = payload["nodes"]["type"], payload["heights"]
    low, high = place["y"][s] - heights[types[s]] / 2, place["y"][t] + heights[types[t]] / 2
    path = path_of(route_points(place["x"][s], low, route, place["x"][t], high))
    return f'<path d="{path}" fill="none" stroke="{palette["muted"]}" stroke-width="1.2" stroke-dasharray="2 3"/>'


def role_index(payload: dict[str, Any], i: int) -> int:
    """Which colour a node's role has; -1 where it has none of its own."""
    role = payload["nodes"]["role"][i]
    known = payload["roles"]
    return known.index(role) if role and role in known[: len(ROLE_COLOURS)] else -1


def _node(payload: dict[str, Any], i: int, x: float, y: float, palette: Palette) -> str:
    nodes = payload["nodes"]
    code = nodes["type"][i]
    kind, w, h = payload["types"][code], payload["widths"][code] / 2, payload["heights"][code] / 2
    role = role_index(payload, i)
    colour = palette[f"role-{role}"] if role >= 0 else palette["neutral"]
    ground = f'<path d="{_outline(kind, w, h)}" fill="{palette["paper"]}"/>'
    tint = f' fill="{colour}" fill-opacity="{0.24 if role >= 0 else 0.07}"'
    text = escape(shorten(nodes["label"][i], 12))
    label = (
        f'<text y="4.5" font-size="{13.5 if kind != "kv" else 11.5:g}" font-weight="600" '
        f'fill="{palette["ink"]}">{text}</text>'
    )
    said = f"<title>{escape(nodes['role'][i])}</title>" if nodes["role"][i] else ""
    outline = f'<path d="{_outline(kind, w, h)}"{tint} stroke="{colour}" stroke-width="1.8"/>'
    return f'<g transform="translate({x:g} {y:g})" text-anchor="middle">{said}{ground}{outline}{label}</g>'


def _outline(kind: str, w: float, h: float) -> str:
    cut = CUT
    if kind == "input":
        return f"M{-w:g} {h:g}L{cut - w:g} {-h:g}H{w - cut:g}L{w:g} {h:g}Z"
    if kind == "logits":
        return f"M{-w:g} {-h:g}L{cut - w:g} {h:g}H{w - cut:g}L{w:g} {-h:g}Z"
    if kind == "error":
        return f"M{-w:g} 0L{cut - w:g} {-h:g}H{w - cut:g}L{w:g} 0L{w - cut:g} {h:g}H{cut - w:g}Z"
    if kind == "mlp":
        return f"M{-w:g} {-h:g}H{w:g}V{h:g}H{-w:g}Z"
    return (
        f"M{h - w:g} {-h:g}H{w - h:g}A{h:g} {h:g} 0 0 1 {w - h:g} {h:g}H{h - w:g}A{h:g} {h:g} 0 0 1 {h - w:g} {-h:g}Z"
    )
