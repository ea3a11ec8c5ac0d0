"""Lay two circuits over each other: how many edges and nodes they share, beside chance, and one page that shows both.

Two tasks, two methods or two models; nothing is computed but the overlap. A and B are a report or its folder, a
circuit.json, or the name of a bundled circuit ('mechwork circuits' lists them).

  mechwork compare gpt2-6l/ioi gpt2-6l/induction --html compare.html
  mechwork compare reports/ioi reports/ioi-relp --names eap-ig relp
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtefactError, InputError
from .console import Console
from .output import write_page

if TYPE_CHECKING:
    from ..circuits import Circuit

CIRCUIT = "circuit.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("first", metavar="A", help="a report or its folder, a circuit.json, or a bundled circuit")
    parser.add_argument("second", metavar="B", help="the same")
    parser.set_defaults(html=Path("compare.html"))
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="what to call them (default: where they lie)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Read both, compare, write the page, print."""
    first, second = args.names or (_name(args.first), _name(args.second))
    if first == second:
        raise InputError(
            f"two circuits are compared, under two names; got {first!r} twice. Name them with --names A B."
        )
    a, b = _read(args.first), _read(args.second)
    text, data, page = _compared({first: a, second: b})
    write_page(args, page)
    out = f"The page: {args.html} (open it in a browser; it needs no network)"
    console.result(f"{text}\n\n{out}", {**data, "out": str(args.html)})


def _compared(circuits: dict[str, Circuit]) -> tuple[str, dict[str, Any], str]:
    """Text, data and page."""
    from ..circuits.graph.compare import compare_circuits
    from ..render import GraphOptions, render_graph

    (first, a), (second, b) = circuits.items()
    size = {name: {"n_edges": c.n_edges, "n_nodes": len(c.nodes)} for name, c in circuits.items()}
    lines = [f"{name}: {row['n_edges']} edges, {row['n_nodes']} nodes" for name, row in size.items()]
    if a.space == b.space:
        found = compare_circuits(circuits)
        (overlap,) = found.overlaps
        lines += ["", str(found)]
        return "\n".join(lines), {"circuits": size, "same_graph": True, "overlap": vars(overlap)}, found.to_html()
    shared = [node for node in a.nodes if node in set(b.nodes)]
    lines += [
        "",
        (
            f"The models have different shapes ({_shape(a)}; {_shape(b)}). Nodes are joined by name, which says where "
            "a "
            "component"
        ),
        f"stands and not what it does; {len(shared)} names are in both. No overlap by chance is given for that.",
    ]
    page = render_graph(a, GraphOptions(title=f"{first} and {second}", names=(first, second)), other=b)
    return "\n".join(lines), {"circuits": size, "same_graph": False, "shared_names": shared}, page


def _shape(circuit: Circuit) -> str:
    s = circuit.space
    return f"{s.n_layers} layers of {s.n_heads} heads, {s.n_kv_heads} for keys and values"


def _name(given: str) -> str:
    """What a circuit is called unless the user says: its folder, or the name it is bundled under."""
    path = Path(given)
    return str(path.parent if path.name in (CIRCUIT, "report.html") and path.parent.name else path)


def _read(given: str) -> Circuit:
    from ..circuits import load_circuit

    path = Path(given)
    if path.suffix == ".html":
        path = path.parent
    if path.is_dir():
        if not (path / CIRCUIT).is_file():
            raise ArtefactError(f"{path} holds no {CIRCUIT}: it is not the folder of a report. Name a circuit's file.")
        path /= CIRCUIT
    return load_circuit(path)
