"""The grammar of places: words to values and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechwork import names
from mechwork.errors import InputError
from mechwork.names import Place, by_kind, parse_edge, parse_head, parse_place, place_name
from mechwork.sites import SITE_KINDS, Site

numbers = st.integers(0, 10**9 - 1)
marks = st.one_of(
    st.just(""),
    numbers.map(str),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1).filter(
        lambda text: text == text.strip() and "->" not in text
    ),
)
spans = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[]>\n@"), min_size=1).filter(
    lambda text: text == text.strip()
)
KINDS = [*(name for name, kind in SITE_KINDS.items() if kind.per_layer), names.RESULT]
PER_HEAD = [kind for kind in KINDS if names.per_head(kind)]


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """What a place is made of; it is made in the test, since checked code draws random numbers of its own."""
    what = draw(st.sampled_from([*names.NODES, *names.PARTS, *KINDS]))
    if what in names.NODES:
        return {"what": what, "at": draw(marks)}
    found: dict[str, Any] = {"what": what, "layer": draw(numbers)}
    if what in ("head", "expert"):
        found["index"] = (draw(numbers),)
        form = draw(st.integers(0, 2)) if what == "head" else 0
        if form == 2:
            return found | {"query": draw(spans), "key": draw(spans)}
        found["side"] = draw(st.sampled_from(names.SIDES)) if form else ""
    elif what == "neurons":
        found["index"] = tuple(draw(st.lists(numbers, min_size=1, max_size=3, unique=True)))
    elif what not in names.PARTS:
        if what in PER_HEAD and draw(st.booleans()):
            found["index"] = (draw(numbers),)
        elif draw(st.booleans()):
            found["layer"] = None
    return found | {"at": draw(marks)}


@given(fields())
def test_every_place_is_read_back_from_its_words(said: dict[str, Any]) -> None:
    place = Place(**said)
    assert parse_place(str(place)) == place


@given(st.text(max_size=20))
def test_any_text_is_a_place_with_the_same_words_or_one_clear_error(text: str) -> None:
    try:
        place = parse_place(text)
    except InputError as error:
        assert repr(text) in str(error) or "place" in str(error) or "kind of site" in str(error)  # noqa: PT017
    else:
        assert "".join(str(place).split()) == "".join(text.split())


@given(fields(), fields())
def test_edges_join_two_nodes(one: dict[str, Any], other: dict[str, Any]) -> None:
    source, target = Place(**one), Place(**other)
    nodes = [p for p in (source, target) if (p.what in names.NODES or p.what in ("head", "mlp")) and not p.query]
    if len(nodes) == 2 and all(p.at == "".join(p.at.split()) for p in nodes):  # an edge has no white space
        assert parse_edge(names.edge_name(source, target)) == (source, target)


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("a3.h1", Site("z", 3, 1)), ("a3.h1<k>", Site("k", 3, 1)), ("a3.h1[END->S1]", Site("pattern", 3, 1)),
        ("a3", Site("attn_out", 3)),
        ("m3", Site("mlp_out", 3)), ("m3.n17+20", Site("mlp_post", 3)), ("m3.e1", Site("mlp_out", 3)),
        ("input", Site("resid_pre", 0)),
        ("logits", Site("logits")), ("resid_pre.5@END", Site("resid_pre", 5)), ("z.3.1", Site("z", 3, 1)),
        ("result.2.1", Site("z", 2, 1)),
    ],
)  # fmt: skip
def test_every_form_has_its_site(text: str, site: Site) -> None:
    assert parse_place(text).site == site
    assert str(parse_place(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "a3.h", "a03.h1", "a-1.h2", "A3.H1", "a3.h1<w>", "a3.h1@", "m3.n", "m3.n1+1", "m3.x1", "resid_pre.x",
        "resid_pre.1.2",
        "z.1.2.3", "logits.1", "bananas", "a3.h1[END]", "a\u0663.h1", "a9999999999.h1", "a3.h1\n", "m1.n" + "9" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(InputError):
        parse_place(text)


@pytest.mark.parametrize(
    "said",
    [
        ("head", 1), ("head", None, (1,)), ("mlp", 1, (2,)), ("input", 0), ("z", None, (1,)), ("resid_pre", 1, (2,)),
        ("neurons", 1, (3, 3)),
        ("head", -1, (0,)), ("head", True, (0,)), ("z", 1, (0,), "q"), ("head", 1, (0,), "", "END"),
        ("head", 1, (0,), "", "a]", "b"),
        ("head", 1, (0,), "", "", "", "a->b"), ("nothing", 1),
    ],
)  # fmt: skip
def test_invalid_places_cannot_be_made(said: tuple[Any, ...]) -> None:
    with pytest.raises(InputError):
        Place(*said)


def test_heads_alone() -> None:
    assert parse_head("a10.h11") == (10, 11)
    for text in ("a10.h11<q>", "a10", "z.10.11", "a1.h2@END"):
        with pytest.raises(InputError, match="heads are written"):
            parse_head(text)


def test_sites_are_grouped_by_kind() -> None:
    found = by_kind(["resid_pre", "a3.h1", Site("z", 4), "m2"])
    assert {kind: [str(place) for place in places] for kind, places in found.items()} == {
        "resid_pre": [], "z": ["a3.h1", "z.4"], "mlp_out": ["m2"],
    }  # fmt: skip
    for bad in (
        "z",
        ["z", "z"],
        ["z", "a1.h1"],
        ["a1.h1", "a1.h2@END"],
        ["l3"],
        ["m3.e1", "expert_out"],
        ["a1.h1[END->S1]"],
    ):
        with pytest.raises(InputError):
            by_kind(bad)


@pytest.mark.parametrize(
    ("kind", "labels", "text"),
    [
        ("z", {"layer": "3", "head": "1"}, "a3.h1"),
        ("k", {"layer": "3", "pos": "END", "head": "1"}, "a3.h1<k>@END"),
        ("resid_pre", {"layer": "5", "pos": "END"}, "resid_pre.5@END"),
        ("pattern", {"layer": "2", "query_pos": "4", "head": "1"}, "pattern.2.1@4"),
        ("mlp_post", {"neuron": "m3.n17"}, "m3.n17"),
        ("embed", {"pos": "2"}, "embed@2"),
        ("embed", {"layer": "embed"}, "embed"),
    ],
)
def test_cells_of_results_are_named_so_that_they_can_be_given_back(
    kind: str, labels: dict[str, str], text: str
) -> None:
    assert place_name(kind, labels) == text
    assert str(parse_place(text)) == text
