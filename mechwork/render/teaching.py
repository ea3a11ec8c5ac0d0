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

QUESTIONS = {
    "localisation": "At which token, and from which layer on, does the model know the answer? Point at a cell before you look.",
    "graph": "Which heads must read from which others for this behaviour? Draw the arrows you expect, then compare.",
    "evaluation": "How many of the model's edges are needed to keep 90 % of the behaviour? Write down a number.",
    "robustness": "Would other prompts, or another way to ablate, give the same circuit? Which of the two matters more?",
    "heads": "Which kinds of attention head does this task need, and where should each of them look from its query?",
    "agreement": "An estimate costs one backward pass. For which kind of place do you expect it to be worst, and why?",
    "summary": "Sum up in two sentences, with numbers, what this model does for the task. Then compare.",
}

WORDS = {
    "ablation": "Replacing an activation by one without the information, to see what is lost.",
    "attention": "How a head divides its reading over earlier positions; each row sums to 1.",
    "circuit": "A subset of the edges of the model's computational graph that is claimed to do the task.",
    "CMD": "Area of |1 − faithfulness| over circuit size; 0 is best.",
    "corrupt": "The second prompt of a pair, changed so that another answer is correct.",
    "CPR": "Area under faithfulness over circuit size; higher is better.",
    "denoising": "Putting a clean value into the corrupt run: shows what is enough to bring the answer back.",
    "edge": "What one component writes, as read by one input of a later component.",
    "faithfulness": "The share of the model's metric that the circuit keeps: 0 for the empty circuit, 1 for the whole model.",
    "head": "One attention head: it chooses positions to read (queries and keys) and what to copy (values).",
    "interval": "Where the number would fall for 95 of 100 resamples of the pairs.",
    "lens": "What the model would say if its state at some place went straight to the output; a tuned lens first corrects for the layers between.",
    "logit difference": "How much more the model favours the correct over the incorrect answer, in logits.",
    "metric": "The number by which the behaviour is measured, one per pair of prompts.",
    "noising": "Putting a corrupt value into the clean run: shows what is necessary for the answer.",
    "patching": "Running the model on one prompt with some activations taken from its run on another.",
    "residual stream": "The running sum that every component reads from and writes to.",
}
"""Short explanations; each stands in the word list and as the title of the word's first mention."""

AFTER = {"summary": 1, "limits": 2, "provenance": 3}

_FOUND = re.compile(r"\b(" + "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True)) + r")(s?)\b")
_PLAIN = re.compile(r"(<p>|<li>)([^<]+)(</p>|</li>)")


def for_class(sections: Iterable[Section]) -> list[Section]:
    """The sections with the summary after the results, words explained at first mention, and the list of words at the end."""
    known: set[str] = set()
    # The summary would give every answer away, so it follows the results.
    sections = sorted(sections, key=lambda section: AFTER.get(section.name, 0))
    explained = [
        replace(section, fragments=tuple(_explain(f, known) for f in section.fragments)) for section in sections
    ]
    terms = "".join(
        f'<dt id="{_anchor(word)}">{escape(word)}</dt><dd>{escape(said)}</dd>' for word, said in WORDS.items()
    )
    return [*explained, Section("words", "Words used here", (Fragment(f'<dl class="mw-words">{terms}</dl>'),))]


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
