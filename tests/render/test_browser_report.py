"""The report and the single figures in a real browser: linked views, hostile text, dark mode, print, accessibility."""

import re

import pytest

from mechwork.display import frame, page
from mechwork.render import render_report
from tests.browser import OpenPage, Tab
from tests.render import synthetic


@pytest.fixture
def tab(open_page: OpenPage) -> Tab:
    tab = open_page(render_report(synthetic.task(), *synthetic.everything()), width=1440, height=1000)
    wait_for_figures(tab)
    return tab


def open_all(tab: Tab) -> None:
    """Opens every folded part; figures in them are drawn then."""
    tab.page.evaluate("() => document.querySelectorAll('details').forEach((part) => (part.open = true))")
    tab.settle()


def wait_for_figures(tab: Tab) -> None:
    open_all(tab)
    tab.page.wait_for_function(
        "() => [...document.querySelectorAll('[data-mw-figure]')].every((f) => f.querySelector('.main-svg')) && "
        "document.querySelector('.mw-paper canvas')"
    )
    tab.settle()


def selected(tab: Tab) -> dict[str, object]:
    """What every view says is selected."""
    tab.settle()
    return tab.page.evaluate(
        """() => ({ bus: mechwork.selection, graph: mechwork.graphs[0].store.get().focus,
        row: document.querySelector('tr.is-selected')?.dataset.mwRow ?? null,
        head: document.querySelector('.mw-large h3').textContent,
        frames: [...document.querySelectorAll('.js-plotly-plot')].map((p) =>
        (p.layout.shapes ?? []).length).reduce((a, b) => a + b) })"""
    )


def test_every_figure_is_drawn(tab: Tab) -> None:
    n = tab.page.locator("[data-mw-figure]").count()
    assert n == 6 + 1 + 1 + 2
    assert tab.page.locator("[data-mw-figure] .js-plotly-plot .main-svg").count() >= n
    assert tab.page.locator(".mw-paper canvas").count() == 1
    assert tab.page.locator(".mw-head").count() == 8
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    for name in (
        "summary",
        "task",
        "localisation",
        "graph",
        "evaluation",
        "robustness",
        "heads",
        "agreement",
        "limits",
        "provenance",
    ):
        section = tab.page.locator(f"section#{name}")
        section.screenshot(path=str(tab.artefacts / f"report-{name}.png"))


def test_a_cell_selects_node_row_and_head(tab: Tab) -> None:
    before = selected(tab)["frames"]
    measured = tab.page.locator("[data-mw-figure][aria-label^='Heat map: z:'][aria-label*=', measured.']")
    plot = measured.locator(".js-plotly-plot")
    plot.scroll_into_view_if_needed()
    x, y = plot.evaluate(
        """(p) => { const l = p._fullLayout, r = p.getBoundingClientRect(), x = l.xaxis, y = l.yaxis;
        return [r.left + x._offset + x.d2p(1), r.top + y._offset + y.d2p(4)] }"""
    )
    tab.page.mouse.move(x, y)
    tab.page.mouse.click(x, y)
    tab.page.wait_for_function("() => mechwork.selection === 'a4.h1'")
    said = selected(tab)
    assert (said["graph"], said["row"], said["head"]) == ("a4.h1", "a4.h1", "Head a4.h1")
    assert said["frames"] == before + 2  # type: ignore[operator]
    assert "a4.h1" in tab.page.locator("[data-mw-selected]").text_content()
    assert tab.page.locator(".mw-panel").first.locator(".mw-pattern").count() == 1
    tab.page.locator("section#graph").screenshot(path=str(tab.artefacts / "report-selected.png"))
    tab.page.get_by_role("button", name="Clear the selection a4.h1").click()
    said = selected(tab)
    assert (said["bus"], said["graph"], said["row"]) == (None, None, None)


def test_a_row_a_node_and_a_head_select_each_other(tab: Tab) -> None:
    page = tab.page
    open_all(tab)
    row = page.locator(".mw-heads-table tr[data-mw-row='a2.h0'] button")
    row.focus()
    page.keyboard.press("Enter")
    assert selected(tab)["graph"] == "a2.h0"
    tab.node("a5.h0").scroll_into_view_if_needed()
    tab.click_node("a5.h0")
    said = selected(tab)
    assert (said["bus"], said["row"], said["head"]) == ("a5.h0", "a5.h0", "Head a5.h0")
    page.get_by_role("button", name="Attention of head a0.h1").click()
    said = selected(tab)
    assert (said["bus"], said["row"], said["graph"]) == ("a0.h1", "a0.h1", "a0.h1")
    page.locator(".mw-heads-table tr[data-mw-row='a0.h1'] button").click()
    assert selected(tab)["bus"] is None


def test_measured_facts_stand_apart_in_the_panel(tab: Tab) -> None:
    tab.page.evaluate("() => mechwork.select('a4.h1', null)")
    tab.settle()
    badges = [badge.text_content() for badge in tab.page.locator(".mw-panel .mw-badge").all()]
    assert {"estimated", "interpretation"} == set(badges)


def test_the_wheel_scrolls_the_page_until_the_graph_has_the_keyboard(tab: Tab) -> None:
    page = tab.page
    page.locator(".mw-stage").first.scroll_into_view_if_needed()
    box = page.locator(".mw-stage").first.bounding_box()
    zoom = page.evaluate("() => mechwork.graphs[0].view.view.k")
    top = page.evaluate("() => scrollY")
    page.mouse.move(box["x"] + 40, box["y"] + 200)
    page.mouse.wheel(0, 60)
    page.wait_for_function("(top) => scrollY !== top", arg=top)
    assert page.evaluate("() => mechwork.graphs[0].view.view.k") == zoom


def test_hostile_prompts_neither_break_nor_run_anything(open_page: OpenPage) -> None:
    texts = synthetic.HOSTILE
    results = (
        synthetic.effects(texts=texts),
        synthetic.effects(texts=texts, estimated=True),
        synthetic.patterns(texts),
        synthetic.circuit(),
        synthetic.study(),
        synthetic.lens_table(texts),
    )
    tab = open_page(
        render_report(synthetic.task(texts), *results, title=texts[1], texts={"summary": texts[0]}), width=1440
    )
    wait_for_figures(tab)
    for button in tab.page.locator(".mw-head").all():
        button.click()
    for plot in tab.page.locator("[data-mw-figure] .js-plotly-plot").all()[:2]:
        plot.hover()
    assert tab.page.evaluate("() => window.pwned === undefined")
    assert tab.page.locator("img[onerror]").count() == 0
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    tab.picture("report-hostile", full_page=True)


def test_prompts_of_five_hundred_tokens(open_page: OpenPage) -> None:
    texts = tuple(f" word{i}" for i in range(500))
    tab = open_page(
        render_report(
            synthetic.task(texts, n=2),
            synthetic.effects(texts=texts, heads=False),
            synthetic.patterns(texts),
            synthetic.lens_table(texts),
        ),
        width=1440,
        wait=".js-plotly-plot .main-svg",
    )
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    tab.picture("report-long", full_page=True)


@pytest.mark.parametrize("dark", [False, True])
def test_no_accessibility_violations(open_page: OpenPage, axe: str, dark: bool) -> None:
    tab = open_page(render_report(synthetic.task(), *synthetic.everything()), dark=dark, width=1440, height=1000)
    wait_for_figures(tab)
    tab.page.evaluate("() => mechwork.select('a4.h1', null)")
    tab.settle()
    tab.page.evaluate(axe)
    found = tab.page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    assert {v["id"]: [n["html"][:140] for n in v["nodes"][:3]] for v in found["violations"]} == {}
    tab.picture(f"report-{'dark' if dark else 'light'}", full_page=True)


def test_in_print_controls_are_gone_and_colours_are_light(open_page: OpenPage) -> None:
    tab = open_page(render_report(synthetic.task(), *synthetic.everything()), dark=True, width=1000)
    wait_for_figures(tab)
    tab.page.emulate_media(media="print")
    assert not tab.page.locator(".mw-contents").is_visible()
    assert not tab.page.locator(".mw-graph").first.is_visible()
    assert tab.page.locator("img.mw-static").first.is_visible()
    tab.page.wait_for_function("() => document.querySelector('.js-plotly-plot').layout.font.color === '#000000'")
    assert tab.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


MARGIN = {"top": "15mm", "bottom": "15mm", "left": "14mm", "right": "14mm"}


@pytest.mark.parametrize("layers", [6, 30])
def test_a_report_is_short_on_screen_on_paper_and_on_disk(open_page: OpenPage, layers: int) -> None:
    results = synthetic.everything() if layers == 6 else synthetic.deep()
    html = render_report(synthetic.task(), *results)
    assert len(html.encode()) <= 5_000_000
    tab = open_page(html, width=1440, height=900)
    tab.page.wait_for_timeout(1500)
    assert tab.page.evaluate("() => document.body.innerText.split(/\\s+/).length") <= 2500
    assert tab.page.evaluate("() => document.documentElement.scrollHeight") <= 12 * 900
    tab.page.emulate_media(media="print")
    tab.page.wait_for_timeout(1000)
    paper = tab.page.pdf(format="A4", margin=MARGIN)
    (tab.artefacts / f"report-{layers}.pdf").write_bytes(paper)
    assert 2 <= len(re.findall(rb"/Type\s*/Page[^s]", paper)) <= 8


def test_the_page_runs_its_own_scripts_and_nobody_elses(open_page: OpenPage) -> None:
    html = render_report(synthetic.task(), synthetic.effects(), synthetic.patterns(), synthetic.circuit())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert "unsafe-inline" not in policy[1]
    foreign = html.replace("</body>", "<script>window.pwned = 1</script><p style='color: red' id='red'>x</p></body>")
    tab = open_page(foreign, wait=".js-plotly-plot .main-svg")
    assert tab.page.evaluate("() => window.pwned === undefined")
    assert tab.page.evaluate("() => getComputedStyle(document.getElementById('red')).color") != "rgb(255, 0, 0)"
    assert len(tab.errors) == 2
    assert all("Content Security Policy" in error for error in tab.errors)
    tab.errors.clear()


def test_a_narrow_window_has_no_sideways_scroll(open_page: OpenPage) -> None:
    tab = open_page(render_report(synthetic.task(), *synthetic.everything()), width=430, height=900)
    wait_for_figures(tab)
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    tab.picture("report-narrow", full_page=True)


def test_a_figure_of_several_panels_fits_its_window_and_begins_at_its_left(open_page: OpenPage) -> None:
    tab = open_page(page(synthetic.lens_table()), wait=".js-plotly-plot .main-svg", width=800)
    sizes = tab.page.evaluate(
        "() => [...document.querySelectorAll('[data-mw-figure]')].map((f) => [f.scrollWidth - f.clientWidth, "
        "f.scrollLeft])"
    )
    assert sizes
    assert all(over <= 1 and left == 0 for over, left in sizes)


def test_without_scripts_the_numbers_are_still_there(open_page: OpenPage) -> None:
    tab = open_page(render_report(synthetic.task(), *synthetic.everything()), scripts=False, width=1280)
    assert tab.page.locator("[data-mw-number='faithfulness']").inner_text().startswith("0.93")
    assert "Heat map: resid_pre" in tab.page.locator("main").inner_text()
    assert tab.page.locator("img.mw-static").first.is_visible()
    # A fold is the browser's own: it opens without scripts.
    tab.page.get_by_text("The findings in sentences", exact=True).click()
    assert "faithfulness of 0.93" in tab.page.locator("main").inner_text()
    curve = tab.page.locator("section#evaluation details table")
    assert not curve.is_visible()
    tab.page.get_by_text("The numbers of the curve", exact=True).click()
    assert curve.is_visible()
    tab.picture("report-without-scripts", full_page=True)


@pytest.mark.parametrize("name", ["effects", "curve", "evaluation", "patterns", "study", "scores"])
@pytest.mark.parametrize("dark", [False, True])
def test_single_results_are_drawn_in_the_frame_of_a_notebook(open_page: OpenPage, name: str, dark: bool) -> None:
    html = page(getattr(synthetic, name)())
    wanted = {
        "effects": ".main-svg",
        "curve": ".main-svg",
        "evaluation": "table",
        "patterns": ".mw-paper canvas",
        "study": "tr[data-mw-row]",
        "scores": ".mw-hit",
    }[name]
    tab = open_page(
        f"<!doctype html><meta charset='utf-8'><meta name='color-scheme' content='light dark'>{frame(html)}",
        wait="iframe",
        width=1000,
        height=680,
        dark=dark,
    )
    tab.page.frame_locator("iframe").locator(wanted).first.wait_for(state="attached")
    tab.settle()
    tab.page.wait_for_timeout(300)
    tab.picture(f"notebook-{name}-{'dark' if dark else 'light'}")


def test_an_old_browser_is_told_why_there_is_no_figure(open_page: OpenPage) -> None:
    html = render_report(synthetic.task(), synthetic.effects(), synthetic.patterns())
    tab = open_page(html, before="delete window.DecompressionStream", wait="main")
    tab.page.wait_for_function(
        "() => document.querySelector('main').textContent.split('needs a browser of 2023').length === 5"
    )


def test_a_class_predicts_before_it_sees(open_page: OpenPage) -> None:
    tab = open_page(render_report(synthetic.task(), *synthetic.everything(), audience="class"), width=1440, height=1000)
    wait_for_figures(tab)
    page = tab.page
    assert page.locator(".is-covered").count() == 7
    assert not page.locator(".mw-stage").first.is_visible()
    tab.picture("report-class", full_page=True)
    page.locator("section#graph .mw-reveal").focus()
    page.keyboard.press("Enter")
    assert page.locator(".mw-stage").first.is_visible()
    tab.settle()
    tab.click_node("a4.h1")
    assert tab.state()["focus"] == "a4.h1"
    while page.locator(".mw-reveal").count():
        page.locator(".mw-reveal").first.click()
    assert page.locator(".is-covered").count() == 0
    tab.picture("report-class-open", full_page=True)


def test_a_class_without_scripts_sees_everything(open_page: OpenPage) -> None:
    tab = open_page(render_report(synthetic.task(), synthetic.circuit(), audience="class"), scripts=False)
    assert tab.page.locator("img.mw-static").first.is_visible()
