"""How a discovery is drawn: the report of everything found so far; what the data check says; what is still to come."""

from __future__ import annotations

from ...discovery.check import DataCheck
from ...discovery.found import Discovery, Outlook
from ...discovery.publish import Published
from ...display import draws
from ..findings import reports
from ..page.figure import figures_page
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import escape
from ..report import render_report


@draws(Published)
def render_published(published: Published) -> str:
    """The page of a folder."""
    found = published.found
    return render_report(found.task, *found.results, audience=found.audience, record=published.record)


@draws(Discovery)
def render_discovery(found: Discovery) -> str:
    """The page of a discovery that is in memory."""
    return render_report(found.task, *found.results, audience=found.audience)


@draws(DataCheck)
def render_check(check: DataCheck) -> str:
    """One page: the findings as a table."""
    return figures_page("Data check", [check_fragment(check)])


@reports(DataCheck, section="task")
def check_fragment(check: DataCheck) -> Fragment:
    """What was looked at before anything was computed."""
    columns = [
        Column("checked", [row.what for row in check.rows]),
        Column("", [row.level for row in check.rows]),
        Column("found", [row.said for row in check.rows]),
        Column("remedy", [row.remedy for row in check.rows]),
    ]
    return Fragment(table(columns, caption="Are the data fit for a discovery?"))


@reports(Outlook, section="summary")
def outlook_fragment(outlook: Outlook) -> Fragment:
    """What this page does not show yet."""
    stages = ", ".join(row.stage for row in outlook.rows)
    return Fragment(f"<p><b>Still to come:</b> {escape(stages)}. This page is written again as stages finish.</p>")
