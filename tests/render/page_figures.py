"""Figures of pages whose numbers stand in the page itself, and of writes, which need no model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch

from mechwork.interventions import Along, Constant, Limit, Reflect, Scale, Zero
from mechwork.render.page.figure import INK, MUTED, titled
from mechwork.render.panels.steering import COLOURS, SYMBOLS

PAGES = Path(__file__).resolve().parents[2] / "notebooks" / "docs"
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86_400.0, "year": 3.16e7}
TIMES = {
    "1 s": 1,
    "10 s": 10,
    "1 min": 60,
    "10 min": 600,
    "1 h": 3600,
    "1 day": 86_400,
    "1 year": 3.16e7,
}


def table_of(page: str, heading: str) -> list[list[str]]:
    """The first table after that heading, without its rule; marks of bold are taken off."""
    lines = (PAGES / f"{page}.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    first = next(i for i in range(start, len(lines)) if lines[i].startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("**", "") for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def numbers_in(text: str) -> list[float]:
    """Every number of a cell, such as ``.660 [.478, .821]``."""
    return [float(found) for found in re.findall(r"-?\d*\.?\d+", text)]


def seconds(text: str) -> float:
    """``4.4 min`` in seconds; ``a year`` is one."""
    amount, unit = text.split()
    return (1.0 if amount == "a" else float(amount)) * SECONDS[unit]


def dots(rows: dict[str, list[tuple[float, ...]]], names: list[str], spread: float = 0.14) -> go.Figure:
    """One line of dots per name; every series has a colour, a symbol and a place of its own within the line."""
    figure = go.Figure()
    for k, (series, values) in enumerate(rows.items()):
        shift = spread * (k - (len(rows) - 1) / 2)
        figure.add_trace(
            go.Scatter(
                x=[v for v, _, _ in values], y=[i + shift for i in range(len(values))], mode="markers", name=series,
                marker={"color": COLOURS[k], "symbol": SYMBOLS[k], "size": 9},
                error_x={
                    "type": "data", "array": [high - v for v, _, high in values],
                    "arrayminus": [v - low for v, low, _ in values], "thickness": 1.4, "width": 3, "color": COLOURS[k],
                },
            )
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, autorange="reversed", zeroline=False, showgrid=True,
        automargin=True,
    )  # fmt: skip
    figure.update_xaxes(zeroline=False, showgrid=True)
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": -0.13, "yanchor": "top"}, margin={"l": 60, "r": 24, "t": 70, "b": 90}
    )
    return figure


def leaderboard_figure(models: tuple[str, ...]) -> go.Figure:
    """Mean CMD of every preset on each model, from the page's tables."""
    tables = {model: table_of("leaderboard", f"## {model}")[1:] for model in models}
    means = {model: {row[0]: numbers_in(row[3])[0] for row in rows} for model, rows in tables.items()}
    names = list(means[models[0]])
    rows = {model: [(table.get(name, float("nan")),) * 3 for name in names] for model, table in means.items()}
    figure = dots(rows, names)
    figure.update_xaxes(
        type="log", title={"text": "mean CMD over six tasks (log scale): further left is better"},
        tickvals=[0.02, 0.05, 0.1, 0.2, 0.5], ticktext=["0.02", "0.05", "0.1", "0.2", "0.5"],
        range=[-1.85, 0],
    )  # fmt: skip
    figure.add_vrect(x0=0.68, x1=0.74, fillcolor=MUTED, opacity=0.25, line_width=0)
    figure.add_annotation(
        x=-0.15, y=1.0, yref="paper", yanchor="bottom", text="random circuits", showarrow=False,
        font={"color": MUTED, "size": 12},
    )  # fmt: skip
    return titled(
        figure, "Which scores find the best circuits", "one mark per model; CMD 0: as the model at every size",
        width=700, height=560,
    )  # fmt: skip


def real_model_figure(heading: str) -> go.Figure:
    """Pearson correlation of every estimator with what patching measures, by kind of place."""
    header, *body = table_of("real_model", heading)
    rows = {}
    for kind, *cells in body:
        if kind.startswith("cost"):
            continue
        rows[kind] = [(v, low, high) for v, low, high in map(numbers_in, cells)]
    figure = dots(rows, header[1:], spread=0.17)
    figure.update_xaxes(range=[0.3, 1.02], title={"text": "Pearson correlation with measured effects, 95 % interval"})
    said = "SmolLM2-135M: 15 cases of five tasks; one mark per kind of place"
    return titled(figure, "Which estimate agrees with patching", said, width=700, height=560)


def scale_figure(heading: str) -> go.Figure:
    """How long each kind of work takes on one worker, by size of the model."""
    header, *body = table_of("scale", heading)
    body = [row for row in body if not row[0].startswith(("weights", "edges of", "..."))]
    rows = {f"{size} parameters": [(seconds(row[k + 1]),) * 3 for row in body] for k, size in enumerate(header[1:])}
    figure = dots(rows, [row[0] for row in body], spread=0.0)
    figure.update_xaxes(
        type="log", tickvals=list(TIMES.values()), ticktext=list(TIMES), tickangle=0,
        title={"text": "time on one worker (log scale), reckoned, not run"},
    )  # fmt: skip
    figure.update_layout(legend={"y": -0.3})
    said = "64 pairs of 256 tokens; from the plan of each job and the speed of one accelerator"
    return titled(figure, "What is cheap on a large model, and what needs workers", said, width=760, height=380)


def writes_figure() -> go.Figure:
    """What each write makes of the coordinate along its direction, from the writes themselves."""
    unit = torch.zeros(1, 4)
    unit[0, 0] = 1.0
    before = torch.linspace(-3, 3, 13)
    states = torch.zeros(13, 4)
    states[:, 0] = before
    kinds: dict[str, Any] = {
        "nothing": None, "Zero: project out": Zero(), "Constant(2): to a target": Constant(2.0),
        "Reflect(0): mirror": Reflect(0.0), "Scale(0.5)": Scale(0.5), "Limit(-1, 1): clamp": Limit(-1.0, 1.0),
    }  # fmt: skip
    figure = go.Figure()
    for k, (name, inner) in enumerate(kinds.items()):
        after = states if inner is None else Along(unit, inner).place(states[None], 0)[0]
        figure.add_trace(
            go.Scatter(
                x=before.tolist(), y=[round(v, 3) for v in after[:, 0].tolist()], mode="lines+markers", name=name,
                line={"color": INK if inner is None else COLOURS[k - 1], "width": 1 if inner is None else 2.4,
                      "dash": "dot" if inner is None else "solid"},
                marker={"symbol": SYMBOLS[k], "size": [0 if i % 2 or inner is None else 9 for i in range(13)],
                        "color": INK if inner is None else COLOURS[k - 1], "opacity": 1},
            )
        )  # fmt: skip
    figure.update_xaxes(title={"text": "coordinate along the direction, before"}, showgrid=True, zeroline=True)
    figure.update_yaxes(title={"text": "after the write"}, showgrid=True, zeroline=True)
    figure.update_layout(
        legend={"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"}, margin={"l": 60, "r": 210, "t": 70, "b": 56}
    )
    return titled(
        figure, "What Along(direction, write) does to a state", "whatever lies across the direction stays as it is",
        width=720, height=420,
    )  # fmt: skip
