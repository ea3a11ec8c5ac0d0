"""Examples of the six classic tasks: a clean prompt, its corrupt twin, and the right and wrong next words.

A sampler is a function ``(rng, lexicon) -> Example``. Clean and corrupt prompt differ in words that are one token each,
so they have equal length; `correct` and `incorrect` are the texts of next tokens (with the leading space where there is
one). The example's `template` is the raw template, by which accuracies are reported.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ... import bundled
from ...errors import UnknownNameError
from .lexicon import Lexicon, Split
from .templates import Filled, exchange, fill


@dataclass(frozen=True)
class Example:
    """One clean/corrupt pair of a task; spans are half-open character ranges, named by slot."""

    task: str
    template: str
    clean: Filled
    corrupt: Filled
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]


@cache
def task_data(task: str) -> dict[str, Any]:
    """The content of ``data/tasks/TASK.json``."""
    return bundled.load_json("tasks", f"{task}.json")


def _sentence(text: str, before: str) -> str:
    """`text` as it goes on after `before`: capitalised after a full stop."""
    return text[0].upper() + text[1:] if before.endswith(".") else text


@cache
def templates(task: str, split: Split) -> tuple[str, ...]:
    """The task's templates of one split; for IOI's training split, every opening x agent x action."""
    table = task_data(task)["templates"]
    if split == "all":
        return tuple(t for part in ("train", "validation", "test") for t in templates(task, part))
    if task == "ioi" and split == "train":
        parts = table["train"]
        ends = [f"{agent} {action}" for agent in parts["agents"] for action in parts["actions"]]
        return tuple(f"{opening} {_sentence(end, opening)}" for opening in parts["openings"] for end in ends)
    return tuple(table[split])


def scenery(rng: random.Random, lexicon: Lexicon) -> dict[str, str]:
    """Values for the slots that only decorate: places, objects, roles, adjectives."""
    first_place, second_place = rng.sample(lexicon.places, 2)
    first, second = rng.sample(lexicon.objects, 2)
    return {
        "place": first_place, "place2": second_place, "object": first, "object2": second,
        "role": rng.choice(lexicon.roles), "adjective": rng.choice(lexicon.adjectives),
    }  # fmt: skip


def ioi_example(rng: random.Random, lexicon: Lexicon, template: str | None = None, corruption: str = "io") -> Example:
    """The corrupt prompt repeats the answer (``"io"``) or a third name (``"third_name"``) in place of S2."""
    given = template is not None
    template = template or rng.choice(templates("ioi", lexicon.split))
    if not given and lexicon.split == "train" and rng.random() < task_data("ioi")["templates"]["train"]["leads_share"]:
        template = f"{rng.choice(task_data('ioi')['templates']['train']['leads'])} {template}"
    answer, subject, third, fourth, stranger = rng.sample(lexicon.names, 5)
    values = scenery(rng, lexicon)
    values |= {"IO": answer, "S1": subject, "S2": subject, "C": third, "D": fourth}
    if rng.random() < 0.3:
        values["D"] = third
    arranged = exchange(template, "IO", "S1") if rng.random() < 0.5 else template
    clean = fill(arranged, values)
    corrupt = fill(arranged, values | {"S2": answer if corruption == "io" else stranger})
    return Example("ioi", template, clean, corrupt, (f" {answer}",), (f" {subject}",))


def greater_than_example(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
    """The corrupt prompt begins in year 01 of the century, so that every later year is possible."""
    words = task_data("greater_than")["words"]
    span = range(words["first_year"], words["last_year"] + 1)
    year = rng.choice(span)
    template = template or rng.choice(templates("greater_than", lexicon.split))
    values = {"NOUN": rng.choice(lexicon.events), "XX": rng.choice(lexicon.centuries)}
    while not (lexicon.two_tokens(values["XX"], year) and lexicon.two_tokens(values["XX"], 1)):
        values["XX"], year = rng.choice(lexicon.centuries), rng.choice(span)
    values["YY"] = f"{year:02d}"
    late = tuple(f"{y:02d}" for y in range(year + 1, 100))
    early = tuple(f"{y:02d}" for y in range(year + 1))
    return Example("greater_than", template, fill(template, values), fill(template, values | {"YY": "01"}), late, early)


def pronoun_example(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
    """The corrupt prompt has a name of the other gender."""
    answers = task_data("pronoun")["answers"]
    pools = {"female": lexicon.female, "male": lexicon.male}
    right, wrong = rng.sample(("female", "male"), 2)
    template = template or rng.choice(templates("pronoun", lexicon.split))
    values = scenery(rng, lexicon) | {"NAME": rng.choice(pools[right])}
    other = values | {"NAME": rng.choice(pools[wrong])}
    return Example(
        "pronoun",
        template,
        fill(template, values),
        fill(template, other),
        (f" {answers[right]}",),
        (f" {answers[wrong]}",),
    )


def agreement_example(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
    """The corrupt prompt has the subject in the other number; the noun in between is singular or plural at random."""
    answers = task_data("agreement")["answers"]
    template = template or rng.choice(templates("agreement", lexicon.split))
    subject, attractor = rng.sample(lexicon.nouns, 2)
    number = rng.randrange(2)
    values = scenery(rng, lexicon) | {"adjective": rng.choice(lexicon.thing_adjectives)}
    values |= {"NOUN": subject[number], "ATTRACTOR": attractor[rng.randrange(2)]}
    verbs = [tuple(f" {verb}" for verb in answers[kind]) for kind in ("singular", "plural")]
    corrupt = fill(template, values | {"NOUN": subject[1 - number]})
    return Example("agreement", template, fill(template, values), corrupt, verbs[number], verbs[1 - number])


def docstring_example(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
    """The corrupt prompt has another argument in the answer's place of the signature."""
    template = template or rng.choice(templates("docstring", lexicon.split))
    names = rng.sample(lexicon.arguments, 7)
    values = dict(zip(("A", "B", "ANSWER", "D", "E", "F"), names, strict=False))
    values |= {"A2": values["A"], "B2": values["B"], "D2": values["D"], "FUNC": rng.choice(lexicon.functions)}
    values |= {slot: rng.choice(lexicon.descriptions) for slot in ("W1", "W2", "W3", "W4", "W5", "W6")}
    corrupt = fill(template, values | {"ANSWER": names[6]})
    return Example("docstring", template, fill(template, values), corrupt, (f" {values['ANSWER']}",), (f" {names[6]}",))


def induction_example(
    rng: random.Random,
    lexicon: Lexicon,
    template: str | None = None,
    length: int | None = None,
    again: int | None = None,
) -> Example:
    """A list of `length` words and its first `again` words once more; spans FIRST, ANSWER, LAST.

    LAST is the final word, FIRST its first occurrence, ANSWER the word after that. The corrupt prompt ends in another
    word of the list. By default `length` is 5 to 12 and `again` anything from 1 to ``length - 1``.
    """
    template = template or rng.choice(templates("induction", lexicon.split))
    n = length or rng.randint(5, 12)
    k = again or rng.randint(1, n - 1)
    words = rng.sample(lexicon.words, n)
    other = rng.choice([j for j in range(n - 1) if j != k - 1])
    head, rest = template.split("{WORDS}")
    parts = [f" {{w{j}}}" for j in range(n)]
    parts[k - 1], parts[k] = " {FIRST}", " {ANSWER}"
    repeat = "".join(f" {{r{j}}}" for j in range(k - 1)) + " {LAST}"
    detailed = head + "".join(parts) + rest.replace("{AGAIN}", repeat)
    values = {f"w{j}": w for j, w in enumerate(words)} | {f"r{j}": w for j, w in enumerate(words)}
    values |= {"FIRST": words[k - 1], "ANSWER": words[k], "LAST": words[k - 1]}
    clean, corrupt = fill(detailed, values), fill(detailed, values | {"LAST": words[other]})
    return Example("induction", template, clean, corrupt, (f" {words[k]}",), (f" {words[other + 1]}",))


Sampler = Callable[[random.Random, Lexicon], Example]

SAMPLERS: Mapping[str, Sampler] = {
    "ioi": ioi_example,
    "greater_than": greater_than_example,
    "pronoun": pronoun_example,
    "agreement": agreement_example,
    "docstring": docstring_example,
    "induction": induction_example,
}


def draw_example(task: str, rng: random.Random, lexicon: Lexicon) -> Example:
    """One example of the named task."""
    if task not in SAMPLERS:
        raise UnknownNameError("task", task, SAMPLERS)
    return SAMPLERS[task](rng, lexicon)
