"""The graph beside a plotly rendering of the same one: ``python -m tests.benchmarks.graph [--out DIR]``.

Two graphs: the IOI circuit of gpt2-6l, and a synthetic one of about 1,000 nodes and 30,000 edges. First paint is from
the start of the navigation to the frame after the graph's first node is in the page (the median of three loads); a step
is the mean of ten, less two idle frames. Prints a table, the sizes of the files, and how long Python takes to write the
page. ``--cpu`` prints what gestures by mouse and keyboard take of the page's main thread in milliseconds of CPU at
30,000 edges, until the frame after them is there: a busy machine changes that less than the clock. Needs chromium and
playwright.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import mechwork as mw
from mechwork.circuits import Circuit
from mechwork.render import render_graph
from mechwork.render.graph.payload import graph_payload
from tests.render import synthetic
from tests.render.plotly_graph import ABOVE, IDLE, OURS, PAINT, PLOTLY, STEP, plotly_page, unlocked

GOALS = {"first paint": 600, "threshold": 50, "pan": 120, "zoom": 120}
"""Milliseconds that are asked for in the default view."""


HAND = ("focus", "search", "zoom", "pan", "threshold")
"""Gestures by mouse and keyboard: a click on a node, a typed letter, a turn of the wheel, a drag, ``]`` or ``[``."""
CPU_ASKED = {"focus": 100, "search": 100, "zoom": 100}
"""Milliseconds that are asked for, however many of the 30,000 edges are shown."""
FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
PLACES = """() => [...document.querySelectorAll('.mw-nodes .mw-node')].filter((n) => n.style.display !== 'none')
    .map((n) => n.querySelector('.mw-shape').getBoundingClientRect())
    .filter((r) => r.left > 80 && r.right < 940 && r.top > 150 && r.bottom < 840)
    .map((r) => [r.left + r.width / 2, r.top + r.height / 2])"""
WAITED = """() => { window.waited = []; for (const kind of ['click', 'keydown', 'wheel', 'pointermove'])
    document.addEventListener(kind, (event) => requestAnimationFrame(() => setTimeout(() =>
    window.waited.push(performance.now() - event.timeStamp))), true) }"""


def measure_hand(tab: Any, shown: int | None, n: int = 6) -> dict[str, tuple[float, float, float]]:
    """Per gesture, with `shown` edges drawn (None: the first view): CPU milliseconds of the page's main thread until
    the frame after it is there, median and worst of `n`; and the median of the clock from the event to that frame.
    """
    session = tab.context.new_cdp_session(tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        found = session.send("Performance.getMetrics")["metrics"]
        return 1000 * next(row["value"] for row in found if row["name"] == "TaskDuration")

    if shown is not None:
        tab.evaluate("(n) => { const a = mechwork.graphs[0]; a.store.set({ shown: n }); a.flush() }", shown)
    tab.wait_for_timeout(2000)
    places = tab.evaluate(PLACES)
    tab.evaluate(WAITED)

    def act(name: str, i: int) -> None:
        if name == "focus":
            tab.mouse.click(*places[(1 + i * max(1, len(places) // (n + 1))) % len(places)])
        elif name == "search":
            tab.keyboard.press(("a", "1", "2", "Backspace", "Backspace", "Backspace")[i % 6])
        elif name == "zoom":
            tab.mouse.wheel(0, -120 if i % 2 else 120)
        elif name == "pan":
            tab.mouse.move(500 + 30 * (i % 2), 170)
        else:
            tab.keyboard.press("[" if i % 2 else "]")

    found = {}
    for name in HAND:
        tab.mouse.move(500, 170)
        tab.evaluate("() => mechwork.graphs[0].store.set({ focus: null, query: '' })")
        if name == "search":
            tab.locator(".mw-search").click()
        else:
            tab.evaluate("() => document.activeElement.blur()")
        if name == "pan":
            tab.mouse.down()
        tab.wait_for_timeout(1500)
        rows, waits = [], []
        for i in range(n):
            tab.evaluate("() => (window.waited = [])")
            begun = spent()
            act(name, i)
            tab.evaluate(FRAMES)
            rows.append(spent() - begun)
            waits += tab.evaluate("() => window.waited.slice(0, 1)")
            tab.wait_for_timeout(500)  # what is put off until the view rests
        if name == "pan":
            tab.mouse.up()
        found[name] = (median(rows), max(rows), median(waits) if waits else float("nan"))
    return found


def print_cpu(browser: Any, folder: Path) -> None:
    """The table of `measure_hand`, from the first view to all edges."""
    page = folder / "large.html"
    page.write_text(render_graph(synthetic.large_circuit()), encoding="utf-8")
    rows = {}
    for said, n in (("first view", None), ("2,000 drawn", 2000), ("30,000 drawn", 30_000)):
        tab = browser.new_page(viewport={"width": 1280, "height": 860})
        tab.goto(page.as_uri())
        tab.wait_for_selector(".mw-nodes .mw-node", state="attached")
        rows[said] = measure_hand(tab, n)
        tab.close()
    print("ms of CPU, median / worst (by the clock)")
    print(f"{'':<11}" + "".join(f"{said:>24}" for said in rows) + f"{'asked for':>11}")
    for name in HAND:
        cells = [f"{row[name][0]:.0f} / {row[name][1]:.0f} ({row[name][2]:.0f})" for row in rows.values()]
        print(f"{name:<11}" + "".join(f"{cell:>24}" for cell in cells) + f"{CPU_ASKED.get(name, ''):>11}", flush=True)


def measure(browser: Any, page: Path, ready: str, steps: dict[str, str]) -> dict[str, float]:
    """Milliseconds to the first paint and per step."""
    paints, found = [], {}
    for turn in range(3):
        context = browser.new_context(viewport={"width": 1280, "height": 860})
        tab = context.new_page()
        tab.add_init_script(PAINT % ready)
        tab.goto(page.as_uri())
        tab.wait_for_function("() => window.firstPaint", timeout=120_000)
        paints.append(tab.evaluate("() => window.firstPaint"))
        if turn == 0:
            tab.wait_for_timeout(500)
            tab.evaluate(IDLE)
            found = {name: tab.evaluate(STEP, step) for name, step in steps.items()}
        context.close()
    return {"first paint": median(paints), **found}


def ioi_circuit() -> Circuit:
    """As `mechwork discover ioi` finds it."""
    model = mw.load_model("gpt2-6l")
    scores = mw.score_edges(model, mw.tasks.ioi(model, n=128, seed=0).train)
    return scores.circuit(n_edges=scores.space.n_edges // 10)


def main() -> None:
    """Measure both graphs in both renderings and print."""
    from playwright.sync_api import sync_playwright

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, help="keep the pages here")
    options.add_argument("--cpu", action="store_true", help="CPU of the page's main thread at 30,000 edges")
    given = options.parse_args()
    out = given.out
    with tempfile.TemporaryDirectory() as place, sync_playwright() as browsers:
        folder = out or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if given.cpu:
            print_cpu(browser, folder)
            browser.close()
            return
        for name, circuit in (("ioi", ioi_circuit()), ("synthetic", synthetic.large_circuit())):
            begun = time.perf_counter()
            ours = render_graph(circuit)
            written = time.perf_counter() - begun
            payload = graph_payload(circuit)
            theirs = plotly_page(payload)
            pages = {"mechwork": unlocked(ours), "plotly": unlocked(theirs)}
            print(
                f"{name}: {len(payload['nodes']['name'])} nodes, {len(payload['edges']['source']):,} edges; page "
                f"{len(ours) / 1e3:,.0f} kB, written in {written:.2f} s (plotly {len(theirs) / 1e3:,.0f} kB)"
            )
            times = {}
            for kind, html in pages.items():
                path = folder / f"{name}-{kind}.html"
                path.write_text(html, encoding="utf-8")
                mine = OURS | (ABOVE if circuit.n_edges > 2000 else {})
                ready, steps = (
                    (".mw-nodes .mw-node", mine)
                    if kind == "mechwork"
                    else (".js-plotly-plot .scatterlayer .trace", PLOTLY)
                )
                times[kind] = measure(browser, path, ready, steps)
            print(f"  {'ms':<26}{'mechwork':>10}{'plotly':>10}{'asked for':>11}")
            for step, value in times["mechwork"].items():
                other = times["plotly"].get(step)
                print(
                    f"  {step:<26}{value:>10.1f}{'' if other is None else format(other, '.1f'):>10}"
                    f"{GOALS.get(step, ''):>11}",
                    flush=True,
                )
        browser.close()


if __name__ == "__main__":
    main()
