"""The first screen: a reader who has only its text must find what the model did, how much of it, and what to
beware of.
"""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from mechwork.errors import InputError
from mechwork.render import render_report
from mechwork.render.example import find_example
from mechwork.render.findings import collect
from tests.browser import OpenPage
from tests.render import synthetic


class Visible(HTMLParser):
    """The words of the first screen, in order; the picture leaves a mark where it stands."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skip = 0
        start = page.index('id="summary"')
        start = page.index(">", start) + 1
        self.feed(page[page.index("<main>") : start])
        self.before = " ".join(self.parts).split()
        self.feed(page[start : page.index("<details", start)])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "svg":
            self.parts.append("[picture]")
        self.skip += tag in ("svg", "script", "style", "details")

    def handle_endtag(self, tag: str) -> None:
        self.skip -= tag in ("svg", "script", "style", "details")

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(f"{part} " for part in self.parts).split())


def read(text: str) -> dict[str, str | None]:
    """What a reader takes from the text alone."""

    def find(pattern: str) -> str | None:
        found = re.search(pattern, text)
        return found[1].strip() if found else None

    return {
        "prompt": find(r"(When .*? to) →"),
        "answer": find(r"→ (\S+)"),
        "wrong": find(r", not (\S+)"),
        "edges": find(r"\((\d+) of 1,108\)"),
        "faithfulness": find(r"(\d\.\d\d) held-out faithfulness"),
        "interval": find(r"held-out faithfulness \(([\d.]+ to [\d.]+)\)"),
        "random": find(r"(−?\d\.\d\d) random circuits of this size"),
        "caveat": find(r"(Under zero ablation it keeps 0\.00: .*?share\.)"),
    }


def held_out() -> tuple:
    """Everything, the evaluations made on the task's test pairs."""
    sha = synthetic.task().test.pairs.fingerprint()
    facts = synthetic.provenance(task={"name": "ioi", "sha256": sha})
    results = [r for r in synthetic.everything() if "Lens" not in type(r).__name__]  # its synthetic words are random
    return tuple(replace(r, provenance=facts) if type(r).__name__ == "CircuitEvaluation" else r for r in results)


def test_a_reader_of_the_first_screen_alone_finds_everything() -> None:
    seen = Visible(render_report(synthetic.task(), *held_out()))
    said = read(seen.text)
    evaluation = synthetic.evaluation()
    low, high = evaluation.interval()
    assert said["prompt"] is not None
    assert said["prompt"].split()[:4] == ["When", "Mary", "and", "John"]
    assert (said["answer"], said["wrong"]) == ("Mary", "John")
    assert said["edges"] == str(synthetic.circuit().n_edges)
    assert said["faithfulness"] == f"{evaluation.faithfulness:.2f}"
    assert said["interval"] == f"{low:.2f} to {high:.2f}"
    assert said["random"] == "0.01"
    assert said["caveat"] is not None
    assert len(seen.text.replace("[picture]", "").split()) <= 90
    assert not seen.before
    assert seen.text.startswith("[picture]")


def test_the_reader_misses_what_is_not_there() -> None:
    """The test above can fail: without an evaluation the same reader finds no faithfulness, control or ablation."""
    said = read(Visible(render_report(synthetic.task(), synthetic.circuit())).text)
    assert said["edges"] is not None
    assert said["faithfulness"] is said["random"] is said["caveat"] is None
    assert "was not tested" in Visible(render_report(synthetic.task(), synthetic.circuit())).text


def test_a_page_of_some_results_says_what_is_still_to_come() -> None:
    page = render_report(synthetic.task(), synthetic.effects(), pending=("faithfulness", "head_study"))
    assert "Still to come: faithfulness, head study." in Visible(page).text
    assert "data-mw-pending" in render_report(synthetic.task(), pending=("effects",))
    with pytest.raises(InputError, match="at least one result"):
        render_report(synthetic.task())


def test_probabilities_come_from_the_lens_that_read_this_prompt() -> None:
    table = synthetic.lens_table()
    task = synthetic.task()
    example = find_example(collect(task, (synthetic.effects(), table)))
    tokens = task.test.pairs.clean_tokens[0].tolist()
    assert table.tokens[0].tolist() == tokens
    said = dict(table.words(-1, 0, len(tokens) - 1))
    assert (example.p_answer, example.p_wrong) == (said.get(" Mary"), said.get(" John"))
    other = replace(table, tokens=table.tokens + 1, texts=dict.fromkeys(range(40), "x"))
    assert find_example(collect(task, (synthetic.effects(), other))).p_answer is None


def test_tokens_are_shaded_by_the_largest_effect_over_layers() -> None:
    effects = synthetic.effects()
    example = find_example(collect(synthetic.task(), (effects,)))
    values = effects["resid_pre"].values
    for i, value in enumerate(example.effects):
        assert value == pytest.approx(float(values[:, i][values[:, i].abs().argmax()]))
    spans = find_example(collect(synthetic.task(), (synthetic.circuit(),)))
    assert spans.effects == (None,) * len(spans.tokens)
    assert isinstance(values, torch.Tensor)


def test_the_words_have_definitions() -> None:
    page = render_report(synthetic.task(), *synthetic.everything())
    links = set(re.findall(r'class="mw-term" href="#([\w-]+)"', page))
    assert links
    assert all(f'id="{link}"' in page for link in links)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_first_screen_fits_and_the_report_is_short(
    open_page: OpenPage, dark: bool, width: int, height: int
) -> None:
    tab = open_page(
        render_report(synthetic.task(), *held_out()), dark=dark, width=width, height=height, wait="svg text"
    )
    tab.picture(f"first-{width}{'-dark' if dark else ''}")
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    ground = tab.page.evaluate("() => getComputedStyle(document.querySelector('.mw-first-graph svg')).backgroundColor")
    assert ground == "rgba(0, 0, 0, 0)"
    if width == 390:
        return
    assert tab.page.evaluate("() => document.querySelector('.mw-first').getBoundingClientRect().bottom") <= height
    smallest = tab.page.evaluate(
        "() => Math.min(...[...document.querySelectorAll('.mw-first-graph text')].map((t) => "
        "t.getBoundingClientRect().height))"
    )
    assert smallest >= 11
    tab.page.wait_for_timeout(500)
    assert tab.page.evaluate("() => document.body.innerText.split(/\\s+/).length") <= 2500
    assert tab.page.evaluate("() => document.documentElement.scrollHeight") <= 12 * 900
