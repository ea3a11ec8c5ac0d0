"""Places in words: the one grammar, both ways, of every function, verb, file and page.

text | place | site:

- ``input``, ``embed``, ``pos_embed`` | the stream entering block 0, and its two parts | ``resid_pre.0``
- ``logits`` | the unembedding | ``logits``
- ``a3.h1``; ``a3``; ``m3``; ``l3`` | a head; a layer's attention; its MLP; both | ``z.3.1``; ``attn_out.3``;
  ``mlp_out.3``
- ``a3.h1<q>`` (``<k>``, ``<v>``: key/value head 1) | what a head reads | ``q.3.1``
- ``a3.h1[END->S1]`` | what the queries of a span or position have of its keys | ``pattern.3.1``
- ``m3.n17``, ``m3.n17+20``; ``m3.e1`` | a neuron, a set of them; an expert | ``mlp_post.3``; ``expert_out.3``
- ``z``, ``z.3``, ``z.3.1``, ``resid_pre.5`` | a kind of site; of one layer; of one head | itself

``@END`` or ``@5`` behind a place narrows it to a span or a position (where directions are meant, to a named direction).
An
edge is ``source->target``: ``a5.h1->a7.h9<q>``. ``str(parse_place(text)) == text`` for every text that is accepted.
This file
knows no model: whether a place exists is asked of the anatomy.

    >>> parse_place("a3.h1@END")
    Place(what='head', layer=3, index=(1,), side='', query='', key='', at='END')
    >>> parse_place("a3.h1").site, str(Place("z", 3, (1,)))
    (Site(kind='z', layer=3, head=1), 'z.3.1')
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .errors import InputError, UnknownNameError
from .sites import SITE_KINDS, Site

NODES = ("input", "embed", "pos_embed", "logits")
"""Places outside the blocks."""

PARTS = {
    "head": "z", "attn": "attn_out", "mlp": "mlp_out", "layer": "attn_out", "neurons": "mlp_post",
    "expert": "expert_out",
}  # fmt: skip
"""Parts of a block -> the kind of site (or word, see `WORDS`) at which they are read and written."""

SIDES = ("q", "k", "v")

RESULT = "result"
"""What a head adds to the stream: z times its rows of W_O; measured at z, so a word and no kind of site."""

EXPERT_OUT = "expert_out"
"""What an expert adds to the stream: its output times the router's weight; a share of mlp_out, so a word too."""

WORDS = (RESULT, EXPERT_OUT)
"""Places that are measured at another kind of site."""

FORMS = "a3.h1, a3.h1<q>, a3.h1@END, m3, m3.n17, m3.e1, resid_pre.5@END, z.3.1, input, logits"

_N = "(0|[1-9][0-9]{0,8})"
_COMPONENT = re.compile(rf"([aml]){_N}")
_HEAD = re.compile(rf"a{_N}\.h{_N}(?:<([qkv])>|\[([^\[\]>]+)->([^\[\]>]+)\])?")
_NEURONS = re.compile(rf"m{_N}\.n([0-9]+(?:\+[0-9]+)*)")
_EXPERT = re.compile(rf"m{_N}\.e{_N}")
_SITE = re.compile(rf"([a-z_]+)(?:\.{_N}(?:\.{_N})?)?")
_LETTERS = {"a": "attn", "m": "mlp", "l": "layer"}
_LETTER_OF = {what: letter for letter, what in _LETTERS.items()}


@dataclass(frozen=True)
class Place:
    """A place: `what` is one of `NODES`, of `PARTS`, or a kind of site; `layer` None is every layer of a kind.

    `index`: the head, the neurons or the expert. `side`: what of a head is read. `query`, `key`: spans of an attention
    edge.
    `at`: the span or the position (or the direction) behind ``@``; empty for all.
    """

    what: str
    layer: int | None = None
    index: tuple[int, ...] = ()
    side: str = ""
    query: str = ""
    key: str = ""
    at: str = ""

    def __post_init__(self) -> None:
        known = self.what in NODES or self.what in PARTS or self.what in (*SITE_KINDS, *WORDS)
        if not known:
            raise UnknownNameError("place", self.what, (*NODES, *PARTS, *SITE_KINDS, *WORDS))
        numbers = (*(() if self.layer is None else (self.layer,)), *self.index)
        if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 10**9 for n in numbers):
            raise InputError(f"layers, heads, neurons and experts count from 0; got {numbers}")
        if fault := self._fault():
            raise InputError(f"{fault}; got {self.what!r} of layer {self.layer}, index {self.index}")
        if self.side and (self.side not in SIDES or self.what != "head"):
            raise InputError(f"a side is one of {', '.join(SIDES)}, and a head's; got {self.side!r} of {self.what!r}")
        if bool(self.query) != bool(self.key) or (self.query and (self.what != "head" or self.side or self.at)):
            raise InputError(f"an attention edge is written a3.h1[query->key]; got {self.query!r} and {self.key!r}")
        for name, text, forbidden in (
            ("position", self.at, ("->",)), ("query", self.query, "[]>"), ("key", self.key, "[]>"),
        ):  # fmt: skip
            if text != text.strip() or "\n" in text or any(part in text for part in forbidden):
                raise InputError(
                    f"the {name} of a place is a span or a number, without {' '.join(forbidden)}; got {text!r}"
                )

    def _fault(self) -> str:
        """What is wrong with layer and index of `what`, in words; empty when nothing is."""
        n, single = len(self.index), self.what in ("head", "expert")
        if self.what in NODES or (self.what in SITE_KINDS and not SITE_KINDS[self.what].per_layer):
            return "this place lies outside the blocks" if n or self.layer is not None else ""
        if self.what in PARTS:
            if self.layer is None:
                return "a part of a block needs a layer"
            if single and n != 1:
                return f"{self.what} names exactly one"
            if self.what == "neurons" and (not n or len(set(self.index)) != n):
                return "neurons are named, every one once"
            return "this part has no index" if n and not single and self.what != "neurons" else ""
        if n and self.layer is None:
            return "a head needs a layer"
        return "only per-head kinds of site have a head" if n > per_head(self.what) else ""

    def __str__(self) -> str:
        at = f"@{self.at}" if self.at else ""
        if self.what == "head":
            side = f"<{self.side}>" if self.side else f"[{self.query}->{self.key}]" if self.query else ""
            return f"a{self.layer}.h{self.index[0]}{side}{at}"
        if self.what in ("neurons", "expert"):
            return f"m{self.layer}.{self.what[0]}{'+'.join(map(str, self.index))}{at}"
        if self.what in _LETTER_OF:
            return f"{_LETTER_OF[self.what]}{self.layer}{at}"
        layer = () if self.layer is None else (str(self.layer),)
        return ".".join((self.what, *layer, *map(str, self.index))) + at

    @property
    def kind(self) -> str:
        """The kind of site (or one of `WORDS`) at which the place is read and written."""
        if self.what in ("input", "pos_embed"):
            return "resid_pre"
        if self.what == "head":
            return "pattern" if self.query else self.side or "z"
        return PARTS.get(self.what, self.what)

    @property
    def head(self) -> int | None:
        """The head, where the place has one."""
        return self.index[0] if self.index and self.what not in ("neurons", "expert") else None

    @property
    def site(self) -> Site:
        """The site of the place; raises `InputError` for a kind without a layer, which is many sites."""
        if self.what in ("input", "pos_embed"):
            return Site("resid_pre", 0)
        return Site({RESULT: "z", EXPERT_OUT: "mlp_out"}.get(self.kind, self.kind), self.layer, self.head)

    def everywhere(self) -> Place:
        """The same place at every position."""
        return replace(self, at="")


def per_head(kind: str) -> bool:
    """Whether places of a kind of site have a head."""
    return kind == RESULT or (kind != EXPERT_OUT and SITE_KINDS[kind].per_head)


def parse_place(text: str) -> Place:
    """The place written as `text` (see the module's table); raises `InputError` for anything else."""
    if not isinstance(text, str):
        raise InputError(f"places are written like {FORMS}; got {text!r}")
    where, at_sign, at = text.partition("@")
    if at_sign and not at:
        raise InputError(f"behind @ stands a span or a position, as in 'a3.h1@END'; got {text!r}")
    if where in NODES:
        return Place(where, at=at)
    if match := _COMPONENT.fullmatch(where):
        return Place(_LETTERS[match[1]], int(match[2]), at=at)
    if match := _HEAD.fullmatch(where):
        side, query, key = (part or "" for part in match.groups()[2:])
        return Place("head", int(match[1]), (int(match[2]),), side, query.strip(), key.strip(), at)
    if match := _EXPERT.fullmatch(where):
        return Place("expert", int(match[1]), (int(match[2]),), at=at)
    if match := _NEURONS.fullmatch(where):
        neurons = match[2].split("+")
        if any(len(n) > 9 or (n[0] == "0" and n != "0") for n in neurons):
            raise InputError(f"neurons are written m3.n17 or m3.n17+20; got {text!r}")
        return Place("neurons", int(match[1]), tuple(map(int, neurons)), at=at)
    if match := _SITE.fullmatch(where):
        kind, *numbers = match.groups()
        if kind in SITE_KINDS or kind in WORDS:
            layer, head = (None if n is None else int(n) for n in numbers)
            return Place(kind, layer, () if head is None else (head,), at=at)
        raise UnknownNameError("kind of site", kind, (*SITE_KINDS, *WORDS))
    raise InputError(f"places are written like {FORMS}; got {text!r}")


def parse_head(text: str) -> tuple[int, int]:
    """Layer and head of ``"a3.h1"``; raises `InputError` for anything else."""
    match = _HEAD.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[3] or match[4]:
        raise InputError(f"heads are written 'a<layer>.h<head>', e.g. 'a3.h1'; got {text!r}")
    return int(match[1]), int(match[2])


def parse_node(text: str) -> Place:
    """A writer or a reader of the graph: ``input``, ``a5.h1``, ``a5.h1<q>``, ``m3``, ``logits``; `InputError`
    otherwise.
    """
    place = parse_place(text)
    if not (place.what in NODES or (place.what in ("head", "mlp", "expert") and not place.query)):
        raise InputError(f"nodes are written like input, a5.h1, a5.h1<q>, m3, m3.e1, logits; got {text!r}")
    return place


def split_edge(text: str) -> tuple[str, str]:
    """Source and target of ``"a5.h1->a7.h9<q>"``, white space left out; raises `InputError` when there is no arrow."""
    source, arrow, target = re.sub(r"\s+", "", text).partition("->")
    if not arrow or not source or not target:
        raise InputError(f"an edge is written 'source->target', e.g. 'a0.h1->m0'; got {text!r}")
    return source, target


def parse_edge(text: str) -> tuple[Place, Place]:
    """The two nodes of an edge; raises `InputError` for anything that is none."""
    source, target = split_edge(text)
    return parse_node(source), parse_node(target)


def edge_name(source: str | Place, target: str | Place) -> str:
    """``"a5.h1->a7.h9<q>"``."""
    return f"{source}->{target}"


def head_name(layer: int | str, head: int | str, side: str = "") -> str:
    """``"a3.h1"``, or with a side ``"a3.h1<q>"``."""
    return f"a{layer}.h{head}<{side}>" if side else f"a{layer}.h{head}"


def mlp_name(layer: int | str) -> str:
    """``"m3"``."""
    return f"m{layer}"


def expert_name(layer: int | str, expert: int | str) -> str:
    """``"m3.e1"``."""
    return f"m{layer}.e{expert}"


def place_name(kind: str, labels: Mapping[str, str]) -> str:
    """A cell of a result in words, from its labels by axis: ``a3.h1@END``, ``resid_pre.5@END``, ``m3.n17``.

    Axes that are no part of a place (``writer``, ``feature``) are said by their names.
    """
    if not set(labels) <= {"layer", "head", "neuron", "expert", "pos", "query_pos"}:
        return ", ".join((kind, *(f"{axis} {label}" for axis, label in labels.items())))
    layer, head = labels.get("layer"), labels.get("head")
    if "neuron" in labels:
        place = labels["neuron"]
    elif "expert" in labels:
        place = expert_name(layer or "0", labels["expert"])
    elif head is not None and kind in ("z", *SIDES):
        place = head_name(layer or "0", head, "" if kind == "z" else kind)
    else:
        place = ".".join(part for part in (kind, None if layer == kind else layer, head) if part is not None)
    at = labels.get("pos", labels.get("query_pos"))
    return place if at is None else f"{place}@{at}"


def by_kind(sites: Iterable[str | Site | Place]) -> dict[str, tuple[Place, ...]]:
    """What `sites` names, by kind of site in order; an empty tuple is every place of the kind.

    Raises `InputError` for words that are no places, and for one kind named both as a whole and in part, or twice.

    >>> {kind: len(places) for kind, places in by_kind(["resid_pre", "a3.h1", "z.4"]).items()}
    {'resid_pre': 0, 'z': 2}
    """
    if isinstance(sites, str | Site | Place) or not isinstance(sites, Iterable):
        raise InputError(f"sites is a list of places, e.g. ['resid_pre', 'a3.h1', 'resid_pre.5@END']; got {sites!r}")
    found: dict[str, list[Place]] = {}
    seen: set[str] = set()
    for entry in sites:
        place = parse_place(str(entry))
        if place.what in ("layer", "pos_embed") or place.query:
            raise InputError(
                f"sites are kinds, heads, attentions, MLPs, neurons, experts and positions of them; got {place}"
            )
        if str(place) in seen:
            raise InputError(f"every place is named once; got {entry} twice")
        seen.add(str(place))
        found.setdefault(place.kind, []).append(place)
    for kind, places in found.items():
        if len(places) > 1 and any(_whole(place) for place in places):
            raise InputError(f"{kind!r} is all of its places: name it alone, or only parts; got {_listed(places)}")
        if len({bool(place.at) for place in places}) > 1:
            raise InputError(f"places of one kind all have a position, or none; got {_listed(places)}")
    return {kind: () if len(p) == 1 and _whole(p[0]) else tuple(p) for kind, p in found.items()}


def _whole(place: Place) -> bool:
    return place.what not in PARTS and place.what != "input" and place.layer is None and not place.at


def _listed(places: Iterable[Place]) -> str:
    return ", ".join(map(str, places))
