"""The figures of the pages: ``python -m tests.render.figures [NAME ...]`` makes notebooks/docs/assets/figures/NAME.svg.

Needs chromium and playwright; about a minute of CPU. Beside the pictures stands ``figures.json``: the hash of
each recipe and the numbers drawn, so that tests can say when a picture is older than its recipe (at once) or than what
the library finds (slow).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mechwork as mw
from mechwork import render
from tests.render import page_figures

TARGET = Path(__file__).resolve().parents[2] / "notebooks" / "docs" / "assets" / "figures"
RECORD = TARGET / "figures.json"
MOST_NUMBERS = 200


def patching() -> Any:
    """Denoising effects of the residual stream on IOI."""
    model = mw.load_model("gpt2-6l")
    effects = mw.patch(model, mw.tasks.ioi(model, n=32, seed=0), ["resid_pre"])
    return render.heatmap_figure(effects["resid_pre"])


def relevance() -> Any:
    """Estimates by relevance against what patching measures."""
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=32, seed=0)
    exact = mw.patch(model, task, ["resid_pre", "attn_out", "z"])
    return render.agreement_figure(mw.attribute(model, task, sites=exact.sites, rules="relp"), exact)


def circuits() -> Any:
    """Faithfulness over circuit size."""
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=32, seed=0)
    return render.curve_figure(mw.evaluate(model, task.test, mw.score_edges(model, task.train)), pairs="test pair")


def graph() -> Any:
    """The slide: prompt, prediction, the strongest connected edges."""
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=64, seed=0)
    scores = mw.score_edges(model, task.train)
    circuit = scores.circuit(n_edges=60)
    found = (scores, mw.evaluate(model, task.test, scores), mw.evaluate(model, task.test, circuit))
    read = (mw.patch(model, task.test, ["resid_pre"]), mw.read_lens(model, task.test))
    return mw.figure(circuit, *found, *read, task=task, n_edges=12)


def lenses() -> Any:
    """How the prediction forms through the logit lens and the tuned lens."""
    from mechwork.lenses import load_lens, trajectory

    model = mw.load_model("gpt2-6l")
    pairs = mw.tasks.ioi(model, n=32, seed=0).test
    tables = (mw.read_lens(model, pairs), mw.read_lens(model, pairs, load_lens(model)))
    return render.trajectory_figure([trajectory(table) for table in tables])


def ablation() -> Any:
    """What is lost without each head."""
    from mechwork.ablation import sweep_ablations

    model = mw.load_model("gpt2-6l")
    return render.heatmap_figure(sweep_ablations(model, mw.tasks.ioi(model, n=32, seed=0), ["heads"])["z"])


def features() -> Any:
    """Faithfulness of feature circuits over their size."""
    from mechwork import features as ft

    model = mw.load_model("gpt2-6l")
    task = mw.tasks.agreement(model, n=16, seed=0)
    coders = ft.load_features(model)
    scores = {"relp": ft.score_features(model, task.train, coders, rules="relp")}
    curves = ft.evaluate_feature_circuits(model, task.test, coders, scores, sizes=(100, 300, 1000, 3000), n_random=1)
    return render.feature_curves_figure(curves)


def edits() -> Any:
    """Where two checkpoints diverge."""
    from mechwork.comparison import find_divergence

    early, late = mw.load_model("attn-only-2l@500"), mw.load_model("attn-only-2l")
    task = mw.tasks.induction(late, n=32)
    return render.divergence_figure(find_divergence(early, late, task.test, n_null=2, names=("step 500", "step 2500")))


def directions() -> Any:
    """Steering along one direction: success against side effects, beside random directions."""
    from mechwork.directions import Examples, fit_direction, study_steering
    from mechwork.sites import Site

    model = mw.load_model("gpt2-6l")
    task = mw.tasks.pronoun(model, n=64, seed=0)
    she = int(task.pairs.correct[0, 0])
    train, test = (
        part[[i for i in range(len(part)) if int(part.pairs.correct[i, 0]) == she]] for part in (task.train, task.test)
    )
    direction = fit_direction(model, Examples.of_task(train), Site("resid_post", 4))
    others = [mw.tasks.agreement(model, n=16, seed=0).test]
    study = study_steering(
        model, test, direction, methods=["add", "mirror_below"], others=others, n_random=1, n_as_far=1
    )
    return render.steering_figure(study)


def leaderboard() -> Any:
    """Mean CMD of every preset, from the page's tables."""
    return page_figures.leaderboard_figure(("gpt2-6l", "llama-6l", "gpt2-12l"))


def scale() -> Any:
    """How long work takes on large models, from the page's table."""
    return page_figures.scale_figure("## Does it pay?")


def writes() -> Any:
    """What each write makes of the coordinate along its direction."""
    return page_figures.writes_figure()


def real_model() -> Any:
    """Agreement of every estimator with patching on SmolLM2, from the page's table."""
    return page_figures.real_model_figure("### Pearson correlation")


def referee() -> Any:
    """With how many pairs a referee decides: IOI in gpt2-6l, 100 edges."""
    from mechwork.circuits import study_power
    from mechwork.render.panels.power import power_figure

    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=96, seed=0)
    circuit = mw.score_edges(model, task.train).circuit(n_edges=100)
    return power_figure(study_power(model, task.test, circuit, sizes=(6, 8, 12, 16, 24), n_samples=30, n_random=39))


RECIPES: dict[str, Callable[[], Any]] = {
    recipe.__name__: recipe
    for recipe in (
        patching, relevance, circuits, graph, lenses, ablation, features, edits, directions, leaderboard, scale, writes,
        real_model, referee,
    )
}  # fmt: skip


def recipe_hash(name: str) -> str:
    """Of the recipe's source, with that of the module that draws the pages' tables where it is used."""
    source = inspect.getsource(RECIPES[name])
    if "page_figures." in source:
        source += inspect.getsource(page_figures)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def numbers(made: Any) -> list[float]:
    """What the picture draws, to three digits: the values of every trace, or the coordinates of a plain SVG."""
    if isinstance(made, render.StaticFigure):
        return [round(made.width), round(made.height), len(made.svg) // 1000]
    found: list[float] = []

    def take(value: Any) -> None:
        if isinstance(value, list | tuple):
            for item in value:
                take(item)
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append(float(f"{value:.3g}"))

    for trace in json.loads(made.to_json())["data"]:
        for axis in ("z", "x", "y"):
            values = trace.get(axis)
            take(values if isinstance(values, list) else [])
    return found[:MOST_NUMBERS]


def main() -> None:
    """Make what is named, or everything."""
    from playwright.sync_api import sync_playwright

    names = sys.argv[1:] or list(RECIPES)
    TARGET.mkdir(parents=True, exist_ok=True)
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    with sync_playwright() as browsers, tempfile.TemporaryDirectory() as place:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in names:
            made = RECIPES[name]()
            target = TARGET / f"{name}.svg"
            if isinstance(made, render.StaticFigure):
                made.save(target)
            else:
                target.write_text(_drawn(browser, made, Path(place) / "page.html"), encoding="utf-8")
            record[name] = {"recipe": recipe_hash(name), "numbers": numbers(made)}
            keep(record)
            print(f"{target}: {target.stat().st_size / 1e3:.0f} kB", flush=True)
        browser.close()


def keep(record: dict[str, Any]) -> None:
    """Writes the record, a line per figure's numbers."""
    text = json.dumps({name: record[name] for name in RECIPES if name in record}, indent=1)
    RECORD.write_text(
        text.replace(",\n   ", ", ").replace("[\n   ", "[").replace("\n  ]", "]") + "\n", encoding="utf-8"
    )


def _drawn(browser: Any, figure: Any, file: Path) -> str:
    """A plotly figure as SVG on white, drawn by a page of ours."""
    from mechwork.render.page.figure import figure_fragment, figures_page

    file.write_text(figures_page("figure", [figure_fragment(figure, "a figure of the pages")]), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_function("() => document.querySelector('.js-plotly-plot .main-svg')", timeout=120_000)
    size = {"width": figure.layout.width, "height": figure.layout.height}
    svg: str = page.evaluate(
        "(size) => Plotly.toImage(document.querySelector('.js-plotly-plot'), { format: 'svg', imageDataOnly: true, "
        "...size })",
        size,
    )
    page.close()
    head, body = svg.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="#ffffff"/>{body}\n'


if __name__ == "__main__":
    main()
