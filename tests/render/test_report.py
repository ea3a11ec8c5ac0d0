import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from mechwork.ablation.heads import HeadRow, HeadStudy
from mechwork.errors import InputError, StorageError, UnknownNameError
from mechwork.files import read_embedded
from mechwork.render import render_attention, render_heads, render_report, report
from mechwork.render.page.page import BUNDLES, Fragment, assemble, asset, embed_json
from mechwork.render.panels.attention import MAX_TOKENS, prompt_markup
from mechwork.render.sections import N_PAIRS, SECTIONS
from mechwork.render.teaching import QUESTIONS
from mechwork.runs.attention import AttentionPatterns
from tests.render import synthetic


class Outline(HTMLParser):
    """Section names, visible text, and every attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.sections.append(dict(attrs)["id"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            self.open.remove(tag)

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def test_the_report_has_every_section_and_fits(tmp_path: Path) -> None:
    path = report(tmp_path / "ioi.html", synthetic.task(), *synthetic.everything())
    page = path.read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.sections == list(SECTIONS)
    assert path.stat().st_size < 8_000_000
    assert page.count('data-vendor="plotly"') == 1
    assert page.count('data-vendor="circuitsvis"') == 1
    assert [file.name for file in tmp_path.iterdir()] == ["ioi.html"]


def test_the_summary_gives_numbers_with_their_interval() -> None:
    text = " ".join(Outline(render_report(synthetic.task(), *synthetic.everything())).text)
    evaluation = synthetic.evaluation()
    low, high = evaluation.interval()
    assert f"faithfulness of {evaluation.faithfulness:.2f} (95 % interval {low:.2f} to {high:.2f})" in text
    assert "random circuits of that size reach 0.01" in text
    assert "a4.h1 (+1.61 ± 0.050)" in text
    assert "name mover: a4.h1, a4.h2" in text
    assert "0.00 (zero)" in text
    page = render_report(synthetic.task(), *synthetic.everything())
    start = page.index('class="mw-said-text"')
    paragraphs = page[start : page.index("</details>", start)].split("<p>")[1:]
    assert all("mover" not in p for p in paragraphs if "mw-badge" not in p)
    assert sum("mw-badge interpretation" in p for p in paragraphs) == 1
    assert "of the model's 1,108 edges" in text


def test_limits_are_filled_in_from_the_results() -> None:
    def limits(*results: object) -> str:
        page = render_report(synthetic.task(), *results)
        return page[page.index('id="limits"') : page.index('id="provenance"')]

    full = limits(*synthetic.everything())
    for wanted in (
        "Estimated, not measured",
        "scale of every norm",
        "denoising",
        "corrupt ablation",
        "no path from the input",
        "small model",
        "interpretation",
    ):
        assert wanted in full
    noising = limits(synthetic.effects(direction="noise"))
    assert "they show what is necessary" in noising
    assert "Estimated, not measured" not in noising
    gradient = limits(replace(synthetic.scores(), rules="gradient"))
    assert "scale of every norm" not in gradient


@pytest.mark.parametrize("k", range(len(synthetic.everything())))
def test_any_single_result_makes_a_report(k: int) -> None:
    outline = Outline(render_report(synthetic.task(), synthetic.everything()[k]))
    assert {"summary", "task", "limits", "provenance"} <= set(outline.sections)


def test_scripts_that_are_not_needed_are_left_out() -> None:
    page = render_report(synthetic.task(), synthetic.circuit())
    assert len(page) < 400_000


def test_differing_tokens_are_marked_in_the_pairs() -> None:
    page = render_report(synthetic.task(), synthetic.circuit())
    rows = page[page.index("mw-pairs") : page.index("</table>", page.index("mw-pairs"))]
    assert rows.count('<mark class="mw-token" title="differs from the corrupt prompt">John</mark>') == N_PAIRS
    assert rows.count('<mark class="mw-token" title="differs from the clean prompt">Mary</mark>') == N_PAIRS


def test_own_texts_stand_in_their_section_escaped() -> None:
    page = render_report(
        synthetic.task(), synthetic.circuit(), texts={"graph": "first\n\n<b>second</b>", "heads": "to do"}
    )
    outline = Outline(page)
    assert "<b>second</b>" in " ".join(outline.text)
    assert "heads" in outline.sections
    with pytest.raises(UnknownNameError, match="nearest: graph"):
        render_report(synthetic.task(), synthetic.circuit(), texts={"grph": ""})


def test_an_existing_file_is_only_replaced_with_force(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("mine")
    with pytest.raises(InputError, match="force=True"):
        report(path, synthetic.task(), synthetic.circuit())
    assert path.read_text() == "mine"
    report(path, synthetic.task(), synthetic.circuit(), force=True)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_targets_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="does not exist"):
        report(tmp_path / "missing" / "r.html", synthetic.task(), synthetic.circuit())
    with pytest.raises(InputError, match="is a folder"):
        report(tmp_path, synthetic.task(), synthetic.circuit(), force=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as a user who can write everywhere
    with pytest.raises(InputError, match="cannot be written"):
        report(tmp_path / "r.html", synthetic.task(), synthetic.circuit())


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="No space left"):
        report(tmp_path / "r.html", synthetic.task(), synthetic.circuit())
    assert list(tmp_path.iterdir()) == []


def test_what_a_report_cannot_show_is_refused() -> None:
    with pytest.raises(InputError, match="shows Effects"):
        render_report(synthetic.task(), "a string")
    with pytest.raises(InputError, match="at least one result"):
        render_report(synthetic.task())


def test_the_machine_readable_part_is_stable_and_holds_the_circuit() -> None:
    pages = [render_report(synthetic.task(), *synthetic.everything()) for _ in range(2)]
    assert pages[0] == pages[1]
    held = read_embedded(pages[0], "mechwork-report")
    assert held is not None
    data = json.loads(held)
    assert data["circuits"][0]["edges"] == synthetic.circuit().to_json()["edges"]
    assert not any("time" in entry["provenance"] for entry in data["results"])


def test_large_data_stand_packed_and_come_back_whole() -> None:
    value = {"text": "a </script> & \u2028" * 9, "numbers": list(range(50_000))}
    small, large = embed_json({"x": 1}, name="few"), embed_json(value, name="many")
    assert len(large) < 0.6 * len(json.dumps(value))
    assert json.loads(str(read_embedded(small + large, "few"))) == {"x": 1}
    assert json.loads(str(read_embedded(small + large, "many"))) == value
    assert read_embedded(small + large, "none") is None
    cut = large.replace("</script>", "")[:-400] + "</script>"
    for damaged in (cut, large.replace("H4sI", "AAAA"), large.replace("data-packed>", "data-packed>*")):
        with pytest.raises(ValueError, match=r"packed|base64|padding"):
            read_embedded(damaged, "many")


def test_the_command_is_shown_as_one_types_it() -> None:
    text = " ".join(
        Outline(
            render_report(
                synthetic.task(),
                replace(synthetic.circuit(), provenance={"command": "/x/mechwork/cli/__main__.py discover ioi"}),
            )
        ).text
    )
    assert "mechwork discover ioi" in text
    assert "__main__" not in text.split("Everything that is recorded")[0]


def test_hostile_prompts_cannot_add_elements_or_handlers() -> None:
    task = synthetic.task(synthetic.HOSTILE)
    results = (
        synthetic.effects(texts=synthetic.HOSTILE),
        synthetic.effects(texts=synthetic.HOSTILE, estimated=True),
        synthetic.patterns(synthetic.HOSTILE),
        synthetic.circuit(),
    )
    outline = Outline(
        render_report(task, *results, title=synthetic.HOSTILE[0], texts={"summary": synthetic.HOSTILE[1]})
    )
    assert not any(name.startswith("on") for _, name, _ in outline.attributes)
    assert all(value.startswith("data:") for tag, name, value in outline.attributes if name == "src")
    assert all(value.startswith("#") for tag, name, value in outline.attributes if tag == "a" and name == "href")


def test_attention_is_checked_and_long_prompts_are_cut() -> None:
    patterns = synthetic.patterns(tuple(f" t{i}" for i in range(90)))
    page = render_attention(patterns)
    assert f"Only the first {MAX_TOKENS} of 90 tokens are drawn" in page
    with pytest.raises(InputError, match="at least one head"):
        render_attention(AttentionPatterns(("a",), (), torch.zeros(0, 1, 1), "", {}))
    with pytest.raises(InputError, match="patterns are"):
        render_attention(replace(patterns, tokens=("a",)))


def test_the_table_of_heads_keeps_measured_and_interpreted_apart() -> None:
    page = render_heads(synthetic.study())
    assert page.count('data-mw-row="a4.h1"') == 1
    assert "role (interpretation)" in page
    bare = HeadStudy((HeadRow("a0.h0", 0.1, float("nan"), None),), "logit_difference", {})
    page = render_heads(bare)
    assert "direct effect" not in page
    assert "role (interpretation)" not in page


def test_every_asset_is_read_and_short() -> None:
    for bundle in BUNDLES.values():
        for name in (*bundle.styles, *bundle.scripts):
            assert len(asset(name).splitlines()) < 400


def test_assembling_refuses_unknown_bundles_and_embeds_safely() -> None:
    with pytest.raises(UnknownNameError, match="bundle"):
        assemble("t", [Fragment("", needs=("grpah",))])
    assert "</script><" not in embed_json({"x": "</script><b>"}).removesuffix("</script>")


def test_long_prompts_are_written_around_what_differs() -> None:
    tokens = tuple(f" w{i}" for i in range(300))
    other = (*tokens[:150], " other", *tokens[151:])
    markup = prompt_markup(tokens, other, name="corrupt")
    assert '<mark class="mw-token" title="differs from the corrupt prompt">w150</mark>' in markup
    for wanted in ("w0<", "w299<", "w145<", "… 124 tokens …"):
        assert wanted in markup
    assert "w80<" not in markup


def test_for_a_class_questions_come_first_and_words_are_explained() -> None:
    page = render_report(synthetic.task(), *synthetic.everything(), audience="class")
    outline = Outline(page)
    assert outline.sections.index("summary") > outline.sections.index("heads")
    assert outline.sections[-1] == "words"
    questions = [value for _, name, value in outline.attributes if name == "data-mw-question"]
    assert list(QUESTIONS.values()) == questions
    anchors = {value for _, name, value in outline.attributes if name == "id"}
    links = [
        value for tag, name, value in outline.attributes if tag == "a" and name == "href" and value.startswith("#word-")
    ]
    assert len(set(links)) > 8
    assert {link[1:] for link in links} <= anchors
    plain = render_report(synthetic.task(), *synthetic.everything())
    assert "data-mw-question=" not in plain[: plain.index("<script>")]
    with pytest.raises(UnknownNameError, match="audience"):
        render_report(synthetic.task(), synthetic.circuit(), audience="clas")
