"""A discovery as text for people and as plain data for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..lenses import trajectory
from .found import Discovery

N_HEADS, N_EDGES = 8, 10
"""How many heads and edges the text shows."""

FORMAT = 1


def summarise(found: Discovery) -> dict[str, Any]:
    """Plain JSON values, the same for the same inputs; parts that were not found yet are missing or null."""
    known = found.named
    data: dict[str, Any] = {
        "what": "mechwork report",
        "format": FORMAT,
        "task": {
            "name": found.task.name,
            "description": found.task.description,
            "citation": found.task.citation,
            "metric": found.task.metric.name,
            "n_train": len(found.task.train),
            "n_size": found.task.splits.count("size"),
            "n_test": len(found.task.test),
            "held_out": found.held_out,
        },
        "model": found.model_name,
        "settings": asdict(found.settings),
        "stages": {"done": list(found.done), "to_come": list(found.left)},
        "accuracy": found.evaluation.model_accuracy if "evaluation" in known else found["check"].accuracy,
        "check": [asdict(row) for row in found["check"].rows],
        "baseline": {"train": {"clean": found.scores.baseline.clean, "corrupt": found.scores.baseline.corrupt}},
        "provenance": found.scores.provenance,
    }
    for stage, tell in (
        ("circuit", _circuit_data), ("evaluation", _evaluation_data), ("curve", _curve_data), ("study", _heads_data),
        ("lens", _stream_data),
    ):  # fmt: skip
        if stage in known:
            data |= tell(found)
    data["agreement"] = _agreement_data(found)
    data["robustness"] = _robustness(found)
    return data


def _circuit_data(found: Discovery) -> dict[str, Any]:
    circuit, sizing = found.circuit, found["sizing"]
    return {
        "circuit": {
            "n_edges": circuit.n_edges,
            "n_requested": circuit.n_requested,
            "n_edges_of_graph": circuit.space.n_edges,
            "fraction": circuit.fraction,
            "nodes": list(circuit.nodes),
            "roles": circuit.roles,
            "why_this_size": sizing.reason,
            "sizes_tried": [asdict(row) for row in sizing.rows],
        },
        "edges": [{"edge": edge, "score": score} for edge, score in _strongest(found)],
    }


def _evaluation_data(found: Discovery) -> dict[str, Any]:
    evaluation = found.evaluation
    return {
        "evaluation": {
            "ablation": evaluation.ablation,
            "faithfulness": evaluation.faithfulness,
            "interval": list(evaluation.interval()),
            "random": list(evaluation.random),
            "accuracy": evaluation.accuracy,
            "clean": float(evaluation.model_per_example.mean()),
            "empty": evaluation.empty,
        }
    }


def _curve_data(found: Discovery) -> dict[str, Any]:
    curve = found.curve
    return {
        "curve": {
            "fractions": list(curve.fractions),
            "sizes": list(curve.sizes),
            "faithfulness": curve.faithfulness.tolist(),
            "random": [None if value != value else value for value in curve.random.tolist()],
            "cpr": curve.cpr,
            "cmd": curve.cmd,
            "random_cpr": curve.random_cpr,
            "random_cmd": curve.random_cmd,
        }
    }


def _heads_data(found: Discovery) -> dict[str, Any]:
    return {"heads": [asdict(row) for row in found["study"].rows]}


def _stream_data(found: Discovery) -> dict[str, Any]:
    return {
        "lenses": {
            table.lens: {
                "places": list(table.places),
                **{m: path.mean(m).tolist() for m in ("probability", "rank", "kl")},
            }
            for table in found.tables
            for path in (trajectory(table),)
        },
        # Of whole answers there is none: no one difference of logits is the metric.
        "direct": dict(found["direct"].top(N_EDGES)) if "direct" in found.named else {},
    }


def _agreement_data(found: Discovery) -> dict[str, Any]:
    """Of the estimates with exact effects: per site, or (screened) of the measured cells."""
    if "measured" in found.named:
        return {kind: asdict(row) for kind, row in found.estimated.agreement(found["measured"]).items()}
    if "screened" in found.named:
        return {name: asdict(found["screened"].agreement(name)) for name in ("verified", "control")}
    return {}


def _robustness(found: Discovery) -> dict[str, Any] | None:
    known = found.named
    names = [
        name for name in known if name.startswith(("under-", "stability-")) or name in ("completeness", "minimality")
    ]
    if not names:
        return None
    complete, minimal = known.get("completeness"), known.get("minimality")
    under, stable = ([known[name] for name in names if name.startswith(start)] for start in ("under-", "stability-"))
    return {
        "ablations": {
            e.ablation: {"faithfulness": e.faithfulness, "interval": list(e.interval()), "random": list(e.random)}
            for e in under
        },
        "stability": {
            s.over: {"jaccard": s.mean, "interval": list(s.interval()), "random": s.expected, "n": len(s.jaccards)}
            for s in stable
        },
        "complement_faithfulness": complete and complete.complement,
        "incompleteness": complete and max(*complete.random, complete.learned),
        "superfluous": list(minimal.superfluous()) if minimal else None,
    }


def render_text(found: Discovery, data: dict[str, Any]) -> str:
    """The summary of `summarise` as a page of text."""
    sections = [_head(found, data)]
    if "evaluation" in data:
        sections.append(_circuit(data))
    if "curve" in data:
        sections.append(_curve(data))
    sections += _robust(data)
    if "study" in found.named:
        sections.append(_heads(found))
    if found.tables:
        sections.append(_stream(found))
    if "circuit" in data:
        sections.append(_edges(found))
    if data["agreement"]:
        sections.append(_agreement(data))
    if found.left:
        sections.append([f"Still to come: {', '.join(found.left)}. The same command goes on."])
    return "\n\n".join("\n".join(lines) for lines in sections)


def _unlike(found: Discovery) -> str:
    """How the held-out pairs of a named task differ; nothing of pairs from a file, whose texts have no template."""
    kinds = [set(part.pairs.templates) for part in (found.task.train, found.task.test)]
    named = all(kinds) and "" not in kinds[0] | kinds[1] and not kinds[0] & kinds[1]
    return ", of other words and templates," if named else ""


def _head(found: Discovery, data: dict[str, Any]) -> list[str]:
    task, train = data["task"], data["baseline"]["train"]
    which = "test " if "evaluation" in data else ""
    n = found.task.pairs.n_per_question
    questions = f" ({task['n_train'] // n} and {task['n_test'] // n} questions of {n} pairs)" if n > 1 else ""
    pairs = (
        f"{task['n_train']} pairs to find the circuit, "
        + (f"{task['n_size']} others to choose its size too, " if task["n_size"] else "")
        + f"{task['n_test']} others{_unlike(found)} to test it"
        if task["held_out"]
        else f"{task['n_train']} pairs, used both to find and to test the circuit: faithfulness is not held out"
    )
    return [
        f"{task['name']} on {data['model']}",
        *([f"  {task['description']}"] if task["description"] else []),
        f"  {pairs}{questions}",
        f"  {task['metric']}: {train['clean']:.2f} on clean prompts, {train['corrupt']:.2f} on corrupt ones",
        f"  the model answers {_percent(data['accuracy'])} of the {which}pairs correctly",
        *(f"  {row['level']}: {row['said']}. {row['remedy']}" for row in data["check"] if row["level"] != "green"),
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
        f"  its size: {circuit['why_this_size']}",
    ]


def _curve(data: dict[str, Any]) -> list[str]:
    curve = data["curve"]
    rows = {
        "edges": [f"{n:d}" for n in curve["sizes"]],
        "found": [_number(value, 2) for value in curve["faithfulness"]],
        "random": ["" if value is None else _number(value, 2) for value in curve["random"]],
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
        f"  {'over ' + name:<22} Jaccard {v['jaccard']:.2f} [{v['interval'][0]:.2f}, {v['interval'][1]:.2f}], "
        f"random {v['random']:.2f}"
        for name, v in known["stability"].items()
    ]
    if known["complement_faithfulness"] is not None:
        lines.append(f"  {'everything else':<22} faithfulness {_number(known['complement_faithfulness'], 3)}")
    if "evaluation" in data and any(
        (v["faithfulness"] or 0) < data["evaluation"]["faithfulness"] - 0.2 for v in known["ablations"].values()
    ):
        lines.append(
            "  (far below the faithfulness above: the circuit holds what differs between the prompts of a pair, "
            "not what both share)"
        )
    return [["Robustness", *lines]]


def _heads(found: Discovery) -> list[str]:
    table = str(found["study"]).splitlines()
    looks = [
        "  (END→IO: mean attention from one named span to another; S2+: the token after S2; roles are words for it)"
    ]
    spans = any(row.attention for row in found["study"].rows)
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


def _agreement(data: dict[str, Any]) -> list[str]:
    lines = [f"  {'':<12}{'Pearson':>9}{'Spearman':>10}{'places':>8}"]
    for name, row in data["agreement"].items():
        lines.append(
            f"  {name:<12}{_number(row['pearson'], 3):>9}{_number(row['spearman'], 3):>10}{row['n_places']:>8}"
        )
    return ["Estimated against measured effects", *lines]


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
