"""Two views of the same kind, subtracted: what is where, in both, and by how much it moved."""

from __future__ import annotations

from typing import Any


def subtract_views(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """B less A of two answers of one view gesture (lens, attention, direct shares, features), as JSON values.

    Lens: the most probable word in each state, and how much more probable B's has become.
    """
    if "pattern" in b:
        rows = zip(a["pattern"], b["pattern"], strict=True)
        return {"head": b["head"], "pattern": [[y - x for x, y in zip(*row, strict=True)] for row in rows]}
    if "places" in b:
        return {"column": b["column"], "places": b["places"], "a": _first(a), "b": _first(b)}
    if "features" in b:
        before, now = ({row["place"]: row["value"] for row in found["features"]} for found in (a, b))
        names = [*now, *(name for name in before if name not in now)]
        rows = [{"place": name, "a": before.get(name, 0.0), "b": now.get(name, 0.0)} for name in names]
        return {"site": b["site"], "column": b["column"], "features": rows}
    values = {name: value - a["values"][name] for name, value in b["values"].items()}
    return {"what": f"difference in {b['what']}", "total": b["total"] - a["total"], "values": values}


def _first(lens: dict[str, Any]) -> list[list[Any]]:
    """The most probable word of every place at the first column, with its probability."""
    return [[words[0][0], p[0][0]] for words, p in zip(lens["words"], lens["p"], strict=True)]
