"""Train a small transformer under interchange pressure, so that its circuit is known although its weights look natural.

Strict interchange intervention training (Geiger et al. 2022; Gupta et al. 2024, InterpBench), at the level of edges. A
plan says which edges carry which variable of a high-level program; every other edge must carry nothing. In each step a
batch runs once more with random edges taking their write from another prompt (the *source*):

- edges of a variable are switched together with the variable: the answer must be the program's answer with the source's
  value;
- edges outside the circuit are switched at random: the answer must not change, and the logits hardly.

    loss = CE(plain run, answer) + CE(switched run, answer of the program with switched variables)
         + drift x mean (change of the logits by edges outside the circuit)^2

The first quarter of the steps trains the switched run alone, with all edges outside the circuit switched: otherwise the
model first finds shortcuts through them, and stays there.

The forward pass here is a literal, differentiable one: every reader's input is summed up writer by writer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..graph.space import EdgeSpace

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class EqualityRecipe:
    """Sizes and schedule; a pure function of these and the seed gives the weights, to the bit on one thread of one
    machine.
    """

    n_layers: int = 2
    n_heads: int = 2
    d_model: int = 32
    d_head: int = 8
    d_mlp: int = 64
    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 3e-3
    drift: float = 1.0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def space(self) -> EdgeSpace:
        return EdgeSpace(self.n_layers, self.n_heads, self.n_heads)

    def config(self, d_vocab: int, n_ctx: int) -> dict[str, Any]:
        """Settings of the host's native model."""
        sizes = {name: asdict(self)[name] for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp")}
        return {**sizes, "d_vocab": d_vocab, "n_ctx": n_ctx, "act_fn": "gelu", "normalization_type": "LN"}


@dataclass(frozen=True, eq=False)
class Program:
    """What the model must compute and where.

    `draw(generator, n)` gives prompts and their sources, so drawn that switching a variable often changes the answer
    either way; `values(tokens)` the variables read from them, `answer` the answer from the variables' values (at the
    last position). `carriers` says for every variable its edges, one group per stage: switching any stage switches the
    variable. `output` are the edges that carry the answer itself.
    """

    d_vocab: int
    n_pos: int
    draw: Callable[[torch.Generator, int], tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]]
    values: Callable[[Int[Tensor, "batch pos"]], Int[Tensor, "batch variable"]]
    answer: Callable[[Int[Tensor, "batch variable"]], Int[Tensor, " batch"]]
    carriers: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]

    @property
    def edges(self) -> tuple[str, ...]:
        """The whole circuit."""
        return (*(edge for stages in self.carriers for edge in stages), *self.output)


def train(program: Program, recipe: EqualityRecipe, progress: Callable[[int, int, str], None] | None = None) -> Weights:
    """The weights, in the host's spelling. About `recipe.steps` x 3 forwards and a backward of `recipe.batch_size`
    prompts.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    weights = _initialise(program, recipe, generator)
    trained = [weight for name, weight in weights.items() if not name.endswith("o.bias")]
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe.steps))
    switches = _Switches(program, recipe.space)
    for step in range(recipe.steps):
        tokens, source = program.draw(generator, recipe.batch_size)
        alone = 4 * step < recipe.steps  # the circuit first learns to work with everything else switched
        with torch.enable_grad():
            drawn = switches.draw(generator, recipe.batch_size, share_alone=1.0 if alone else 0.5)
            loss = _loss(program, recipe, weights, tokens, source, drawn, plain_weight=0.0 if alone else 1.0)
            optimiser.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None and (step + 1) % 100 == 0:
            progress(step + 1, recipe.steps, f"loss {loss.item():.4f}, step")
    return {name: weight.detach() for name, weight in weights.items()}


def _loss(
    program: Program,
    recipe: EqualityRecipe,
    weights: Weights,
    tokens: Int[Tensor, "batch pos"],
    source: Int[Tensor, "batch pos"],
    drawn: tuple[Tensor, Tensor, Tensor],
    plain_weight: float,
) -> Float[Tensor, ""]:
    cut, switched, replaced = drawn
    own, theirs = program.values(tokens), program.values(source)
    values = torch.where(switched, theirs, own)
    expected = torch.where(replaced, program.answer(theirs), program.answer(values))
    other, _ = run(recipe, weights, source)
    _, plain = run(recipe, weights, tokens)
    _, changed = run(recipe, weights, tokens, other=other, cut=cut)
    answer = program.answer(own)
    untouched = ~switched.any(dim=1) & ~replaced
    drift = (changed - plain)[untouched].pow(2).mean() if bool(untouched.any()) else plain.new_zeros(())
    task = plain_weight * (functional.cross_entropy(plain, answer) + recipe.drift * drift)
    return task + functional.cross_entropy(changed, expected)


class _Switches:
    """Draws which edges take the source's write, and what that does to the variables."""

    def __init__(self, program: Program, space: EdgeSpace) -> None:
        self.space, self.program = space, program
        self.stages = [[space.edge_index(edge) for edge in stages] for stages in program.carriers]
        self.output = [space.edge_index(edge) for edge in program.output]
        self.outside = space.mask.clone()
        for row, column in [*self.output, *(cell for stages in self.stages for cell in stages)]:
            self.outside[row, column] = False

    def draw(
        self, generator: torch.Generator, n: int, share_alone: float
    ) -> tuple[Bool[Tensor, "batch writer reader"], Bool[Tensor, "batch variable"], Bool[Tensor, " batch"]]:
        """Cut edges, switched variables, replaced answers. In a third of the prompts no variable is switched.

        Edges outside the circuit are all cut in a `share_alone` of the prompts, and in the others in any number.
        """

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        share = torch.where(uniform(n, 1, 1) < share_alone, 1.0, uniform(n, 1, 1) ** 2)
        cut = (uniform(n, self.space.n_writers, self.space.n_readers) < share) & self.outside
        kind = uniform(n)
        replaced = kind > 0.9
        cut[replaced, self.output[0][0], self.output[0][1]] = True
        switched = torch.zeros(n, len(self.stages), dtype=torch.bool)
        for variable, stages in enumerate(self.stages):
            switched[:, variable] = (uniform(n) < 0.5) & (kind > 1 / 3) & ~replaced
            stage = torch.randint(len(stages), (n,), generator=generator)
            for i, (row, column) in enumerate(stages):
                cut[:, row, column] = switched[:, variable] & (stage == i)
        return cut, switched, replaced


def run(
    recipe: EqualityRecipe,
    weights: Weights,
    tokens: Int[Tensor, "batch pos"],
    *,
    other: Sequence[Tensor] | None = None,
    cut: Bool[Tensor, "batch writer reader"] | None = None,
) -> tuple[list[Tensor], Float[Tensor, "batch d_vocab"]]:
    """The writes of all writers and the logits at the last position; edges in `cut` carry the write of `other`."""
    space, n_pos = recipe.space, tokens.shape[1]
    writes = [weights["tok_embed.weight"][tokens] + weights["pos.weight"][:n_pos]]
    mask = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)

    def read(columns: slice) -> Float[Tensor, "batch reader pos d_model"]:
        live = torch.stack(writes, dim=1)
        total = live.sum(dim=1, keepdim=True)
        if cut is None or other is None:
            return total.expand(-1, columns.stop - columns.start, -1, -1)
        change = torch.stack(list(other[: len(writes)]), dim=1) - live
        return total + torch.einsum("bwpd,bwr->brpd", change, cut[:, : len(writes), columns].to(change))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    for layer in range(recipe.n_layers):
        heads = {}
        for kind in "qkv":
            x = norm(read(space.attention_readers(layer, kind)), f"layers.{layer}.ln1")
            weight = weights[f"layers.{layer}.attn.{kind}.weight"].unflatten(0, (recipe.n_heads, recipe.d_head))
            bias = weights[f"layers.{layer}.attn.{kind}.bias"].unflatten(0, (recipe.n_heads, recipe.d_head))
            heads[kind] = torch.einsum("bhpd,hed->bhpe", x, weight) + bias[:, None]
        scores = heads["q"] @ heads["k"].transpose(-2, -1) / math.sqrt(recipe.d_head)
        z = scores.masked_fill(mask, -torch.inf).softmax(dim=-1) @ heads["v"]
        out = weights[f"layers.{layer}.attn.o.weight"].unflatten(1, (recipe.n_heads, recipe.d_head))
        writes += list(torch.einsum("bhpe,dhe->hbpd", z, out))
        column = space.mlp_reader(layer)
        x = norm(read(slice(column, column + 1))[:, 0], f"layers.{layer}.ln2")
        name = f"layers.{layer}.mlp"
        hidden = functional.gelu(x @ weights[f"{name}.fc_in.weight"].T + weights[f"{name}.fc_in.bias"])
        writes.append(hidden @ weights[f"{name}.fc_out.weight"].T + weights[f"{name}.fc_out.bias"])
    final = norm(read(slice(space.logits_reader, space.n_readers))[:, 0, -1], "ln_out")
    return writes, final @ weights["head.weight"].T


def _initialise(program: Program, recipe: EqualityRecipe, generator: torch.Generator) -> Weights:
    """Gaussian matrices of unit gain, norms at 1, biases at 0."""
    d, h, m = recipe.d_model, recipe.n_heads * recipe.d_head, recipe.d_mlp
    shapes: dict[str, tuple[int, ...]] = {"tok_embed.weight": (program.d_vocab, d), "pos.weight": (program.n_pos, d)}
    for layer in range(recipe.n_layers):
        block = f"layers.{layer}"
        shapes |= {f"{block}.{norm}.{part}": (d,) for norm in ("ln1", "ln2") for part in ("weight", "bias")}
        shapes |= {f"{block}.attn.{kind}.weight": (h, d) for kind in "qkv"}
        shapes |= {f"{block}.attn.{kind}.bias": (h,) for kind in "qkv"}
        shapes |= {f"{block}.attn.o.weight": (d, h), f"{block}.attn.o.bias": (d,)}
        shapes |= {f"{block}.mlp.fc_in.weight": (m, d), f"{block}.mlp.fc_in.bias": (m,)}
        shapes |= {f"{block}.mlp.fc_out.weight": (d, m), f"{block}.mlp.fc_out.bias": (d,)}
    shapes |= {"ln_out.weight": (d,), "ln_out.bias": (d,), "head.weight": (program.d_vocab, d)}
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            value = torch.zeros(shape)
        elif len(shape) == 1:
            value = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        weights[name] = value.requires_grad_(not name.endswith("o.bias"))
    return weights


def _rate(step: int, steps: int) -> float:
    """Warm up over 100 steps, then a half cosine down to nothing."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
