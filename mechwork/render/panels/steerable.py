"""Steerable against decodable drawn: two bars of numbers per place, and the outcome by every decoder."""

from __future__ import annotations

from ...display import draws
from ...lenses.steerable import OUTCOMES, SteerableTable
from ..page.figure import figures_page
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import fixed, plural


@draws(SteerableTable)
def render_steerable(found: SteerableTable) -> str:
    """One self-contained HTML page: every place with what steers and what can be read there, and how many places have
    each outcome.
    """
    rows = found.rows
    columns = [
        Column("task", [row.task for row in rows]),
        Column("place", [str(row.site) for row in rows]),
        Column("success", [fixed(row.success) for row in rows], numeric=True),
        Column("reached by", [row.reached_by for row in rows]),
        Column("turned", [fixed(row.turned) for row in rows], numeric=True),
        Column("random direction", [fixed(row.random) for row in rows], numeric=True),
        *(Column(name, [fixed(row.decoded[name]) for row in rows], numeric=True) for name in found.decoders),
        Column("control task", [fixed(row.control) for row in rows], numeric=True),
    ]
    counted = [
        Column("decoder", list(found.decoders)),
        *(
            Column(outcome, [str(found.counts(name)[outcome]) for name in found.decoders], numeric=True)
            for outcome in OUTCOMES
        ),
    ]
    said = (
        f"{plural(len(rows), 'place')}: success of steering with a KL of at most {found.max_kl:g} elsewhere, beside "
        "the balanced accuracy "
        "with which each decoder tells clean from corrupt held-out prompts (0.5 is chance)."
    )
    places = table(columns, caption="Every place")
    outcomes = table(counted, caption="In how many places steering and reading go together")
    return figures_page(
        "Steerable against decodable", [Fragment(f"<p>{said}</p>"), Fragment(outcomes), Fragment(places)]
    )
