"""A discovery as text for people and as plain data for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..lenses import trajectory
from .pipeline import Discovery

N_HEADS, N_EDGES = 8, 10
"""How many heads and edges the text shows."""

FORMAT = 1


def summarise(found: Discovery) -> dict[str, Any]:
    """Plain JSON values; what changes from run to run is in ``provenance`` alone."""
    evaluation, curve, circuit = found.evaluation, found.curve, found.circuit
    low, high = evaluation.interval()
    return {
        "what": "mechwork report",
        "format": FORMAT,
        "task": {
            "name": found.task.name,
            "description": found.task.description,
            "citation": found.task.citation,
            "metric": found.task.metric.name,
            "n_train": len(found.task.train),
            "n_test": len(found.task.test),
            "held_out": found.held_out,
        },
        "model": found.model_name,
        "settings": asdict(found.settings),
        "accuracy": evaluation.model_accuracy,
        "baseline": {
            "train": {"clean": found.measured.baseline.clean, "corrupt": found.measured.baseline.corrupt},
            "test": {"clean": float(evaluation.model_per_example.mean()), "empty": evaluation.empty},
        },
        "circuit": {
            "n_edges": circuit.n_edges,
            "n_requested": circuit.n_requested,
            "n_edges_of_graph": circuit.space.n_edges,
            "fraction": circuit.fraction,
            "nodes": list(circuit.nodes),
            "roles": circuit.roles,
        },
        "evaluation": {
            "ablation": evaluation.ablation,
            "faithfulness": evaluation.faithfulness,
            "interval": [low, high],
            "random": list(evaluation.random),
            "accuracy": evaluation.accuracy,
        },
        "curve": {
            "fractions": list(curve.fractions),
            "sizes": list(curve.sizes),
            "faithfulness": curve.faithfulness.tolist(),
            "random": curve.random.tolist(),
            "cpr": curve.cpr,
            "cmd": curve.cmd,
            "random_cpr": curve.random_cpr,
            "random_cmd": curve.random_cmd,
        },
        "agreement": {kind: asdict(row) for kind, row in found.agreement.items()},
        "robustness": _robustness(found),
        "lenses": {
            table.lens: {
                "places": list(table.places),
                **{m: path.mean(m).tolist() for m in ("probability", "rank", "kl")},
            }
            for table in found.tables
            for path in (trajectory(table),)
        },
        "direct": dict(found.direct.top(N_EDGES)),
        "heads": [asdict(row) for row in found.study.rows],
        "edges": [{"edge": edge, "score": score} for edge, score in _strongest(found)],
        "provenance": found.scores.provenance,
    }


def _robustness(found: Discovery) -> dict[str, Any] | None:
    known = found.robustness
    if known is None:
        return None
    complete, minimal = known.completeness, known.minimality
    return {
        "ablations": {
            e.ablation: {"faithfulness": e.faithfulness, "interval": list(e.interval()), "random": list(e.random)}
            for e in known.evaluations
        },
        "stability": {
            s.over: {"jaccard": s.mean, "interval": list(s.interval()), "random": s.expected, "n": len(s.jaccards)}
            for s in known.stabilities
        },
        "complement_faithfulness": complete and complete.complement,
        "incompleteness": complete and max(*complete.random, complete.learned),
        "superfluous": list(minimal.superfluous()) if minimal else None,
    }


def render_text(found: Discovery, data: dict[str, Any]) -> str:
    """The summary of `summarise` as a page of text."""
    sections = [
        _head(found, data),
        _circuit(data),
        _curve(data),
        *_robust(data),
        _heads(found),
        _stream(found),
        _edges(found),
        _agreement(found),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections)


def _head(found: Discovery, data: dict[str, Any]) -> list[str]:
    task, train = data["task"], data["baseline"]["train"]
    pairs = (
        f"{task['n_train']} pairs to find the circuit, {task['n_test']} others, with other words and templates, to test it"
        if task["held_out"]
        else f"{task['n_train']} pairs, used both to find and to test the circuit: faithfulness is not held out"
    )
    return [
        f"{task['name']} on {data['model']}",
        *([f"  {task['description']}"] if task["description"] else []),
        f"  {pairs}",
        f"  {task['metric']}: {train['clean']:.2f} on clean prompts, {train['corrupt']:.2f} on corrupt ones",
        f"  the model answers {_percent(data['accuracy'])} of the test pairs correctly",
    ]


def _circuit(data: dict[str, Any]) -> list[str]:
    circuit, evaluation = data["circuit"], data["evaluation"]
    low, high = evaluation["interval"]
    random = ", ".join(_number(value, 3) for value in evaluation["random"])
    size = f"{circuit['n_edges']} of {circuit['n_edges_of_graph']} edges ({_percent(circuit['fraction'])})"
    found = f"{evaluation['faithfulness']:.3f} [{low:.3f}, {high:.3f}] under {evaluation['ablation']} ablation"
    return [
        f"The circuit: {size}, {len(circuit['nodes'])} components, chosen by {_method(data)}",
        f"  faithfulness {found}; random circuits of that size: {random}",
        f"  it answers {_percent(evaluation['accuracy'])} of the test pairs correctly",
    ]


def _curve(data: dict[str, Any]) -> list[str]:
    curve = data["curve"]
    rows = {
        "edges": [f"{n:d}" for n in curve["sizes"]],
        "found": [_number(value, 2) for value in curve["faithfulness"]],
        "random": [_number(value, 2) for value in curve["random"]],
    }
    lines = [f"  {name:<8}" + "".join(f"{cell:>7}" for cell in cells) for name, cells in rows.items()]
    area = f"area {curve['cpr']:.3f} (CPR; random {curve['random_cpr']:.3f}), distance from 1 {curve['cmd']:.3f} (CMD)"
    return ["Faithfulness by size", *lines, f"  {area}"]


def _robust(data: dict[str, Any]) -> list[list[str]]:
    known = data["robustness"]
    if known is None:
        return []
    lines = [
        f"  {name + ' ablation':<22} faithfulness {_number(v['faithfulness'], 3)}, random {_number(v['random'][0], 3)}"
        for name, v in known["ablations"].items()
    ]
    lines += [
        f"  {'over ' + name:<22} Jaccard {v['jaccard']:.2f} [{v['interval'][0]:.2f}, {v['interval'][1]:.2f}], random {v['random']:.2f}"
        for name, v in known["stability"].items()
    ]
    if known["complement_faithfulness"] is not None:
        lines.append(f"  {'everything else':<22} faithfulness {_number(known['complement_faithfulness'], 3)}")
    if any((v["faithfulness"] or 0) < data["evaluation"]["faithfulness"] - 0.2 for v in known["ablations"].values()):
        lines.append(
            "  (far below the faithfulness above: the circuit holds what differs between the prompts of a pair, not what both share)"
        )
    return [["Robustness", *lines]]


def _heads(found: Discovery) -> list[str]:
    table = str(found.study).splitlines()
    looks = [
        "  (END→IO: mean attention from one named span to another; S2+: the token after S2; roles are words for such numbers)"
    ]
    spans = any(row.attention for row in found.study.rows)
    lines = [f"  {line}" for line in table[: N_HEADS + 1]]
    return ["Heads, by what mean ablation takes from the metric", *lines, *(looks if spans else [])]


def _stream(found: Discovery) -> list[str]:
    """From where on the answer can be read."""
    lines = []
    for table in found.tables:
        path = trajectory(table)
        depth = path.places[int(path.depth.median())]
        half = next(
            (p for p, v in zip(path.places, path.mean("probability").tolist(), strict=True) if v >= 0.5), "nowhere"
        )
        lines.append(f"  {table.lens:<20} last word from {depth} on (median); answer above 50 % from {half} on (mean)")
    return [f"What the stream says at the last token ({len(found.tables[0].tokens)} prompts)", *lines]


def _edges(found: Discovery) -> list[str]:
    lines = [f"  {edge:<20} {score:+.3f}" for edge, score in _strongest(found)[:N_EDGES]]
    return ["Strongest edges of the circuit (score)", *lines]


def _agreement(found: Discovery) -> list[str]:
    return ["Estimated against measured effects", *(f"  {line}" for line in str(found.agreement).splitlines())]


def _strongest(found: Discovery) -> list[tuple[str, float]]:
    values, space = found.scores.values, found.circuit.space
    return [(edge, float(values[space.edge_index(edge)])) for edge in found.circuit.edges]


def _method(data: dict[str, Any]) -> str:
    settings = data["settings"]
    steps = f", {settings['ig_steps']} steps" if settings["ig_steps"] > 1 else ""
    return f"rules {settings['rules']!r}{steps}"


def _number(value: float, digits: int) -> str:
    """Fixed digits, and no minus sign before a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
