"""Literal forms of the ways to score edges beyond one backward pass: loops over edges, steps and components."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechwork.sites import Site, hook_name

from .literal import LiteralGraph, Metric, cached, hook


def exact_effects(model: Any, host: Tensor, donor: Tensor, metric: Metric, edges: list[tuple[str, str]]) -> Tensor:
    """``[edge, batch]``: m(host run in which one reader sees one writer's donor value) - m(host run), one whole forward
    each.
    """
    graph = LiteralGraph(model)
    other = graph.writes_of(donor)
    with torch.no_grad():
        plain = metric(graph.run(host, other, lambda w, r: True))
        return torch.stack([metric(graph.run(host, other, lambda w, r, e=e: (w, r) != e)) - plain for e in edges])


def scores_against_constants(
    model: Any,
    host: Tensor,
    constants: dict[str, Tensor],
    metric: Metric,
    readers: tuple[str, ...],
    writers: tuple[str, ...],
    *,
    split_input: bool = False,
) -> Tensor:
    """(clean write - constant) . d metric / d reader input at the clean run."""
    graph = LiteralGraph(model, split_input=split_input)
    writes = graph.writes_of(host)
    nudge = {r: torch.zeros_like(writes[writers[0]]).requires_grad_(True) for r in readers}
    with torch.enable_grad():
        value = metric(graph.run(host, writes, lambda w, r: True, nudge)).sum()
        grads = torch.autograd.grad(value, list(nudge.values()))
    rows = [torch.stack([((writes[w] - constants[w]) * g).sum(dim=(1, 2)) for g in grads], dim=1) for w in writers]
    return torch.stack(rows, dim=1)


def activation_path_scores(
    model: Any,
    host: Tensor,
    donor: Tensor,
    metric: Metric,
    readers: tuple[str, ...],
    writers: tuple[str, ...],
    steps: int,
) -> Tensor:
    """Each component alone moves from its host to its donor write; gradients at every reader after it are averaged."""
    graph = LiteralGraph(model)
    ends = {side: graph.writes_of(tokens) for side, tokens in (("host", host), ("donor", donor))}
    scores = torch.zeros(len(host), len(writers), len(readers), dtype=ends["host"]["input"].dtype)
    groups: dict[str, list[str]] = {}
    for writer in writers:
        groups.setdefault(writer.split(".")[0], []).append(writer)
    for group, members in groups.items():
        change: Any = sum(ends["donor"][w] - ends["host"][w] for w in members)
        place = (
            "blocks.0.hook_resid_pre"
            if group == "input"
            else hook("attn_out" if group[0] == "a" else "mlp_out", int(group[1:]))
        )
        for k in range(steps):
            amount = (k + 0.5) / steps * change
            with torch.enable_grad():
                nudge = {r: torch.zeros_like(change).requires_grad_(True) for r in readers}
                moved = _moved(graph, place, amount)
                value = metric(moved.run(host, ends["host"], lambda w, r: True, nudge)).sum()
                grads = torch.autograd.grad(value, list(nudge.values()), allow_unused=True)
            for writer in members:
                i = writers.index(writer)
                for j, grad in enumerate(grads):
                    assert grad is not None
                    scores[:, i, j] += ((ends["donor"][writer] - ends["host"][writer]) * grad).sum(dim=(1, 2)) / steps
    return scores


def _moved(graph: LiteralGraph, place: str, amount: Tensor) -> LiteralGraph:
    """The graph of a model whose component at `place` writes `amount` more. Its sums use the host's recorded head
    writes, so the extra amount is handed to every later reader through the bias.
    """

    class Moved(LiteralGraph):
        def run(self, tokens: Tensor, other: Any, keep: Any, nudge: Any = None) -> Tensor:
            extra = dict(nudge)
            for reader in extra:
                if _after(reader, place, self.parallel):
                    extra[reader] = nudge[reader] + amount
            return super().run(tokens, other, keep, extra)

    return Moved(graph.model)


def _after(reader: str, place: str, parallel: bool) -> bool:
    """Whether a reader sees what the component at `place` writes."""
    layer = int(place.split(".")[1])
    if place.endswith("resid_pre"):
        return True
    if reader == "logits":
        return True
    at = int(reader.split(".", maxsplit=1)[0][1:])
    is_mlp = reader[0] == "m"
    return at > layer or (at == layer and is_mlp and place.endswith("attn_out") and not parallel)


def information_flow(model: Any, tokens: Tensor, readers: tuple[str, ...], writers: tuple[str, ...]) -> Tensor:
    """max(0, |x|_1 - |x - write|_1), as a share over the writers seen, averaged over positions."""
    graph = LiteralGraph(model)
    writes, cache = graph.writes_of(tokens), cached(model, tokens)
    scores = torch.zeros(len(tokens), len(writers), len(readers), dtype=writes["input"].dtype)
    for j, reader in enumerate(readers):
        if reader == "logits":
            x, seen = cache[f"blocks.{graph.n_layers - 1}.hook_resid_post"], list(writers)
        else:
            layer = int(reader.split(".")[0][1:])
            late = reader[0] == "m" and not graph.parallel
            x = cache[f"blocks.{layer}.hook_resid_{'mid' if late else 'pre'}"]
            seen = [
                w
                for w in writers
                if w == "input" or int(w.split(".")[0][1:]) < layer or (late and w.startswith(f"a{layer}."))
            ]
        for b in range(len(tokens)):
            for p in range(tokens.shape[1]):
                near = [max(0.0, float(x[b, p].abs().sum() - (x[b, p] - writes[w][b, p]).abs().sum())) for w in seen]
                for w, value in zip(seen, near, strict=True):
                    scores[b, writers.index(w), j] += value / max(sum(near), 1e-300) / tokens.shape[1]
    return scores


def grad_drop_scores(
    model: Any, host: Tensor, donor: Tensor, metric: Metric, readers: tuple[str, ...], writers: tuple[str, ...]
) -> Tensor:
    """``[batch, writer, reader]``: mean magnitude of the scores of passes that each hold one layer's writes constant.

    A reader inside a layer is judged by the passes that keep that layer; the sign is that of the sum.
    """
    graph = LiteralGraph(model)
    ours, theirs = graph.writes_of(host), graph.writes_of(donor)
    passes = []
    for dropped in range(graph.n_layers):
        nudge = {r: torch.zeros_like(ours["input"]).requires_grad_(True) for r in readers}
        with torch.enable_grad():
            logits = graph.run(host, ours, lambda w, r, d=dropped: _layer(w) != d, nudge)
            grads = torch.autograd.grad(metric(logits).sum(), list(nudge.values()), allow_unused=True)
        rows = []
        for w in writers:
            difference = theirs[w] - ours[w]
            cells = [torch.zeros(len(host)) if g is None else (difference * g).sum(dim=(1, 2)) for g in grads]
            rows.append(torch.stack([c.to(difference) for c in cells], dim=1))
        passes.append(torch.stack(rows, dim=1))
    scores = torch.zeros_like(passes[0])
    for j, reader in enumerate(readers):
        kept = torch.stack([p[:, :, j] for d, p in enumerate(passes) if _layer(reader) != d])
        scores[:, :, j] = kept.abs().mean(dim=0) * kept.sum(dim=0).sign()
    return scores


def _layer(name: str) -> int:
    """Layer of a writer or reader by name; -1 for the input and the logits."""
    return -1 if name in ("input", "logits") else int(name[1:].split(".", maxsplit=1)[0])


def neuron_edge(
    model: Any, pairs: Any, writer: tuple[int, int], reader: tuple[int, int], where: tuple[Tensor, Tensor], step: float
) -> Tensor:
    """(clean - corrupt) of the neuron `writer` (layer, index) at its positions, times the slope of `reader` in it, from
    two runs of the corrupt prompts in which every other MLP keeps what it had; summed over the reader's positions
    after weighting with `where`: the writer's positions and the reader's coefficients, ``[batch, pos]``.
    """
    acts = {side: mlp_posts(model, tokens) for side, tokens in enumerate((pairs.corrupt_tokens, pairs.clean_tokens))}
    change = (acts[1][writer[0]] - acts[0][writer[0]])[..., writer[1]] * where[0]
    found = []
    for sign in (1, -1):
        moved = [a.clone() for a in acts[0]]
        moved[writer[0]][..., writer[1]] += sign * step * change
        read = mlp_posts(model, pairs.corrupt_tokens, put=moved)[reader[0]][..., reader[1]]
        found.append((read * where[1]).sum(dim=1))
    return (found[0] - found[1]) / (2 * step)


def mlp_posts(model: Any, tokens: Tensor, put: list[Tensor] | None = None) -> list[Tensor]:
    """Every MLP's activation, before `put` takes its place."""
    found: list[Tensor] = []

    def hook(activation: Tensor, hook: Any) -> Tensor:
        found.append(activation.detach().clone())
        return activation if put is None else put[len(found) - 1]

    with torch.no_grad():
        names = [hook_name(Site("mlp_post", layer)) for layer in range(model.cfg.n_layers)]
        model.run_with_hooks(tokens, fwd_hooks=[(name, hook) for name in names])
    return found
