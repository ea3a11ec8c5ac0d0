"""Tables of known circuits and of measured edges."""

from __future__ import annotations

from ...circuits.ground_truth import TruthTable
from ...circuits.scoring.exact_edges import EdgeEffects
from ...display import draws
from ..page.page import Fragment, assemble
from ..page.table import Column, table
from ..page.text import escape, plural, signed, words

N_EDGES = 40
"""How many edges the table of measured effects shows."""


@draws(TruthTable)
def render_truth(result: TruthTable) -> str:
    """One self-contained HTML page: AUROC per case and method, and why estimates fail."""
    names = list(result.auroc)
    columns = [
        Column("known circuit", names),
        Column("true edges", [_size(result, name) for name in names], numeric=True),
    ]
    methods = list(next(iter(result.auroc.values()), {}))
    columns += [Column(m, [_auroc(result, name, m) for name in names], numeric=True) for m in methods]
    caption = f"AUROC of rankings of edges, {result.ablation} ablation. Measured: exact. Estimated: the others"
    notes = "".join(f"<li>{escape(note.removeprefix('- '))}</li>" for note in (*result.notes(), *result.hidden_notes()))
    return _page("Known circuits", f"{table(columns, caption=caption)}<ul>{notes}</ul>")


@draws(EdgeEffects)
def render_edge_effects(effects: EdgeEffects) -> str:
    """One self-contained HTML page with the edges of largest measured effect."""
    top = effects.top(min(N_EDGES, effects.space.n_edges))
    values = [value for _, value in top]
    columns = [
        Column("edge", [name for name, _ in top]),
        Column("effect", [signed(value) for value in values], numeric=True, signs=values),
    ]
    verb = "denoising" if effects.direction == "denoise" else "noising"
    caption = (
        f"{plural(len(top), 'edge')} of {effects.space.n_edges}, largest effect first: measured {verb} effect on the "
        f"{words(effects.metric_name)}, {effects.ablation} ablation"
    )
    return _page("Measured edges", table(columns, caption=caption))


def _auroc(result: TruthTable, name: str, method: str) -> str:
    ends = result.intervals.get(name, {}).get(method)
    return f"{result.auroc[name][method]:.3f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def _size(result: TruthTable, name: str) -> str:
    exact = result.comparisons[name]["exact"]
    return f"{exact.n_true} of {exact.n_edges}"


def _page(title: str, body: str) -> str:
    markup = f'<main class="mw-page"><h1>{escape(title)}</h1>{body}</main>'
    return assemble(title, [Fragment(markup)], body_class="mw-standalone")
