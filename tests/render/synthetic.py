"""Results of realistic size and shape, made from seeds: an IOI-like circuit of 6 layers x 4 heads, and a very large
graph.

No model runs here. Numbers are invented and say so nowhere else than in this file; drawings must not depend on them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch

from mechwork.ablation.heads import HeadRow, HeadStudy
from mechwork.circuits import AttentionEdges, Completeness, Minimality, PositionScores, Stability
from mechwork.circuits.graph.circuit import Circuit
from mechwork.circuits.graph.space import EdgeSpace
from mechwork.circuits.scoring.sample import Streamed
from mechwork.circuits.scoring.scores import EdgeScores
from mechwork.circuits.testing.curves import MIB_FRACTIONS, CircuitEvaluation, FaithfulnessCurve
from mechwork.lenses import LensTable, LogitAttribution, TrajectoryComparison, trajectory
from mechwork.lenses.trajectory import compare_trajectories
from mechwork.patching.result import Effect, Effects
from mechwork.runs.attention import AttentionPatterns
from mechwork.runs.components import ComponentRow, ComponentStudy, PromptExample
from mechwork.runs.record import Baseline
from mechwork.tasks.task import Task

TOKENS = (
    "<bos>",
    " When",
    " Mary",
    " and",
    " John",
    " went",
    " to",
    " the",
    " store",
    ",",
    " John",
    " gave",
    " a",
    " drink",
    " to",
)
HOSTILE = (
    "</script><script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", '" onload="window.pwned=1',
    "'&amp;<b>",
    "مرحبا", "\u202eevil\u202c", "🙂👩‍👩‍👧", "a\nb\tc", "x" * 200, "${window.pwned=1}", "%{x}", "\u2028", "\x00\x07",
    "",
    "  ",
)  # fmt: skip
ROLES = {
    "a0.h1": "duplicate token", "a0.h3": "previous token", "a1.h2": "induction", "a2.h0": "S-inhibition",
    "a3.h3": "S-inhibition",
    "a4.h1": "name mover", "a4.h2": "name mover", "a5.h0": "negative name mover",
}  # fmt: skip
STRONG = (
    ("input", "a0.h1<q>", 0.31), ("input", "a0.h1<k>", 0.28), ("input", "a0.h3<v>", 0.22), ("a0.h3", "a1.h2<k>", 0.35),
    ("a0.h1", "a2.h0<v>", 0.52), ("a1.h2", "a2.h0<v>", 0.36), ("a0.h1", "a3.h3<v>", 0.29),
    ("a2.h0", "a4.h1<q>", 0.66), ("a3.h3", "a4.h1<q>", 0.41), ("a2.h0", "a4.h2<q>", 0.38), ("a3.h3", "a5.h0<q>", -0.30),
    ("input", "m0", 0.60), ("m0", "a4.h1<v>", 0.57), ("m0", "a4.h2<v>", 0.33), ("m0", "a5.h0<v>", -0.26),
    ("a4.h1", "logits", 1.42), ("a4.h2", "logits", 0.71), ("a5.h0", "logits", -0.63), ("m5", "logits", 0.24),
    ("a4.h1", "m5", 0.19),
    ("a4.h1", "a5.h0<q>", -0.14), ("input", "a4.h1<k>", 0.12), ("m0", "m1", 0.15), ("m1", "m3", -0.08),
    ("m3", "logits", -0.11),
)  # fmt: skip


def space() -> EdgeSpace:
    return EdgeSpace(n_layers=6, n_heads=4, n_kv_heads=4)


def provenance(**facts: object) -> dict:
    return {
        "model": {"name": "gpt2-6l", "weights_sha256": "0" * 64},
        "task": {"name": "ioi", "n": 32, "metric": "logit_difference", "sha256": "1" * 64},
        "versions": {"mechwork": "0.1.0", "torch": "2.13.0"}, "command": "mechwork discover "
                                                                         "ioi", "seed": 0,
                                                                         "time": "2026-11-20T14:00:00+00:00", **facts,
    }  # fmt: skip


def baseline(n: int = 32) -> Baseline:
    generator = torch.Generator().manual_seed(1)
    return Baseline(3.1 + 0.6 * torch.randn(n, generator=generator), -2.9 + 0.6 * torch.randn(n, generator=generator))


def scores(n: int = 32, graph: EdgeSpace | None = None, seed: int = 0, rules: str = "relp") -> EdgeScores:
    graph = graph or space()
    generator = torch.Generator().manual_seed(seed)
    values = 0.02 * torch.randn(graph.n_writers, graph.n_readers, generator=generator).pow(3)
    for source, target, value in STRONG:
        if source in graph.writers and target in graph.readers:
            values[graph.edge_index(f"{source}->{target}")] = value
    values = values * graph.mask
    noise = 0.25 * values.abs() * torch.randn(n, graph.n_writers, graph.n_readers, generator=generator)
    return EdgeScores(
        graph, values + noise, "denoise", rules, 1, "logit_difference", baseline(n), provenance(method="edge scores")
    )


def circuit(n_edges: int = 60) -> Circuit:
    found = scores().circuit(n_edges)
    return replace(found, roles={name: role for name, role in ROLES.items() if name in found.nodes})


def grouped_circuit() -> Circuit:
    """Grouped-query attention: two key/value heads for eight heads, attention and MLP in parallel."""
    return scores(8, EdgeSpace(n_layers=4, n_heads=8, n_kv_heads=2, parallel=True), seed=3).circuit(60)


def large_circuit(n_edges: int = 30_000) -> Circuit:
    """About 1,000 nodes: 30 layers of 32 heads and an MLP."""
    graph = EdgeSpace(n_layers=30, n_heads=32, n_kv_heads=32)
    generator = torch.Generator().manual_seed(5)
    heavy = (
        torch.randn(graph.n_writers, 1, generator=generator).exp()
        * torch.randn(1, graph.n_readers, generator=generator).exp()
    )
    values = torch.randn(graph.n_writers, graph.n_readers, generator=generator) * heavy * graph.mask
    order = values.abs().flatten().argsort(descending=True)[:n_edges]
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order] = True
    return Circuit(graph, mask.reshape(values.shape), values, provenance=provenance())


def task(texts: tuple[str, ...] = TOKENS, n: int = 12) -> Task:
    """An IOI-like task; with other `texts`, their tokens stand where IOI's would."""
    length = len(texts)
    clean = torch.arange(length).repeat(n, 1)
    corrupt = clean.clone()
    changed = 10 if length > 10 else length - 1
    corrupt[:, changed] = length + 1
    made = Task.from_tokens(clean, corrupt, torch.full((n,), length + 2), torch.full((n,), length + 3), name="ioi")
    other = tuple(" Mary" if i == changed else t for i, t in enumerate(texts))
    return replace(
        made, texts=((texts, other),) * n, answer_texts=((" Mary", " John"),) * n,
        splits=("train",) * (n // 2) + ("test",) * (n - n // 2),
        description="When A and B went to the store, B gave a drink to -> A", citation="Wang et al. 2022",
    )  # fmt: skip


def _effect(
    kind: str,
    values: torch.Tensor,
    axes: tuple[str, ...],
    labels: dict,
    *,
    estimated: bool,
    direction: Literal["denoise", "noise"],
    n: int,
) -> Effect:
    generator = torch.Generator().manual_seed(7)
    noise = 0.15 * values.abs() * torch.randn(n, *values.shape, generator=generator)
    return Effect(
        kind,
        values + noise,
        axes,
        labels,
        baseline(n),
        direction,
        estimated,
        "logit_difference",
        provenance(method="patching"),
    )


def effects(
    *,
    estimated: bool = False,
    direction: Literal["denoise", "noise"] = "denoise",
    texts: tuple[str, ...] = TOKENS,
    heads: bool = True,
) -> Effects:
    n, n_layers, n_pos = 32, 6, len(texts)
    layer = torch.arange(n_layers).float()[:, None]
    subject, end = min(10, n_pos - 1), n_pos - 1
    resid = torch.zeros(n_layers, n_pos)
    resid[:, subject] = 6 * torch.sigmoid(2 * (1.5 - layer[:, 0]))
    resid[:, end] += 6 * torch.sigmoid(2 * (layer[:, 0] - 2.5))
    attn = torch.diff(resid, dim=0, append=resid[-1:]) * 0.7
    generator = torch.Generator().manual_seed(2)
    head = 0.08 * torch.randn(n_layers, 4, generator=generator)
    for name, value in (
        ("a4.h1", 1.4),
        ("a4.h2", 0.7),
        ("a5.h0", -0.7),
        ("a2.h0", 1.1),
        ("a3.h3", 0.6),
        ("a0.h1", 0.9),
        ("a1.h2", 0.4),
    ):
        head[int(name[1]), int(name[-1])] = value
    positions = tuple(f"{i} {t.strip()}" for i, t in enumerate(texts))
    axes = {"layer": tuple(str(i) for i in range(n_layers)), "pos": positions}
    blur = (1 + 0.15 * torch.randn(n_layers, 1, generator=generator)) if estimated else torch.ones(1)
    made = {
        "resid_pre": _effect(
            "resid_pre", resid * blur, ("layer", "pos"), axes, estimated=estimated, direction=direction, n=n
        ),
        "attn_out": _effect(
            "attn_out", attn * blur, ("layer", "pos"), axes, estimated=estimated, direction=direction, n=n
        ),
    }
    if heads:
        by_head = {"layer": axes["layer"], "head": ("0", "1", "2", "3")}
        made["z"] = _effect("z", head * blur, ("layer", "head"), by_head, estimated=estimated, direction=direction, n=n)
    return Effects(made)


def curve(n: int = 32) -> FaithfulnessCurve:
    generator = torch.Generator().manual_seed(4)
    graph = space()
    sizes = tuple(max(1, round(f * graph.n_edges)) for f in MIB_FRACTIONS)
    ends = baseline(n)
    clean, empty = ends.clean_per_example, ends.corrupt_per_example
    shares = torch.tensor([1 - math.exp(-30 * f) for f in MIB_FRACTIONS[:-1]] + [1.0])
    found = (
        empty
        + shares[:, None] * (clean - empty)
        + 0.3 * torch.randn(len(sizes), n, generator=generator) * (shares[:, None] < 1)
    )
    signed = empty + (shares * (1 + 0.15 * (1 - shares)))[:, None] * (clean - empty)
    control = torch.tensor([f**3 for f in MIB_FRACTIONS])
    random = (empty + control[:, None] * (clean - empty)).expand(3, -1, -1).clone()
    kept = tuple(max(0, s - 3) for s in sizes)
    return FaithfulnessCurve(
        MIB_FRACTIONS,
        sizes,
        kept,
        found,
        signed,
        random,
        empty,
        clean,
        "corrupt",
        "logit_difference",
        provenance(method="evaluation"),
    )


def evaluation(of: Circuit | None = None, n: int = 32) -> CircuitEvaluation:
    ends = baseline(n)
    clean, empty = ends.clean_per_example, ends.corrupt_per_example
    return CircuitEvaluation(
        of or circuit(),
        empty + 0.93 * (clean - empty),
        empty,
        clean,
        (0.01, 0.03, -0.02),
        0.97,
        1.0,
        "corrupt",
        "logit_difference",
        provenance(),
    )


def patterns(tokens: tuple[str, ...] = TOKENS) -> AttentionPatterns:
    n = len(tokens)
    generator = torch.Generator().manual_seed(6)
    heads = ("a0.h1", "a0.h3", "a1.h2", "a2.h0", "a3.h3", "a4.h1", "a4.h2", "a5.h0")
    logits = 0.6 * torch.randn(len(heads), n, n, generator=generator)
    logits[:, :, 0] += 1.5
    end, second = n - 1, min(10, n - 1)
    if n > 10:
        logits[0, second, 4] += 6
        logits[2, second, 5] += 5
        logits[3, end, second] += 5
        logits[4, end, second] += 4
        logits[5, end, 2] += 6
        logits[6, end, 2] += 5
        logits[7, end, 2] += 4.5
    for q in range(1, n):
        logits[1, q, q - 1] += 6
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    return AttentionPatterns(
        tokens, heads, logits.masked_fill(hidden, -torch.inf).softmax(dim=-1), "ioi", provenance(row=0)
    )


def study() -> HeadStudy:
    generator = torch.Generator().manual_seed(8)
    measured = {
        "a4.h1": (1.61, 1.38),
        "a4.h2": (0.8, 0.66),
        "a5.h0": (-0.55, -0.6),
        "a2.h0": (1.2, 0.02),
        "a3.h3": (0.5, 0.01),
        "a0.h1": (0.95, 0.0),
        "a1.h2": (0.4, 0.0),
    }
    looks = {
        "a4.h1": {"END→IO": 0.71},
        "a4.h2": {"END→IO": 0.55},
        "a5.h0": {"END→IO": 0.48},
        "a2.h0": {"END→S2": 0.62},
        "a3.h3": {"END→S2": 0.44},
        "a0.h1": {"S2→S1": 0.83},
        "a1.h2": {"S2→S1+": 0.58},
    }
    rows = []
    for layer in range(6):
        for head in range(4):
            name = f"a{layer}.h{head}"
            effect, direct = measured.get(name, (0.06 * float(torch.randn((), generator=generator)), 0.0))
            attention = dict.fromkeys(("END→IO", "END→S1", "END→S2", "S2→S1", "S2→S1+"), 0.04) | looks.get(name, {})
            rows.append(HeadRow(name, effect, 0.05, direct, attention, ROLES.get(name, "")))
    return HeadStudy(
        tuple(sorted(rows, key=lambda row: -abs(row.effect))), "logit_difference", provenance(method="head study")
    )


def components(texts: tuple[str, ...] = TOKENS) -> ComponentStudy:
    generator = torch.Generator().manual_seed(9)
    rows = []
    for node in circuit().nodes:
        if node in ("input", "logits"):
            continue
        values = torch.rand(3, len(texts), generator=generator)
        examples = tuple(
            PromptExample(texts, tuple(row.tolist()), int(row.argmax()), k) for k, row in enumerate(values)
        )
        head = node.startswith("a")
        rows.append(
            ComponentRow(
                node,
                ((" Mary", 3.2), ("</b>", 1.1)),
                ((" John", -2.0),),
                examples,
                {"previous token": 0.7, "first token": 0.2} if head else {},
                0.8 if head else None,
            )
        )
    return ComponentStudy(tuple(rows), texts, provenance(method="component study"))


def robustness() -> tuple:
    """The circuit under other ablations, how stable it is, what it lacks and what in it is superfluous."""
    found = circuit()
    other = replace(evaluation(found), per_example=evaluation(found).empty_per_example, ablation="zero", accuracy=0.5)
    return (
        other,
        Stability("resamples", 60, (0.9, 0.92, 0.95), 0.03),
        Stability("templates", 60, (0.5, 0.8), 0.03, ("When A and B </p>", "Then A and B")),
        Completeness(found, 0.93, 0.02, (0.01, 0.04), 0.08, found.edges[:3], provenance(method="completeness")),
        Minimality(found, found.nodes[1:4], (0.001, 0.2, 0.5), provenance(method="minimality")),
    )


def by_position(texts: tuple[str, ...] = ("IO", "S1", "S2", "END")) -> tuple[PositionScores, AttentionEdges]:
    """Scores of the strong edges, each at one place, and two movements between places."""
    graph, n = space(), len(texts)
    packed = torch.zeros(n, graph.n_edges)
    index = {graph.edge_name(i, j): k for k, (i, j) in enumerate(graph.mask.nonzero().tolist())}
    for source, target, value in STRONG:
        last = target == "logits" or source[:2] in ("a4", "a5", "m5") or target[:2] in ("a4", "a5", "m5")
        packed[n - 1 if last else min(2, n - 1), index[f"{source}->{target}"]] = value
    flat = packed.flatten()
    streamed = Streamed(8, flat, flat.abs() * 0.01, flat.repeat(3, 1))
    facts = ("denoise", "relp", "logit_difference", baseline(8), provenance(method="by position"))
    moves = torch.zeros(8, graph.n_layers, graph.n_heads, 3, n, n)
    moves[:, 2, 0, 2, n - 1, min(2, n - 1)] = 0.8
    moves[:, 0, 1, 1, n - 1, 0] = -0.3
    return PositionScores(graph, texts, streamed, *facts), AttentionEdges(moves, texts, *facts)


def lens_table(texts: tuple[str, ...] = TOKENS, lens: str = "logit lens", n: int = 2) -> LensTable:
    """What a lens says of all places that nodes read, on prompts like those of `task`."""
    places = (*(f"{kind}.{i}" for i in range(6) for kind in ("resid_pre", "resid_mid")), "resid_post.5")
    shape, known = (len(places), n, len(texts)), (*texts, " Mary", " John", " store")
    generator = torch.Generator().manual_seed(len(lens))
    values = {name: torch.rand(shape, generator=generator) for name in ("entropy", "kl", "surprisal")}
    order = torch.rand(*shape, len(known), generator=generator).argsort(dim=-1)[..., :5]
    shares = torch.rand(*shape, 5, generator=generator).sort(dim=-1, descending=True).values / 5
    tokens = torch.arange(len(texts)).repeat(n, 1)
    return LensTable(
        lens, places, tokens, torch.ones_like(tokens, dtype=torch.bool), order, shares, values["entropy"], values["kl"],
        torch.full_like(tokens, len(texts)),
        torch.randint(40, shape, generator=generator), values["surprisal"], dict(enumerate(known)),
        provenance(method="lens table"),
    )  # fmt: skip


def trajectories() -> TrajectoryComparison:
    return compare_trajectories(trajectory(lens_table()), trajectory(lens_table(lens="tuned lens (full)")))


def shares() -> LogitAttribution:
    """Direct shares of the logit difference: of the strong heads, and of what nobody asked about."""
    known = {source: value for source, target, value in STRONG if target == "logits"} | {"unembed bias": -0.02}
    generator = torch.Generator().manual_seed(11)
    per_example = torch.tensor([*known.values()]) * (1 + 0.1 * torch.randn(8, len(known), generator=generator))
    return LogitAttribution(
        tuple(known), per_example, per_example.sum(dim=1), None, None, (TOKENS,) * 8, "logit difference",
        before_cap=False, n_heads=4, provenance=provenance(method="direct logit attribution"),
    )  # fmt: skip


def everything() -> tuple:
    """All results that a report can show, as `mechwork discover` hands them over."""
    found = (effects(), effects(estimated=True), scores(), circuit(), curve(), evaluation(), study(), patterns())
    read = (shares(), lens_table(), trajectories())
    return (*found, components(), *robustness(), *by_position(), *read)


def deep() -> tuple:
    """What a discovery in a model of 30 layers hands over: a circuit of thousands of edges, effects, curve, test."""
    graph = EdgeSpace(n_layers=30, n_heads=9, n_kv_heads=3)
    found = scores(4, graph, seed=2).circuit(6000)
    generator = torch.Generator().manual_seed(3)
    axes = {"layer": tuple(str(i) for i in range(30)), "pos": ("start", "IO", "S1", "S2", "S2+", "END")}
    made = {
        kind: _effect(
            kind, torch.randn(30, 6, generator=generator), ("layer", "pos"), axes, estimated=False,
            direction="denoise", n=8,
        )
        for kind in ("resid_pre", "attn_out", "mlp_out")
    }  # fmt: skip
    by_head = {"layer": axes["layer"], "head": tuple(str(i) for i in range(9))}
    made["z"] = _effect(
        "z", torch.randn(30, 9, generator=generator), ("layer", "head"), by_head, estimated=False, direction="denoise",
        n=8,
    )  # fmt: skip
    return Effects(made), found, evaluation(found), patterns(), lens_table()
