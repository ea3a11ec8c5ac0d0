"""The report for a class: a question before each result, and the words of the field explained where they first stand.

Questions cover the results until the reader has made a prediction; without scripts and on paper nothing is covered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from .page.page import Fragment
from .page.text import escape
from .sections import Section
from .words import SPAN_WORDS, WORDS

QUESTIONS = {
    "graph": "Which heads must read from which others for this behaviour? Draw the arrows you expect, then compare.",
    "evaluation": "How many of the model's edges are needed to keep 90 % of the behaviour? Write down a number.",
    "robustness": "Would other prompts, or another way to ablate, give the same circuit? Which of the two matters "
    "more?",
    "heads": "Which kinds of attention head does this task need, and where should each of them look from its query?",
    "localisation": "At which token, and from which layer on, does the model know the answer? Point at a cell before "
    "you look.",
    "agreement": "An estimate costs one backward pass. For which kind of place do you expect it to be worst, and why?",
    "summary": "Sum up in two sentences, with numbers, what this model does for the task. Then compare.",
}

AFTER = {"summary": 1, "limits": 2, "provenance": 3}

_FOUND = re.compile(r"\b(" + "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True)) + r")(s?)\b")
_PLAIN = re.compile(r"(<p>|<li>)([^<]+)(</p>|</li>)")


def for_class(sections: Iterable[Section], terms: str) -> list[Section]:
    """The sections with the summary after the results, words explained at first mention, and the list of words at the
    end.
    """
    # The summary would give every answer away, so it follows the results.
    sections = sorted(sections, key=lambda section: AFTER.get(section.name, 0))
    linked = "".join(fragment.body for section in sections for fragment in section.fragments)
    known = {word for word in WORDS if f'href="#{_anchor(word)}"' in linked}
    explained = [
        replace(section, fragments=tuple(_explain(f, known) for f in section.fragments)) for section in sections
    ]
    return [*explained, Section("words", "Words used here", (Fragment(terms),))]


def definitions(*, spans: bool) -> str:
    """The list of words, each with its line; with `spans` also what names like ``S2+`` stand for."""
    rows = "".join(
        f'<dt id="{_anchor(word)}">{escape(word)}</dt><dd>{escape(said)}</dd>' for word, said in WORDS.items()
    )
    if spans:
        rows += f'<dt id="word-spans">IO, S1, S2, S2+, END</dt><dd>{escape(SPAN_WORDS)}</dd>'
    return f'<dl class="mw-words">{rows}</dl>'


def _explain(fragment: Fragment, known: set[str]) -> Fragment:
    """Links the first mention of each word, in paragraphs and items that are plain text."""

    def link(found: re.Match[str]) -> str:
        word = found[1]
        if word in known:
            return found[0]
        known.add(word)
        return f'<a class="mw-term" href="#{_anchor(word)}" title="{escape(WORDS[word])}">{found[0]}</a>'

    def paragraph(found: re.Match[str]) -> str:
        return f"{found[1]}{_FOUND.sub(link, found[2])}{found[3]}"

    return replace(fragment, body=_PLAIN.sub(paragraph, fragment.body))


def _anchor(word: str) -> str:
    return f"word-{word.lower().replace(' ', '-')}"
