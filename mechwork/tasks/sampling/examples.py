"""Examples of the tasks: a clean prompt, its corrupt twin, and the right and wrong next words.

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


def spread(task: str, n: int) -> tuple[str, ...]:
    """`n` templates of the task, evenly spread over all of them (fewer where it has fewer)."""
    known = templates(task, "all")
    n = min(n, len(known))
    return tuple(known[i * len(known) // n] for i in range(n))


def scenery(rng: random.Random, lexicon: Lexicon) -> dict[str, str]:
    """Values for the slots that only decorate: places, objects, roles, adjectives."""
    first_place, second_place = rng.sample(lexicon.places, 2)
    first, second = rng.sample(lexicon.objects, 2)
    return {
        "place": first_place, "place2": second_place, "object": first, "object2": second,
        "role": rng.choice(lexicon.roles), "adjective": rng.choice(lexicon.adjectives),
    }  # fmt: skip


def ioi_example(
    rng: random.Random,
    lexicon: Lexicon,
    template: str | None = None,
    corruption: str = "io",
    people: tuple[str, str] | None = None,
) -> Example:
    """The corrupt prompt repeats the answer (``"io"``) or a third name (``"third_name"``) in place of S2; `people`:
    always this IO and S.
    """
    given = template is not None
    template = template or rng.choice(templates("ioi", lexicon.split))
    if not given and lexicon.split == "train" and rng.random() < task_data("ioi")["templates"]["train"]["leads_share"]:
        template = f"{rng.choice(task_data('ioi')['templates']['train']['leads'])} {template}"
    if people is None:
        answer, subject, third, fourth, stranger = rng.sample(lexicon.names, 5)
    else:
        third, fourth, stranger = rng.sample([name for name in lexicon.names if name not in people], 3)
        answer, subject = people
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


def capitals_example(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
    """The corrupt prompt asks about a country that the clean one does not name."""
    template = template or rng.choice(templates("capitals", lexicon.split))
    asked, instead, other, third = rng.sample(lexicon.countries, 4)
    names = rng.sample(lexicon.names, 2)
    values = scenery(rng, lexicon) | {"OTHER": other[0], "OTHER2": third[0], "NAME": names[0], "NAME2": names[1]}
    clean, corrupt = (fill(template, values | {"COUNTRY": country}) for country, _ in (asked, instead))
    return Example("capitals", template, clean, corrupt, (f" {asked[1]}",), (f" {instead[1]}",))


def colored_objects_example(
    rng: random.Random, lexicon: Lexicon, template: str | None = None, n_objects: int = 3
) -> Example:
    """`n_objects` things, each of another color; spans COLOR and OBJECT (of the thing asked about), ASKED.

    The corrupt prompt asks about another thing of the list.
    """
    template = template or rng.choice(templates("colored_objects", lexicon.split))
    things = rng.sample(lexicon.things, max(n_objects, 2))
    colors = rng.sample(lexicon.colors, max(n_objects, 2))
    k = rng.randrange(n_objects)
    other = rng.choice([i for i in range(len(things)) if i != k])
    items = [f"a {{c{i}}} {{o{i}}}" for i in range(n_objects)]
    items[k] = "a {COLOR} {OBJECT}"
    listed = " and ".join(part for part in (", ".join(items[:-1]), items[-1]) if part)
    names = rng.sample(lexicon.names, 3)
    values = scenery(rng, lexicon) | {"surface": rng.choice(lexicon.surfaces)}
    values |= dict(zip(("NAME", "NAME2", "NAME3"), names, strict=True))
    values |= {f"c{i}": color for i, color in enumerate(colors)} | {f"o{i}": thing for i, thing in enumerate(things)}
    values |= {"COLOR": colors[k], "OBJECT": things[k], "ASKED": things[k]}
    detailed = template.replace("{ITEMS}", listed)
    clean, corrupt = fill(detailed, values), fill(detailed, values | {"ASKED": things[other]})
    return Example("colored_objects", template, clean, corrupt, (f" {colors[k]}",), (f" {colors[other]}",))


def in_context_example(
    rng: random.Random,
    lexicon: Lexicon,
    template: str | None = None,
    relation: str | None = None,
    shots: int = 4,
) -> Example:
    """`shots` examples of a relation and a word to apply it to; spans X1, Y1, X2, Y2, ..., QUERY.

    The corrupt prompt has the same words under another relation; its answer is the incorrect one.
    """
    template = template or rng.choice(templates("in_context", lexicon.split))
    relations = task_data("in_context")["relations"]
    relation = relation or rng.choice(relations)
    other = rng.choice([name for name in relations if name != relation])
    rows = _unrelated(rng, lexicon.translated((relation, other)), shots + 1)
    head, example = template.split("{X}")
    example = "{X}" + example
    text = head + " ".join(example.replace("{X}", f"{{X{i}}}").replace("{Y}", f"{{Y{i}}}") for i in range(1, shots + 1))
    text += " " + example[: example.index("{Y}")].rstrip().replace("{X}", "{QUERY}")
    words = {f"X{i}": row["word"] for i, row in enumerate(rows[1:], 1)} | {"QUERY": rows[0]["word"]}
    clean, corrupt = (
        fill(text, words | {f"Y{i}": row[name] for i, row in enumerate(rows[1:], 1)}) for name in (relation, other)
    )
    return Example("in_context", template, clean, corrupt, (f" {rows[0][relation]}",), (f" {rows[0][other]}",))


def _unrelated(rng: random.Random, rows: list[dict[str, str]], n: int) -> list[dict[str, str]]:
    """`n` of the rows, none the opposite of another one."""
    chosen: list[dict[str, str]] = []
    for row in rng.sample(rows, len(rows)):
        if all(row["word"] != other["antonym"] for other in chosen):
            chosen.append(row)
        if len(chosen) == n:
            break
    return chosen


Sampler = Callable[[random.Random, Lexicon], Example]

SAMPLERS: Mapping[str, Sampler] = {
    "ioi": ioi_example,
    "greater_than": greater_than_example,
    "pronoun": pronoun_example,
    "agreement": agreement_example,
    "docstring": docstring_example,
    "induction": induction_example,
    "capitals": capitals_example,
    "colored_objects": colored_objects_example,
    "in_context": in_context_example,
}


def draw_example(task: str, rng: random.Random, lexicon: Lexicon) -> Example:
    """One example of the named task."""
    if task not in SAMPLERS:
        raise UnknownNameError("task", task, SAMPLERS)
    return SAMPLERS[task](rng, lexicon)
