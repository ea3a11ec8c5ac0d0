"""The figure for a slide, a paper or a notebook: the strongest connected edges of a circuit with all that explains
them.

    picture = figure(circuit, evaluation, curve, lens_table, task=task, n_edges=12)
    picture.save("circuit.svg")
    picture.save("circuit.png")          # needs chromium, which draws it; an SVG needs nothing

Prompt below, predicted word above, a key, and a caption with faithfulness and the random control as far as the results
say them. Plain SVG: no plotting library, no script, the same bytes for the same inputs.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...circuits.graph.circuit import Circuit
from ...errors import InputError, NotFoundError
from ...files import write_text
from ...tasks.task import Task
from ..page.text import count, escape, fixed, percent, plural, shorten, show_token
from .payload import GraphOptions, graph_payload
from .skeleton import interpolate, whole_sizes
from .static import LIGHT, ROLE_COLOURS, draw_graph, standalone

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LETTER = 7.4
"""About how many pixels a letter takes at 14 pixels."""
LEAST_WIDTH = 640.0
MAX_EDGES = 150


@dataclass(frozen=True)
class StaticFigure:
    """An SVG with its caption; Jupyter shows it, GitHub too."""

    svg: str
    caption: str
    width: float
    height: float

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"{self.caption} ({self.width:.0f} x {self.height:.0f} px; save(path) writes SVG or PNG)"

    def save(self, path: str | Path, *, scale: float = 2.0) -> Path:
        """Write ``.svg`` or ``.png`` (`scale` pixels per unit). Raises `InputError` for other endings, `NotFoundError`
        without chromium.
        """
        path = Path(path)
        if path.suffix == ".svg":
            write_text(path, self.svg)
        elif path.suffix == ".png":
            _photograph(self, path, scale)
        else:
            raise InputError(f"a figure is saved as .svg or .png; got {path.name!r}")
        return path


def figure(circuit: Circuit, *results: object, task: Task | None = None, n_edges: int = 12) -> StaticFigure:
    """The `n_edges` strongest connected edges of `circuit` (fewer where whole paths end sooner, more for a first path).

    `results` are what a report takes: an evaluation and a curve give the caption its numbers, effects colour the prompt
    of `task`, a lens table says what the model predicts, a head study names roles.

    Raises:
        InputError: `n_edges` is below 1, or a result is none that a report shows.
    """
    from ..example import find_example
    from ..findings import collect

    if n_edges < 1:
        raise InputError(f"a figure shows at least one edge; got n_edges={n_edges}")
    findings = collect(task, (circuit, *results)) if task is not None else None
    curve = findings.curve_of(circuit) if findings is not None else None
    circuit = findings.with_roles(circuit) if findings is not None else circuit
    payload = graph_payload(circuit, GraphOptions(shown=whole_paths(circuit, min(n_edges, MAX_EDGES)), curve=curve))
    n = payload["shown"] if payload["edges"]["source"] else 0
    shapes, width, height = draw_graph(payload, n, LIGHT)
    example = find_example(findings) if findings is not None else None
    prompt, wide, up = _prompt(example) if example is not None else ("", 0.0, 0.0)
    answer = f"{show_token(example.answer, 30)}{_share(example.p_answer)}" if example is not None else ""
    caption = caption_of(circuit, findings, n, payload)
    lines = _wrapped(caption, max(width, wide, LEAST_WIDTH))
    full = max(width, wide, LEAST_WIDTH)
    top = 30.0 if answer else 4.0
    body = [f'<g transform="translate({(full - width) / 2:g} {top:g})">{shapes}</g>']
    if answer:
        x = (full - width) / 2 + _x_of_logits(payload, n, width)
        body.append(_text(x, 22, f"predicts {answer}", 15, anchor="middle", bold=True))
    if prompt:
        body.append(f'<g transform="translate({(full - wide) / 2:g} {top + height + 6:g})">{prompt}</g>')
    y = top + height + up + 26
    keys, y = _key(payload, n, full, y)
    body.append(keys)
    body += [_text(14, y + 18 * k, line, 13, colour=LIGHT["muted"]) for k, line in enumerate(lines)]
    total = y + 18 * len(lines)
    return StaticFigure(standalone("".join(body), round(full, 1), round(total, 1), caption), caption, full, total)


def whole_paths(circuit: Circuit, n_edges: int) -> int:
    """The largest number of edges up to `n_edges` that ends with a whole path, else the first that does."""
    from .table import circuit_table

    sizes = whole_sizes(circuit_table(circuit).steps)
    below = [k for k in sizes if 0 < k <= n_edges]
    return below[-1] if below else max(1, sizes[0])


def caption_of(circuit: Circuit, findings: Any, n: int, payload: dict[str, Any]) -> str:
    """What is drawn, how faithful the whole circuit is, what random circuits keep."""
    said = (
        f"The {plural(n, 'strongest connected edge')} of a circuit of {count(circuit.n_edges)} among "
        f"{count(circuit.space.n_edges)} edges ({percent(circuit.fraction)})."
    )
    part = interpolate(payload["faithfulness"], n)
    if part is not None and n < circuit.n_edges:
        said += f" Alone they carry about {fixed(part, 2)} of the faithfulness (interpolated)."
    evaluation = findings.evaluation_of(circuit) if findings is not None else None
    if findings is not None and evaluation is not None:
        low, high = evaluation.interval()
        where = findings.pairs_word(evaluation.provenance)
        said += (
            f" Whole circuit: faithfulness {fixed(evaluation.faithfulness, 2)} [{fixed(low, 2)}, "
            f"{fixed(high, 2)}] on {plural(len(evaluation.per_example), where)}, {evaluation.ablation} ablation"
        )
        if evaluation.random:
            said += f"; random circuits of its size {fixed(sum(evaluation.random) / len(evaluation.random), 2)}"
        said += "."
    return said


def _x_of_logits(payload: dict[str, Any], n: int, width: float) -> float:
    from .static import geometry

    place = geometry(payload, n)
    found = [x for x, t in zip(place["x"], payload["nodes"]["type"], strict=True) if t == 3 and x is not None]
    return found[0] if found else width / 2


def _prompt(example: Any) -> tuple[str, float, float]:
    """The prompt's tokens as boxes shaded by effect, in lines; the width and height they take."""
    scale = example.scale or 1.0
    x, y, widest, parts = 0.0, 0.0, 0.0, []
    for token, value in zip(example.tokens, example.effects, strict=True):
        if token.startswith("<|"):
            continue
        text = show_token(token, 24).strip()
        wide = LETTER * max(len(text), 1) + 6
        if x + wide > LEAST_WIDTH + 160:
            x, y = 0.0, y + 26
        share = 0.0 if value is None else 0.7 * min(1.0, abs(value) / scale)
        colour = LIGHT["pos" if (value or 0) >= 0 else "neg"]
        if share > 0.02:
            parts.append(
                f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="22" rx="3" fill="{colour}" '
                f'fill-opacity="{share:.2f}"/>'
            )
        parts.append(_text(x + wide / 2, y + 16, text, 14, anchor="middle"))
        x += wide + 2
        widest = max(widest, x)
    return "".join(parts), widest, y + 26


def _share(p: float | None) -> str:
    return "" if p is None else f" ({percent(p, 0)})"


def _key(payload: dict[str, Any], n: int, full: float, y: float) -> tuple[str, float]:
    """Signs of edges and colours of the roles that are drawn; the height below which the caption may start."""
    drawn = {*payload["edges"]["source"][:n], *payload["edges"]["target"][:n]}
    items = [(LIGHT["pos"], "raises the metric", "line")] if payload["scored"] else []
    if any(s < 0 for s in (payload["edges"]["score"] or [])[:n]):
        items.append((LIGHT["neg"], "lowers it", "dash"))
    shown = [payload["nodes"]["role"][i] for i in sorted(drawn)]
    items += [
        (ROLE_COLOURS[k], role, "box") for k, role in enumerate(payload["roles"][: len(ROLE_COLOURS)]) if role in shown
    ]
    x, parts = 14.0, []
    for colour, text, kind in items:
        wide = 34 + LETTER * len(shorten(text, 40))
        if x + wide > full:
            x, y = 14.0, y + 22
        dash = ' stroke-dasharray="6 4"' if kind == "dash" else ""
        parts.append(
            f'<rect x="{x:g}" y="{y - 11:g}" width="20" height="13" rx="6" fill="{colour}" fill-opacity=".24" '
            f'stroke="{colour}" stroke-width="1.6"/>'
            if kind == "box"
            else f'<path d="M{x:g} {y - 4:g}h20" stroke="{colour}" stroke-width="3"{dash}/>'
        )
        parts.append(_text(x + 26, y, shorten(text, 40), 13))
        x += wide + 12
    return "".join(parts), y + 26 if items else y


def _wrapped(text: str, width: float) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(40, int((width - 28) / 6.6)))


def _text(
    x: float, y: float, said: str, size: int, *, anchor: str = "start", bold: bool = False, colour: str = ""
) -> str:
    weight = ' font-weight="600"' if bold else ""
    fill = colour or LIGHT["ink"]
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" '
        f'text-anchor="{anchor}"{weight}>{escape(said)}</text>'
    )


def _photograph(picture: StaticFigure, path: Path, scale: float) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise NotFoundError(
            "a PNG is drawn by chromium, which is not installed. Save the figure as .svg, or install it."
        )
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        page.write_text(f'<!doctype html><body style="margin:0">{picture.svg}</body>', encoding="utf-8")
        size = f"--window-size={round(picture.width)},{round(picture.height)}"
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--force-device-scale-factor={scale:g}",
        ]
        command = [browser, *flags, size, f"--screenshot={path.absolute()}", page.as_uri()]
        subprocess.run(command, check=False, capture_output=True, timeout=120)  # noqa: S603 - our own page, no shell
    if not path.is_file():
        raise InputError(f"chromium drew no picture at {path}. Save the figure as .svg, or choose another path.")
