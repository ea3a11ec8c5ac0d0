"""Views of the state reached, as plain JSON values: words, lens, attention, direct attribution, a sweep of patches.

Each is what a public function gives inside the changes of the state; `view_code` prints the lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..lenses import attribute_logits, read_lens
from ..lenses.readout import Readout
from ..lenses.states import lens_sites, record_states
from ..names import head_name, mlp_name
from ..patching import patch
from ..runs import record_attention
from .changes import AnyChange, SteerAfter
from .circuits import told as progress_of
from .desk import Desk, Emit, PairChoice, Told
from .feature_change import parse_feature, record_coder
from .state import LiveState, say_changes

TOP = 5
TOP_FEATURES = 12


def top_words(desk: Desk, told: Told, k: int = TOP) -> list[dict[str, Any]]:
    """The most probable next tokens."""
    return [{"word": desk.word(token), "p": p} for token, p in told.top(k)]


def prompt_words(desk: Desk, choice: PairChoice) -> dict[str, Any]:
    """Both prompts as tokens, which of them differ, the spans, and the answers."""
    pair = desk.pair(choice)
    pairs = pair.pairs
    clean, corrupt = (
        [desk.word(token) for token in row[0, : int(n[0])].tolist()]
        for row, n in ((pairs.clean_tokens, pairs.lengths), (pairs.corrupt_tokens, pairs.corrupt_lengths))
    )
    width = len(clean)
    index = pairs.alignment()[0, :width].tolist()
    return {
        "clean": clean,
        "corrupt": corrupt,
        "differs": [j < 0 or clean[i] != corrupt[j] for i, j in enumerate(index)],
        "spans": {name: mask[0, :width].nonzero().flatten().tolist() for name, mask in pairs.spans.items()},
        "answers": list(pair.answer_texts[0]) if pair.answer_texts else ["", ""],
        "clean_text": _text(desk, pairs.clean_tokens[0, : len(clean)].tolist()),
        "corrupt_text": _text(desk, pairs.corrupt_tokens[0, : len(corrupt)].tolist()),
        "metric_name": pair.metric.name,
        "alone": pairs.alone,
    }


def _text(desk: Desk, ids: list[int]) -> str:
    tokenizer = getattr(desk.model, "tokenizer", None)
    return "" if tokenizer is None else str(tokenizer.decode(ids, skip_special_tokens=True))


def say_control(change: AnyChange) -> str:
    """A control in a few words."""
    return f"random direction {change.control}" if isinstance(change, SteerAfter) else change.place


def read_column(desk: Desk, state: LiveState, column: int) -> dict[str, Any]:
    """The logit lens at one column (-1: at all) in the state reached. Cost: 1 forward, 1 product."""
    pair = desk.pair(state.choice)
    if column < 0:
        with desk.changed(state.choice, state.changes, restart=False):
            table = read_lens(desk.model, pair, top_k=TOP)
        places, ids, probabilities = table.places, table.top_ids[:, 0], table.top_probabilities[:, 0]
    else:
        sites = lens_sites(desk.anatomy)
        with desk.changed(state.choice, state.changes, restart=False):
            states = record_states(desk.model, pair.pairs.clean_tokens, sites)
        reading = Readout.of(desk.model).read(torch.stack([x[:, column : column + 1] for x in states]), top_k=TOP)
        assert reading.top_ids is not None
        assert reading.top_probabilities is not None
        places = tuple(map(str, sites))
        ids, probabilities = reading.top_ids[:, 0], reading.top_probabilities[:, 0]
    words = [[[desk.word(i) for i in cell] for cell in row] for row in ids.tolist()]
    return {"column": column, "places": list(places), "words": words, "p": probabilities.tolist()}


def read_head(desk: Desk, state: LiveState, head: str) -> dict[str, Any]:
    """One head's pattern on the clean prompt in the state reached. Cost: 1 forward."""
    with desk.changed(state.choice, state.changes, restart=False):
        found = record_attention(desk.model, desk.pair(state.choice), [head])
    return {"head": head, "pattern": found.patterns[0].tolist()}


def read_active(desk: Desk, state: LiveState, site: str, column: int) -> dict[str, Any]:
    """The most active features of a coder at one column in the state reached. Cost: 1 forward."""
    coder, _, _ = parse_feature(desk, f"{site}/f0")
    with desk.changed(state.choice, state.changes, restart=False):
        values = record_coder(desk, desk.pair(state.choice), coder)[0, column]
    top = values.topk(min(TOP_FEATURES, len(values)))
    rows = [
        {"place": f"{site}/f{i}", "value": value}
        for i, value in zip(top.indices.tolist(), top.values.tolist(), strict=True) if value > 0
    ]  # fmt: skip
    return {"site": site, "column": column, "features": rows, "n_active": int((values > 0).sum())}


def attribute(desk: Desk, state: LiveState) -> dict[str, Any]:
    """Every component's direct share of the logit difference in the state reached. Cost: 1 forward."""
    with desk.changed(state.choice, state.changes, restart=False):
        found = attribute_logits(desk.model, desk.pair(state.choice))
    values = dict(zip(found.terms, found.values.tolist(), strict=True))
    return {"what": "direct share", "total": float(found.total.mean()), "values": _of_grid(desk, values)}


def patch_everywhere(desk: Desk, state: LiveState, emit: Emit) -> dict[str, Any]:
    """Every head and MLP patched alone from the other prompt, in the unchanged model. Cost: see `mw.patch`."""
    pair = desk.pair(state.choice)
    found = patch(
        desk.model, pair, sweep_sites(desk), direction="noise", positions="all", memory_budget=sweep_budget(desk),
        progress=progress_of(emit),
    )  # fmt: skip
    values: dict[str, float] = {}
    for layer, row in enumerate(found["z"].values.tolist()):
        values |= {head_name(layer, head): value for head, value in enumerate(row)}
    if "mlp_out" in found:
        for layer, row in enumerate(found["mlp_out"].values.tolist()):
            values[mlp_name(layer)] = row[0] if isinstance(row, list) else row  # one cell of all positions
    return {"what": "measured effect of patching", "values": _of_grid(desk, values)}


def sweep_budget(desk: Desk) -> str:
    """Little memory, so that chunks are short and a cancel is soon heard."""
    return f"{max(24, int(desk.model.cfg.d_model * desk.anatomy.d_vocab) // 1_200_000)}MB"


def sweep_sites(desk: Desk) -> list[str]:
    """Heads, and MLPs where there are any."""
    return ["z"] if desk.anatomy.attn_only else ["z", "mlp_out"]


def _of_grid(desk: Desk, values: dict[str, float]) -> dict[str, float]:
    heads = [head_name(i, j) for i in range(desk.anatomy.n_layers) for j in range(desk.anatomy.n_heads)]
    return {name: values[name] for name in (*heads, *map(mlp_name, range(desk.anatomy.n_layers))) if name in values}


def view_code(view: str, state: LiveState, *about: Any) -> str:
    """Python that gives the numbers of a view; it uses `mw`, `model` and `pair`."""
    body: Sequence[str] = ()
    imports: Sequence[str] = ()
    changes: Sequence[AnyChange] = state.changes
    match view:
        case "lens" if about[0] < 0:
            body = [f"result = mw.read_lens(model, pair, top_k={TOP})"]
        case "lens":
            imports = [
                "from torch import stack",
                "from mechwork.lenses.readout import Readout",
                "from mechwork.lenses.states import lens_sites, record_states",
                "from mechwork.models.anatomy import read_anatomy",
            ]
            column = f"stack([x[:, {about[0]}:{about[0] + 1}] for x in states])"
            body = [
                "states = record_states(model, pair.pairs.clean_tokens, lens_sites(read_anatomy(model)))",
                f"result = Readout.of(model).read({column}, top_k={TOP})",
            ]
        case "attention":
            body = [f"result = mw.record_attention(model, pair, [{about[0]!r}])"]
        case "features":
            imports = ["from mechwork.features import record_features"]
            body = [
                f"coded = record_features(model, pair.pairs.clean_tokens, [features[{about[0]!r}]])",
                f"result = coded[0].features[0, {about[1]}].topk({TOP_FEATURES})",
            ]
        case "attribution":
            body = ["result = mw.attribute_logits(model, pair)"]
        case _:
            imports, changes = ["from mechwork.models.anatomy import read_anatomy"], ()
            body = [
                "sites = ['z'] if read_anatomy(model).attn_only else ['z', 'mlp_out']",
                "budget = f'{max(24, int(model.cfg.d_model * read_anatomy(model).d_vocab) // 1_200_000)}MB'",
                "result = mw.patch(model, pair, sites, direction='noise', positions='all', memory_budget=budget)",
            ]
    return say_changes(changes, tuple(body), imports)
