"""The graph as a static SVG in the light theme: the picture where no script runs, and a figure for a paper.

Same geometry as the script; only presentation attributes and plain shapes, which every program reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..page.text import escape, shorten
from .layout import ROLE_LIMIT, Layout, control_points

POSITIVE, NEGATIVE, NEUTRAL = "#0072B2", "#D55E00", "#6e7781"
INK, MUTED, LINE = "#1b1f24", "#57606a", "#e6e9ed"
LIMIT = 400
"""Edges in a static picture; more would be a black cloud and a large file."""


def static_svg(payload: dict[str, Any], limit: int = LIMIT) -> str:
    """A standalone SVG of the strongest edges of a graph's payload."""
    nodes, edges = payload["nodes"], payload["edges"]
    types = np.array(nodes["type"], dtype=np.int64)
    layout = Layout(np.array(nodes["x"], dtype=float), np.array(nodes["y"], dtype=float), (), *payload["size"])
    n = min(limit, len(edges["source"]))
    source, target, kind = (np.array(edges[name][:n], dtype=np.int64) for name in ("source", "target", "kind"))
    bend = np.array(edges["bend"][:n], dtype=float)
    port = np.where(types[target] == 1, np.array([-1, 0, 1, 0, 0])[kind] * payload["port"], 0.0) if n else np.zeros(0)
    x, y = control_points(layout, types, source, target, port, bend)
    scores = edges["score"]
    largest = abs(scores[0]) if scores else 0.0
    shapes = [_band(band, payload["size"][0]) for band in payload["layers"]]
    shapes += [_place(place, payload["size"][1]) for place in payload["places"]]
    shapes += [_edge(x[e], y[e], scores[e] if scores else None, largest) for e in reversed(range(n))]
    drawn = set(source.tolist()) | set(target.tolist())
    shapes += [
        _node(payload, i) for i in range(len(types)) if i in drawn or (types[i] in (0, 3) and not payload["places"])
    ]
    width, height = payload["size"]
    height += 40 if payload["places"] else 0
    said = f"{payload['title']} · {n:,} of {payload['nEdgesOfGraph']:,} edges"
    caption = f'<text x="12" y="{height + 14:.0f}" font-size="10.5" fill="{MUTED}">{escape(said)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height + 24:g}" width="{width:g}" height="{height + 24:g}" '
        f'font-family="Helvetica, Arial, sans-serif"><title>{escape(said)}</title><rect width="100%" height="100%" fill="#ffffff"/>'
        f"{''.join(shapes)}{caption}</svg>"
    )


def path_of(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path data of one cubic curve."""
    p = [f"{value:.1f}".removesuffix(".0") for value in np.stack([x, y], axis=1).flatten().tolist()]
    return f"M{p[0]} {p[1]}C{p[2]} {p[3]} {p[4]} {p[5]} {p[6]} {p[7]}"


def _band(band: dict[str, float], width: float) -> str:
    line = f'<line x1="0" x2="{width:g}" y1="{band["top"]:g}" y2="{band["top"]:g}" stroke="{LINE}"/>'
    if band["bottom"] - band["top"] < 20:
        return line
    middle = (band["top"] + band["bottom"]) / 2 + 4
    return f'{line}<text x="12" y="{middle:g}" font-size="11" fill="{MUTED}">layer {band["layer"]:g}</text>'


def _place(place: dict[str, Any], height: float) -> str:
    x = (place["left"] + place["right"]) / 2
    text = f'<text x="{x:g}" y="{height + 12:g}" font-size="11" fill="{MUTED}" transform="rotate(24 {x:g} {height + 12:g})">{escape(place["label"])}</text>'
    return f'<line x1="{place["left"]:g}" x2="{place["left"]:g}" y1="0" y2="{height:g}" stroke="{LINE}"/>{text}'


def _edge(x: np.ndarray, y: np.ndarray, score: float | None, largest: float) -> str:
    colour, dash, width = NEUTRAL, "", 1.6
    if score is not None:
        colour = POSITIVE if score > 0 else NEGATIVE if score < 0 else NEUTRAL
        dash = ' stroke-dasharray="6 4"' if score < 0 else ""
        width = 0.7 + 4.3 * (abs(score) / largest) ** 0.5 if largest else 0.7
    return f'<path d="{path_of(x, y)}" fill="none" stroke="{colour}" stroke-opacity=".9" stroke-width="{width:.2f}"{dash}/>'


def _node(payload: dict[str, Any], i: int) -> str:
    nodes = payload["nodes"]
    code = nodes["type"][i]
    kind, w, h = payload["types"][code], payload["widths"][code] / 2, payload["heights"][code] / 2
    total = nodes["score"][i] if nodes["score"] and kind not in ("logits", "kv") else 0.0
    largest = max(map(abs, nodes["score"])) if nodes["score"] else 0.0
    colour = POSITIVE if total > 0 else NEGATIVE if total < 0 else NEUTRAL
    fill = _mix(colour, 0.08 + 0.3 * (abs(total) / largest) ** 0.5) if total and largest else "#ffffff"
    dash = ' stroke-dasharray="5 2.5"' if total < 0 else ""
    said = _role(nodes["role"][i], w, h, beside=nodes["side"][i] == "right") if nodes["role"][i] else ""
    label = f'<text y="4.5" font-size="{12.5 if kind != "kv" else 9:g}" font-weight="600" fill="{INK}">{escape(shorten(nodes["label"][i], 12))}</text>'
    outline = f'<path d="{_outline(kind, w, h)}" fill="{fill}" stroke="{colour}" stroke-width="1.6"{dash}/>'
    return (
        f'<g transform="translate({nodes["x"][i]:g} {nodes["y"][i]:g})" text-anchor="middle">{outline}{label}{said}</g>'
    )


def _role(role: str, w: float, h: float, *, beside: bool) -> str:
    x, y, anchor = (w + 6, 4.0, "start") if beside else (0.0, -h - 6, "middle")
    halo = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'
    style = f'font-size="11" font-style="italic" fill="{MUTED}" {halo} text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(shorten(role, ROLE_LIMIT))}</text>'


def _outline(kind: str, w: float, h: float) -> str:
    cut = 11
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


def _mix(colour: str, share: float) -> str:
    channels = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (channel - 255) * share):02x}" for channel in channels)
