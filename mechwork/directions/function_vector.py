"""Function vectors: what the heads that carry a relation say, as one vector (Todd et al. 2024, arXiv:2310.15213).

    a_lh   = mean over demonstrations of what head h of layer l writes at the last token
    CIE_lh = mean over uninformative prompts of p(answer | z of the head replaced by its mean over demonstrations) -
    p(answer) v      = sum of a_lh over the heads with the largest CIE          (equations 3 to 6)

v is added to the stream at the last token of prompts that show no examples, or wrong ones. Positive CIE: the head's
mean value raises the probability of the answer. The site, where none is named, is the one (in the middle or at the end
of a block) at which adding v to the uninformative prompts raises that probability most. Behind a post-norm (Gemma-2) a
head's write is its share of the normed sum, so that writes still add up to `attn_out` (less its bias).

The paper's uninformative prompts have the examples' labels shuffled. Where that leaves the relation visible (the words
are still all French), nothing can be measured, and the fit refuses; the bare query or another relation's examples serve
instead.

Cost: 2 forwards of the demonstrations and n_layers (n_heads + 2) + 2 of the uninformative prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError
from ..interventions import Add, Replacement, Value, Write, intervene
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows, hooked
from ..models.identity import identify_model
from ..names import head_name
from ..provenance import build_provenance
from ..result import Result, Table
from ..runs.writes import head_writes
from ..sites import Site, hook_name
from .demonstrations import Demonstrations
from .direction import Direction
from .select import LayerChoice

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ENOUGH = 0.9
"""Prompts that give the answer this share of the demonstrations' probability are not uninformative."""


@dataclass(frozen=True, eq=False)
class FunctionVector(Result, strongest="effect"):
    """`direction` holds the vector, its site and the classes' coordinates (uninformative: low, demonstrations: high).

    `effects`: CIE of every head; `writes`: the heads' mean writes; `heads` (layer, head): those summed. `clean` and
    `uninformative`: mean probability of the answer; `reached`: the same with the vector added to the uninformative
    prompts at each site tried.
    """

    direction: Direction
    heads: tuple[tuple[int, int], ...]
    effects: Float[Tensor, "layer head"]
    writes: Float[Tensor, "layer head d_model"]
    clean: float
    uninformative: float
    reached: LayerChoice

    @property
    def vector(self) -> Float[Tensor, " d_model"]:
        return self.direction.vector

    def write(self, strength: float = 1.0) -> Add:
        """What is written at `direction.site`."""
        return Add(self.vector, strength)

    def of_other_heads(self, seed: int = 0) -> Direction:
        """The control: the sum of the mean writes of as many heads that were not chosen, as long as the function
        vector.
        """
        n_layers, n_heads = self.effects.shape
        rest = [(i, j) for i in range(n_layers) for j in range(n_heads) if (i, j) not in self.heads]
        generator = torch.Generator().manual_seed(seed)
        picked = torch.randperm(len(rest), generator=generator)[: len(self.heads)].tolist()
        if not picked:
            raise InputError("the function vector is the sum of all heads; no other head is left for a control")
        other = sum_heads(self.writes, [rest[i] for i in picked])
        return Direction(
            other / other.norm() * self.vector.norm(),
            self.direction.site,
            name=f"{len(picked)} other heads, draw {seed}",
        )

    def _table(self) -> Table:
        """One row per head: its causal indirect effect, the length of its mean write, whether it is in the sum."""
        n_layers, n_heads = self.effects.shape
        return {
            "head": [head_name(i, j) for i in range(n_layers) for j in range(n_heads)],
            "effect": self.effects.flatten().tolist(),
            "length": self.writes.norm(dim=-1).flatten().tolist(),
            "chosen": [(i, j) in self.heads for i in range(n_layers) for j in range(n_heads)],
        }

    def __str__(self) -> str:
        named = ", ".join(f"a{i}.h{j} ({float(self.effects[i, j]):+.3f})" for i, j in self.heads)
        site = self.direction.site
        return (
            f"{self.direction.name} at {site}: heads by effect {named}; p(answer) {self.clean:.3f} with "
            "demonstrations, "
            f"{self.uninformative:.3f} without, "
            f"{dict(zip(self.reached.sites, self.reached.values, strict=True))[site]:.3f} with the vector added to "
            "the latter"
        )


@borrows
@torch.no_grad()
def fit_function_vector(
    model: TransformerBridge,
    demonstrations: Demonstrations,
    uninformative: Demonstrations | None = None,
    *,
    n_heads: int | None = None,
    site: Site | None = None,
) -> FunctionVector:
    """The function vector of some demonstrations, at one site of the stream (see the module for formula, sign and
    cost).

    `uninformative`: the same queries without the relation (default: `demonstrations.shuffled()`); `n_heads`: how many
    heads are
    summed (default: a sixth of all).

    Raises:
        InputError: prompts that do not fit the context, `n_heads` or `site` outside the model or not in the stream.
        MetricError: the uninformative prompts give the answer (nearly) as much probability as the demonstrations do.

    >>> gemma = mw.load_model("gemma2-6l")
    >>> shown = Demonstrations.of_task(mw.tasks.in_context(gemma, n=64, relation="french").train)
    >>> french = fit_function_vector(gemma, shown, shown.bare())
    >>> with intervene(gemma, [Write(french.direction.site, french.write())]):
    ...     logits = gemma(shown.bare().tokens)
    """
    anatomy = check_ready(model)
    blank = demonstrations.shuffled() if uninformative is None else uninformative
    for prompts in (demonstrations, blank):
        prompts.check_fit(model)
    n_all = anatomy.n_layers * anatomy.n_heads
    n_heads = max(1, n_all // 6) if n_heads is None else n_heads
    if not 1 <= n_heads <= n_all:
        raise InputError(f"this model has {n_all} heads; got n_heads={n_heads}")
    kinds = [kind for kind in ("resid_mid", "resid_post") if anatomy.has_site(kind)]
    sites = [Site(kind, i) for i in range(anatomy.n_layers) for kind in kinds] if site is None else [site]
    for place in sites:
        anatomy.check_site(place)
        if not place.kind.startswith("resid"):
            raise InputError(
                f"a function vector is added to the residual stream; got {place}. Use e.g. Site('resid_post', 2)"
            )
    z, writes, clean, _ = _record(model, demonstrations)
    before = _probability(model, blank)
    if before > ENOUGH * clean:
        raise MetricError(
            f"{blank.name}: the answer has probability {before:.3f}, and {clean:.3f} with the demonstrations, so "
            "nothing is missing that "
            "heads could bring. Other uninformative prompts: demonstrations.bare(), or Demonstrations.of_task(task, "
            "corrupt=True)"
        )
    effects = torch.zeros(anatomy.n_layers, anatomy.n_heads, dtype=torch.float64)
    for i in range(anatomy.n_layers):
        for j in range(anatomy.n_heads):
            effects[i, j] = _probability(model, blank, Site("z", i, j), Value(z[i, j])) - before
    chosen = effects.flatten().topk(n_heads).indices.tolist()
    heads = tuple((index // anatomy.n_heads, index % anatomy.n_heads) for index in chosen)
    vector = sum_heads(writes, heads)
    reached = LayerChoice(
        tuple(sites), tuple(_probability(model, blank, place, Add(vector)) for place in sites), "p(answer)"
    )
    site = reached.site
    provenance = build_provenance(
        method="function vector", model=identify_model(model), heads=[f"a{i}.h{j}" for i, j in heads],
        demonstrations={"name": demonstrations.name, "sha256": demonstrations.sha256()},
        uninformative={"name": blank.name, "sha256": blank.sha256()},
    )  # fmt: skip
    x = torch.cat([_record(model, prompts, site)[3] for prompts in (blank, demonstrations)])
    name = f"function vector of {demonstrations.name}"
    direction = Direction(vector, site, name=name, provenance=provenance, centre=x.mean(dim=0))
    low, high = (float(direction.coordinate(part).mean()) for part in (x[: len(blank)], x[len(blank) :]))
    fitted = Direction(vector, site, (low + high) / 2, low, high, name, provenance, x.mean(dim=0))
    return FunctionVector(fitted, heads, effects, writes, clean, before, reached)


def sum_heads(
    writes: Float[Tensor, "layer head d_model"], heads: list[tuple[int, int]] | tuple[tuple[int, int], ...]
) -> Float[Tensor, " d_model"]:
    """The sum of some heads' mean writes."""
    return torch.stack([writes[i, j] for i, j in heads]).sum(dim=0)


def _record(
    model: TransformerBridge, prompts: Demonstrations, site: Site | None = None
) -> tuple[Tensor, Tensor, float, Tensor]:
    """At the last token: mean z ``[layer, head, d_head]``, mean head writes ``[layer, head, d_model]``, the answers'
    mean probability, and every prompt's vector at `site`, from 1 forward.
    """
    found: dict[Site, Tensor] = {}
    n_layers = int(model.cfg.n_layers)
    sites = [Site("z", i) for i in range(n_layers)] + ([] if site is None else [site])

    def keep(place: Site) -> Callable[..., None]:
        def hook(activation: Tensor, hook: object) -> None:
            found[place] = prompts.final(activation)

        return hook

    with hooked(model, [(hook_name(place), keep(place)) for place in sites]):
        p = _answers(model, prompts)
    z = torch.stack([found[Site("z", i)] for i in range(n_layers)])
    writes = torch.stack([head_writes(model, i, z[i][:, None])[:, :, 0].mean(dim=1) for i in range(n_layers)])
    return z.mean(dim=1), writes.cpu(), float(p.mean()), found[site].cpu() if site is not None else torch.empty(0)


def _answers(model: TransformerBridge, prompts: Demonstrations) -> Float[Tensor, " batch"]:
    logits = prompts.final(model(prompts.tokens.to(device_of(model))))
    return logits.softmax(dim=-1).gather(-1, prompts.answers[:, None].to(logits.device))[:, 0].double()


def _probability(
    model: TransformerBridge, prompts: Demonstrations, site: Site | None = None, put: Replacement | None = None
) -> float:
    """The answers' mean probability, with `put` at `site` at the last token of every prompt."""
    writes = [] if site is None or put is None else [Write(site, put, prompts.ends())]
    with intervene(model, writes):
        return float(_answers(model, prompts).mean())


@dataclass(frozen=True)
class FunctionVectorRow:
    """`put_in` at the last token of some prompts: the answers' mean probability, and how often the answer is the most
    probable token.
    """

    prompts: str
    put_in: str
    strength: float
    probability: float
    accuracy: float


@dataclass(frozen=True)
class FunctionVectorTest(Result):
    """A function vector on held-out prompts, beside nothing, other heads' vectors and random directions, all
    as long.
    """

    rows: tuple[FunctionVectorRow, ...]

    def accuracy(self, prompts: str, put_in: str) -> float:
        """The best accuracy over strengths; of a control, over its draws too."""
        found = [row.accuracy for row in self.rows if row.prompts == prompts and row.put_in.startswith(put_in)]
        if not found:
            known = sorted({f"{row.prompts!r}, {row.put_in!r}" for row in self.rows})
            raise InputError(f"no row of {prompts!r} and {put_in!r}; there are {'; '.join(known)}")
        return max(found)

    def __str__(self) -> str:
        return self.to_dataframe().to_string(index=False, float_format="%.3f".__mod__)


@borrows
@torch.no_grad()
def check_function_vector(
    model: TransformerBridge,
    vector: FunctionVector,
    prompts: dict[str, Demonstrations],
    *,
    strengths: tuple[float, ...] = (1.0, 2.0),
    n_controls: int = 3,
) -> FunctionVectorTest:
    """Add the vector and its controls at the last token of named prompts, e.g. ``{"bare": held_out.bare()}``.

    Cost: 1 + (1 + 2 `n_controls`) forwards of each kind of prompts per strength. Raises `InputError` for prompts that
    do not fit.
    """
    vector.direction.check(model)
    directions = {"function vector": vector.direction}
    for i in range(n_controls):
        directions |= {f"other heads {i}": vector.of_other_heads(i), f"random {i}": vector.direction.random_control(i)}
    rows = []
    for name, part in prompts.items():
        part.check_fit(model)
        rows.append(_test_row(model, name, part, "nothing", None, 0.0))
        for label, direction in directions.items():
            rows += [_test_row(model, name, part, label, direction, strength) for strength in strengths]
    return FunctionVectorTest(tuple(rows))


def _test_row(
    model: TransformerBridge, name: str, part: Demonstrations, label: str, direction: Direction | None, strength: float
) -> FunctionVectorRow:
    put = [] if direction is None else [Write(direction.site, Add(direction.vector, strength), part.ends())]
    with intervene(model, put):
        logits = part.final(model(part.tokens.to(device_of(model)))).cpu()
    p = logits.softmax(dim=-1).gather(-1, part.answers[:, None])
    right = logits.argmax(dim=-1) == part.answers
    return FunctionVectorRow(name, label, strength, float(p.mean()), float(right.double().mean()))
