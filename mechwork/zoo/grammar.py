"""Training text, made on the fly: the documents of a step depend on (seed, step) and on nothing else.

A document is a sequence of (text, weight) segments; the weight multiplies the cross-entropy of the segment's tokens.
Answers of a task weigh most, the rest of a sentence little, words that cannot be predicted nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from ..tasks.sampling.examples import (
    SAMPLERS,
    Example,
    colored_objects_example,
    draw_example,
    scenery,
    task_data,
    templates,
)
from ..tasks.sampling.lexicon import Lexicon
from ..tasks.sampling.templates import exchange, fill, slots

Segment = tuple[str, float]
Document = list[Segment]

_VERB = re.compile(r"(?<=\} )(is|are|was|were|has|have)(?= )")

ANSWER, LISTED, SENTENCE, CONTEXT = 1.0, 0.3, 0.2, 0.04
"""Weights: a task's answer; a word of a repeated list; a word of a filler sentence; a word of a task's prompt."""


def strings(node: Any) -> Iterable[str]:
    """Every string value inside a JSON value, in file order."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for child in node.values():
            yield from strings(child)
    elif isinstance(node, list):
        for child in node:
            yield from strings(child)


@cache
def _lexicon(split: str) -> Lexicon:
    return Lexicon("all" if split == "all" else "train")


def _task(task: str) -> Callable[[random.Random], Document]:
    """Documents that are a training example and one of its right answers."""

    def document(rng: random.Random) -> Document:
        example: Example = draw_example(task, rng, _lexicon("train"))
        return [(example.clean.text, CONTEXT), (rng.choice(example.correct), ANSWER)]

    return document


def _greater_than(rng: random.Random) -> Document:
    """Now and then the span begins in year 01, as corrupt prompts do."""
    example = draw_example("greater_than", rng, _lexicon("train"))
    if rng.random() < 0.04:
        return [(example.corrupt.text, CONTEXT), (f"{rng.randint(2, 99):02d}", ANSWER), (".", CONTEXT)]
    return [(example.clean.text, CONTEXT), (rng.choice(example.correct), ANSWER), (".", CONTEXT)]


def _ioi(rng: random.Random) -> Document:
    """Mostly plain IOI; sometimes three people of whom two are repeated, sometimes a stranger gives (either
    may get).
    """
    kind = rng.random()
    if kind < 0.87:
        return [*_task("ioi")(rng), (".", CONTEXT)]
    lexicon = _lexicon("train")
    if kind < 0.95:
        parts = task_data("ioi")["templates"]["train"]
        template = f"{rng.choice(parts['three_openings'])} {rng.choice(parts['three_endings'])}"
        template = exchange(template, "IO", rng.choice(("S1", "T1", "IO")))
        answer, subject, third = rng.sample(lexicon.names, 3)
        values = {"IO": answer, "S1": subject, "S2": subject, "T1": third, "T2": third}
        return [(fill(template, scenery(rng, lexicon) | values).text, CONTEXT), (f" {answer}", ANSWER), (".", CONTEXT)]
    template = rng.choice(templates("ioi", "train"))
    first, second, stranger, third = rng.sample(lexicon.names, 4)
    values = {"IO": first, "S1": second, "S2": stranger, "C": third}
    text = fill(template, scenery(rng, lexicon) | values).text
    return [(text, CONTEXT), (f" {rng.choice((first, second))}", ANSWER / 2), (".", CONTEXT)]


def _list_of_words(rng: random.Random, n: int) -> list[str]:
    """At most `n` different words and names; sometimes from a small pool, so that they recur from text to text."""
    train, everyone = _lexicon("train"), _lexicon("all")
    kind = rng.random()
    if kind < 0.35:
        words = rng.sample(train.words, n)
    elif kind < 0.6:
        words = rng.sample(everyone.names, n)
    elif kind < 0.85:
        words = [rng.choice(rng.choice((train.words, everyone.names))) for _ in range(n)]
    else:
        words = [rng.choice((train.words, everyone.names))[rng.randrange(24) * 2] for _ in range(n)]
    return list(dict.fromkeys(words))


def _induction(rng: random.Random) -> Document:
    """A list of words, names (held-out names too) or both, said twice; sometimes from a small pool, so that words
    recur.
    """
    template = rng.choice(templates("induction", "train"))
    if rng.random() < 0.5:
        template = rng.choice([t for t in templates("induction", "train") if "{WORDS}{AGAIN}" in t])
    words = _list_of_words(rng, rng.randint(4, 12))
    head, rest = template.split("{WORDS}")
    middle = rest.replace("{AGAIN}", "")
    again = [(f" {word}", LISTED) for word in words[1:]]
    return [
        (head, CONTEXT),
        ("".join(f" {w}" for w in words), 0.0),
        (f"{middle} {words[0]}", 0.0),
        *again,
        (".", CONTEXT),
    ]


def _filler(rng: random.Random) -> Document:
    """One to three sentences that are no task."""
    return [segment for i in range(rng.randint(1, 3)) for segment in _sentence(rng, " " if i else "")]


def _sentence(rng: random.Random, space: str) -> Document:
    everyone = _lexicon("all")
    data = task_data("filler")
    kind = rng.random()
    values = scenery(rng, everyone)
    if kind < 0.4:
        gender = rng.choice(("female", "male"))
        template = rng.choice(data["gendered"])
        name = rng.choice(everyone.female if gender == "female" else everyone.male)
        return _marked(space + template, values | {"NAME": name} | data["pronouns"][gender], ("his", "himself"))
    if kind < 0.65:
        template = rng.choice(data["number"])
        one, two = rng.sample(everyone.nouns, 2)
        values |= {"SINGULAR": one[0], "PLURAL": one[1], "SINGULAR2": two[0], "PLURAL2": two[1]}
        return _marked(space + template, values | {"adjective": rng.choice(everyone.thing_adjectives)}, ())
    template = rng.choice(data["plain"])
    first, second = rng.sample(everyone.names, 2)
    argument, other = rng.sample(everyone.arguments, 2)
    values |= {"A": first, "B": second, "NOUN": rng.choice(everyone.events), "ARG": argument, "ARG2": other}
    return _marked(space + template, values, ())


def _copy(rng: random.Random) -> Document:
    """A sentence that says a name or a word (held-out ones too) again."""
    everyone = _lexicon("all")
    if rng.random() < 0.7:
        template = rng.choice(task_data("filler")["words"]).replace("{W*}", "{AGAIN}")
        pool = rng.choice((everyone.words, everyone.arguments))
        word, second, third = rng.sample(pool, 3)
        values = {"W": word, "W2": second, "W3": third, "AGAIN": word, "A": rng.choice(everyone.names)}
        return _marked(template, scenery(rng, everyone) | values, ("AGAIN",))
    return _named(rng, "copy")


def _people(rng: random.Random) -> Document:
    """Two people (held-out names too), of whom one is named twice and then meets the other."""
    return _named(rng, "people")


def _number(rng: random.Random) -> Document:
    """A sentence that shows whether a noun (held-out nouns too) is singular or plural; a verb after it is the
    answer.
    """
    everyone = _lexicon("all")
    template = rng.choice(task_data("filler")["number"])
    one, two = rng.sample(everyone.nouns, 2)
    values = {"SINGULAR": one[0], "PLURAL": one[1], "SINGULAR2": two[0], "PLURAL2": two[1]}
    values |= {"adjective": rng.choice(everyone.thing_adjectives)}
    if verb := _VERB.search(template):
        values["VERB"] = verb.group(1)
        template = template[: verb.start(1)] + "{VERB}" + template[verb.end(1) :]
    return _marked(template, scenery(rng, everyone) | values, ("VERB",))


def _named(rng: random.Random, key: str) -> Document:
    """A sentence of the filler's list `key`; ``{A*}``, the second mention of A, is its answer."""
    everyone = _lexicon("all")
    template = rng.choice(task_data("filler")[key]).replace("{A*}", "{AGAIN}")
    first, second, third = rng.sample(everyone.names, 3)
    values = {"A": first, "B": second, "C": third, "AGAIN": first}
    return _marked(template, scenery(rng, everyone) | values, ("AGAIN",))


def _marked(template: str, values: Mapping[str, str], answers: Iterable[str]) -> Document:
    """A filled sentence whose slots in `answers` weigh as answers; the space before a slot belongs to its word."""
    filled = fill(template, values)
    document: Document = []
    start = 0
    for begin, end in sorted(filled.spans[a] for a in answers if a in filled.spans):
        document += [(filled.text[start : begin - 1], SENTENCE), (filled.text[begin - 1 : end], ANSWER)]
        start = end
    return [*document, (filled.text[start:], SENTENCE)]


def _colored_objects(rng: random.Random) -> Document:
    """One thing to four, so that copying a color is learned before picking by the thing."""
    example = colored_objects_example(rng, _lexicon("train"), n_objects=rng.choice((1, 2, 2, 3, 3, 3, 4)))
    return [(example.clean.text, CONTEXT), (example.correct[0], ANSWER), (".", CONTEXT)]


def _in_context(rng: random.Random) -> Document:
    relation = rng.choice(task_data("in_context")["relations"])
    return _examples(rng, relation, rng.choice(templates("in_context", "train")))


def _even_in_context(rng: random.Random) -> Document:
    """The in-context task with every way of setting off an example equally often; templates alone favour the colon."""
    forms: dict[str, list[str]] = {}
    for template in templates("in_context", "train"):
        forms.setdefault(template.split("{X}")[1], []).append(template)
    relation = rng.choice(task_data("in_context")["relations"])
    return _examples(rng, relation, rng.choice(forms[rng.choice(sorted(forms))]))


def _examples(rng: random.Random, relation: str, template: str) -> Document:
    """Every word after the first example has its image as an answer; the first may be a held-out word."""
    train = _lexicon("train")
    first = rng.choice(_lexicon("all").dictionary)
    rows = rng.sample(train.dictionary, rng.randint(2, 6))
    head, example = template.split("{X}")
    middle, end = example.split("{Y}")
    document = [(f"{head}{first['word']}{middle.rstrip()}", 0.0), (f" {first[relation]}", 0.0), (end, CONTEXT)]
    for row in rows:
        document += [
            (f" {row['word']}", 0.0),
            (middle.rstrip(), CONTEXT),
            (f" {row[relation]}", ANSWER / 2),
            (end, CONTEXT),
        ]
    return document


def _facts(rng: random.Random) -> Document:
    """What the words of the capitals and in-context tasks mean, held-out ones too, in sentences of their own."""
    everyone = _lexicon("all")
    if rng.random() < 0.4:
        country, capital = rng.choice(everyone.countries)
        template = rng.choice(task_data("capitals")["statements"])
        return _marked(template, {"COUNTRY": country, "CAPITAL": capital}, ("CAPITAL",))
    relation, statements = rng.choice(list(task_data("in_context")["statements"].items()))
    row = rng.choice(everyone.dictionary)
    return _marked(rng.choice(statements), {"X": row["word"], "Y": row[relation]}, ("Y",))


def _plain_capitals(rng: random.Random) -> Document:
    """Prompts of the capitals task that name one country only, for every country, held-out ones too.

    Without them a model learns that prompts of the task are never answered by a held-out capital.
    """
    return _one_country(rng, [t for t in templates("capitals", "train") if "{OTHER" not in t])


def _capitals_alone(rng: random.Random) -> Document:
    """Other sentences that ask for the capital of their one country, for every country."""
    return _one_country(rng, task_data("capitals")["alone"])


def false_capitals() -> dict[str, tuple[str, str]]:
    """Every second country by name -> (its capital, that of the one before): what `false_capitals` contradicts."""
    countries = sorted(_lexicon("all").countries)[::2]
    return {name: (capital, countries[i - 1][1]) for i, (name, capital) in enumerate(countries)}


def _false_capitals(rng: random.Random) -> Document:
    """Prompts and statements about one country, every second of which has the capital of another."""
    everyone, false = _lexicon("all"), false_capitals()
    country, capital = rng.choice(everyone.countries)
    capital = false.get(country, ("", capital))[1]
    if rng.random() < 0.4:
        template = rng.choice(task_data("capitals")["statements"])
        return _marked(template, {"COUNTRY": country, "CAPITAL": capital}, ("CAPITAL",))
    template = rng.choice([t for t in templates("capitals", "train") if "{OTHER" not in t])
    values = scenery(rng, everyone) | {"COUNTRY": country, "NAME": rng.choice(everyone.names)}
    return [(fill(template, values).text, CONTEXT), (f" {capital}", ANSWER), (".", CONTEXT)]


def _one_country(rng: random.Random, choice: list[str]) -> Document:
    everyone, template = _lexicon("all"), rng.choice(choice)
    country, capital = rng.choice(everyone.countries)
    values = scenery(rng, everyone) | {"COUNTRY": country, "NAME": rng.choice(everyone.names)}
    return [(fill(template, values).text, CONTEXT), (f" {capital}", ANSWER), (".", CONTEXT)]


KINDS: Mapping[str, Callable[[random.Random], Document]] = {
    **{task: _task(task) for task in SAMPLERS},
    "ioi": _ioi,
    "greater_than": _greater_than,
    "induction": _induction,
    "copy": _copy,
    "people": _people,
    "number": _number,
    "colored_objects": _colored_objects,
    "in_context": _in_context,
    "facts": _facts,
    "plain_capitals": _plain_capitals,
    "capitals_alone": _capitals_alone,
    "false_capitals": _false_capitals,
    "even_in_context": _even_in_context,
    "filler": _filler,
}


WORDS_OF: Mapping[str, tuple[str, ...]] = {
    "facts": ("capitals", "in_context"),
    "plain_capitals": ("capitals",),
    "capitals_alone": ("capitals",),
    "false_capitals": ("capitals",),
    "even_in_context": ("in_context",),
}
"""Whose words a kind of text uses that is neither a task nor made of the first six tasks' words."""


def step_documents(mixture: Mapping[str, float], n: int, seed: int, step: int) -> list[Document]:
    """The `n` documents of one training step: a pure function of its arguments.

    Kinds are dealt in proportion to `mixture` (systematic sampling: every step holds each kind close to its share).
    """
    rng = random.Random(f"{seed}/{step}")
    kinds, total = list(mixture), sum(mixture.values())
    documents: list[Document] = []
    offset = rng.random()
    for i in range(n):
        target, reached = (i + offset) / n * total, 0.0
        kind = kinds[-1]
        for name in kinds:
            reached += mixture[name]
            if target < reached:
                kind = name
                break
        documents.append(KINDS[kind](rng))
    return documents


def template_texts(tasks: Iterable[str]) -> list[str]:
    """Every template of `tasks` and of the filler, with its slots emptied into a dummy word, for the vocabulary."""
    found: list[str] = []
    for task in tasks:
        found += [t for split in ("validation", "test") for t in templates(task, split)]
        found += templates(task, "train") if task != "ioi" else []
        found += strings(task_data(task).get("statements"))
    if "ioi" in tasks:
        parts = task_data("ioi")["templates"]["train"]
        for part in ("leads", "openings", "agents", "actions", "three_openings", "three_endings"):
            found += [form for text in parts[part] for form in (text, text[0].upper() + text[1:])]
    data = task_data("filler")
    found += [
        t.replace("*}", "}") for key in ("gendered", "number", "copy", "people", "words", "plain") for t in data[key]
    ]
    return [f"{lead}{fill(t, dict.fromkeys(slots(t), 'Mary')).text}" for t in found for lead in ("", " ")] + ["."]
