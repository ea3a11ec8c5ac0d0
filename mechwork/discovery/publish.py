"""Everything a discovery's folder holds for people: the page, tables, circuit.json; report.json with their hashes last.

The same results give the same bytes. ``edges.csv`` has the `N_EDGES` edges of largest score, and those of the circuit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display import Displayable, page
from ..files import sha256, write_text
from ..harmless import table_text
from ..provenance import hash_json
from .found import Discovery
from .plain import dump_json
from .summary import summarise

if TYPE_CHECKING:
    import pandas

N_EDGES = 20_000
"""Rows of edges.csv, beside those of the circuit."""
PAGE, SUMMARY = "report.html", "report.json"


@dataclass(frozen=True, eq=False)
class Published(Displayable):
    """A discovery with what its page keeps for programs."""

    found: Discovery
    record: dict[str, Any]


def publish(found: Discovery, folder: Path) -> dict[str, Any]:
    """Write (again) what there is so far; returns the content of report.json."""
    if "circuit" in found.named:
        circuit = json.dumps(found.circuit.to_json(), indent=1) + "\n"
        write_text(folder / "circuit.json", circuit)
    if "scores" in found.named:
        _table(folder / "edges.csv", _edges(found))
    effects = found.estimated.to_dataframe().rename(columns={"effect": "estimate"}).drop(columns="standard_error")
    if found.measured is not None:
        exact = found.measured.to_dataframe()
        effects = exact.assign(estimate=effects["estimate"])
    _table(folder / "effects.csv", effects)
    if "curve" in found.named:
        _table(folder / "curve.csv", found.curve.to_dataframe())
    names = ("circuit.json", "edges.csv", "effects.csv", "curve.csv")
    hashes = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    data = summarise(found)
    data["request"] = dict(found.request)
    record = {"files": hashes, "request": data["request"], "numbers": hash_numbers(data)}
    write_text(folder / PAGE, page(Published(found, record)))
    data["sha256"] = {**hashes, PAGE: sha256(folder / PAGE)}
    write_text(folder / SUMMARY, dump_json(data) + "\n")
    return data


CHANGING = ("sha256",)
"""Parts of report.json that are no content of the analysis."""


def hash_numbers(data: dict[str, Any]) -> str:
    """sha256 of everything in report.json but the hashes of files; it stands in the page."""
    return hash_json(json.loads(dump_json({key: value for key, value in data.items() if key not in CHANGING})))


def _edges(found: Discovery) -> pandas.DataFrame:
    edges = found.scores.to_dataframe()
    kept = set(found.circuit.edges) if "circuit" in found.named else set()
    edges["in_circuit"] = [f"{a}->{b}" in kept for a, b in zip(edges["source"], edges["target"], strict=True)]
    if len(edges) <= N_EDGES:
        return edges
    strongest = edges["score"].abs().rank(ascending=False, method="first") <= N_EDGES
    return edges.loc[(strongest | edges["in_circuit"]).to_numpy()]


def _table(file: Path, frame: pandas.DataFrame) -> None:
    write_text(file, table_text(frame))
