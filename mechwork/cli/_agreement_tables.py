"""The page of ``mechwork agreement --out``: Markdown, made of the studies alone, the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..circuits.testing.small import EdgeStudy
    from ..patching.study import AgreementStudy

Facts = Mapping[str, Mapping[str, Any]]


def page(study: AgreementStudy | None, edges: EdgeStudy | None, facts: Facts, left_out: Sequence[str]) -> str:
    """What was run, the means over all cases, each task's own means, and the edges."""
    parts = [] if study is None else _effects(study, facts)
    parts += [f"Left out: {line}" for line in left_out]
    if edges is not None:
        parts += [*([_title(edges.provenance["model"])] if study is None else []), *_edges(edges, facts)]
    return "\n\n".join(parts) + "\n"


def _title(model: Mapping[str, Any]) -> str:
    origin = "".join(f", {key} {value}" for key, value in model.get("origin", {}).items())
    return f"{model['name']} ({model['anatomy']['architecture']}, {model['dtype']}{origin})"


def _effects(study: AgreementStudy, facts: Facts) -> list[str]:
    settings = study.provenance
    model = settings["model"]
    sample = f"{settings['n_places']} random places" if settings["n_places"] else "every place"
    return [
        f"# Estimated against measured effects: {model['name']}",
        (
            f"{_title(model)}, {len(study.tasks)} cases of {settings['tasks'][0]['n']} pairs, "
            f"{settings['direction']}, {sample} of each kind, seed {settings['seed']}."
        ),
        _cases(study.tasks, facts),
        *_means(study),
        *_by_task(study, facts),
    ]


def edges_text(edges: EdgeStudy) -> str:
    """The edges for a terminal, with CPU seconds."""
    width = max(len(row.task) for row in edges.rows)
    head = f"{'task':<{width}}  {'edges by':<12}" + "".join(f"{f'{share:.1%}':>8}" for share in edges.shares)
    lines = ["Faithfulness of circuits on held-out pairs, by share of the edges", ""]
    lines += [f"{head}{'CMD':>8}{'log CMD':>8}{'CPU s':>8}"]
    for row in edges.rows:
        values = "".join(f"{value:8.3f}" for value in row.faithfulness)
        areas = f"{row.cmd:8.3f}{row.cmd_log:8.3f}{row.seconds:8.1f}"
        lines.append(f"{row.task:<{width}}  {row.preset:<12}{values}{areas}")
    return "\n".join(lines)


def _cases(names: Iterable[str], facts: Facts) -> str:
    rows = [[name, f"{facts[name]['accuracy']:.2f}", _code(str(facts[name]["template"]))] for name in names]
    return _table(["case", "accuracy", "template"], rows)


def _means(study: AgreementStudy) -> list[str]:
    """One table per number: kinds of site down, estimators across; the best of each row in bold."""
    means = {(one.site, one.rules): one for one in study.means()}
    costs = ["cost in F", *(str(means[study.sites[0], rules].cost) for rules in study.rules)]
    places = {site: [study.rows[task, site, study.rules[0]] for task in study.tasks] for site in study.sites}
    parts = ["## Means over all cases", "95 % bootstrap intervals over cases; F: one forward of the same pairs."]
    parts.append(
        _table(
            ["kind", "places measured", "of them over 1 % of the gap", "places that can have an effect"],
            [[site, *(str(sum(getattr(r, name) for r in rows)) for name in ("n_places", "n_large", "n_live"))]
             for site, rows in places.items()],
        )
    )  # fmt: skip
    for title, name, interval, best in (
        ("Pearson correlation", "pearson", "pearson_interval", max),
        ("Spearman correlation", "spearman", "spearman_interval", max),
        ("Relative error", "relative_error", "error_interval", min),
        ("Pearson correlation without the place of largest effect", "pearson_rest", None, max),
    ):
        rows = []
        for site in study.sites:
            found = {rules: means[site, rules] for rules in study.rules}
            winner = best((v for one in found.values() if (v := getattr(one, name)) == v), default=float("nan"))
            rows.append(
                [site, *(_cell(getattr(one, name), getattr(one, interval) if interval else None, winner)
                         for one in found.values())]
            )  # fmt: skip
        parts += [f"### {title}", _table(["", *study.rules], [*rows, costs])]
    return parts


def _by_task(study: AgreementStudy, facts: Facts) -> list[str]:
    """Pearson / relative error of each task, averaged over its cases."""
    bases = list(dict.fromkeys(facts[name]["base"] for name in study.tasks))
    rows = []
    for base in bases:
        names = [name for name in study.tasks if facts[name]["base"] == base]
        for site in study.sites:
            cells = []
            for rules in study.rules:
                found = [study.rows[name, site, rules] for name in names]
                r, error = (_mean([getattr(a, what) for a in found]) for what in ("pearson", "relative_error"))
                cells.append(f"{_number(r)} / {_number(error, 2)}")
            rows.append([base, site, *cells])
    return ["## By task", "Pearson / relative error, means over the task's cases.", _table(
        ["task", "kind", *study.rules], rows)]  # fmt: skip


def _edges(edges: EdgeStudy, facts: Facts) -> list[str]:
    """Means over cases, and log-CMD of every task."""
    presets = list(dict.fromkeys(row.preset for row in edges.rows))
    bases = list(dict.fromkeys(facts[row.task]["base"] for row in edges.rows))
    cases = len({row.task for row in edges.rows})
    rows, by_task = [], []
    for preset in presets:
        found = [row for row in edges.rows if row.preset == preset]
        columns = [[row.faithfulness[i] for row in found] for i in range(len(edges.shares))]
        columns += [[row.cmd for row in found], [row.cmd_log for row in found]]
        rows.append([preset, *(_number(_mean(column)) for column in columns)])
        own = [[row.cmd_log for row in found if facts[row.task]["base"] == base] for base in bases]
        by_task.append([preset, *(_number(_mean(values)) for values in own)])
    head = ["edges by", *(f"{share:.1%}" for share in edges.shares), "CMD", "log CMD"]
    return [
        "## Edges",
        (
            f"Faithfulness on held-out pairs by share of the {edges.rows[0].n_edges:,} edges, means over {cases} "
            "cases; CMD and log CMD over these shares (0 is best)."
        ),
        _table(head, rows),
        "Log CMD of each task:",
        _table(["edges by", *bases], by_task),
    ]


def _mean(values: Sequence[float]) -> float:
    """Of the numbers among the values: a correlation does not exist where all effects are the same."""
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def _cell(value: float, interval: tuple[float, float] | None, winner: float) -> str:
    shown = f"**{_number(value)}**" if value == winner else _number(value)
    return shown if interval is None or interval[0] != interval[0] else f"{shown} [{', '.join(map(_number, interval))}]"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def _code(text: str) -> str:
    shown = text.replace("\n", " / ").replace("|", "/").replace("`", "'")
    return f"`{shown[:117] + '...' if len(shown) > 120 else shown}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
