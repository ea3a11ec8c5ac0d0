"""Decoders that go on with the model or ahead in time: patchscopes and the future lens, beside lenses, under one
protocol.

decoder | logits of a state h at place l:

- `LensDecoder` | readout of the translated state
- `Patchscope` (Ghandeharioun et al. 2024) | the model's own next-token logits for *another* prompt in which h stands in
  for the state at one position of place l'
- `FutureLens` (Pal et al. 2023, linear) | readout of W_l h + b_l, fitted so as to be the last state `ahead` positions
  later: what the model will say then

``decoder.logits(h, site)`` takes ``[n, d_model]`` and gives ``[n, d_vocab]``. `compare_decoders` measures several on
the same states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..interventions import Value, Write, intervene
from ..models.anatomy import device_of, final_norm, read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from ..statistics import bootstrap_interval
from .fingerprint import fingerprint, require_same
from .lens import Lens
from .prompts import as_prompts, token_text
from .readout import BITS, Readout
from .states import RESIDUAL, lens_sites, record_states, run_to_the_end
from .text import TextStream, forward_batches, open_text
from .translators import Full, Parts, PlaceMoments, translate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS = 64
"""States patched into one forward."""


@runtime_checkable
class StateDecoder(Protocol):
    """Anything that turns states of a place into logits of a next token."""

    @property
    def name(self) -> str: ...

    def logits(self, x: Float[Tensor, "n d_model"], site: Site) -> Float[Tensor, "n d_vocab"]: ...


@dataclass(frozen=True, eq=False)
class LensDecoder(Readable):
    """A lens and a model."""

    model: TransformerBridge
    lens: Lens

    @property
    def name(self) -> str:
        return self.lens.name

    def logits(self, x: Float[Tensor, "n d_model"], site: Site) -> Float[Tensor, "n d_vocab"]:
        last = site == Site("resid_post", read_anatomy(self.model).n_layers - 1)
        with torch.no_grad():
            return Readout.of(self.model).logits(x if last else self.lens.translate(x, site))


@dataclass(frozen=True, eq=False)
class Patchscope(Readable):
    """States put into `prompt` at `position` (negative: from the end), at place `into` (None: at the place they come
    from).
    """

    model: TransformerBridge
    prompt: Int[Tensor, " pos"]
    position: int = -1
    into: Site | None = None
    name: str = "patchscope"

    @classmethod
    def of(cls, model: TransformerBridge, prompt: Any, position: int = -1, into: Site | None = None) -> Patchscope:
        """Raises `InputError` for an empty prompt, a position outside it, or a place outside the residual stream."""
        given = as_prompts(model, prompt)
        n = int(given.mask.sum())
        if len(given) != 1 or not -n <= position < n:
            raise InputError(
                f"a patchscope has one prompt and a position in it ({n} tokens); got position {position} and "
                f"{len(given)} prompts"
            )
        if into is not None:
            if into.kind not in RESIDUAL:
                raise InputError(f"states go into the residual stream ({', '.join(RESIDUAL)}); got {into}")
            read_anatomy(model).check_site(into)
        return cls(model, given.tokens[0], position % n, into)

    def logits(self, x: Float[Tensor, "n d_model"], site: Site) -> Float[Tensor, "n d_vocab"]:
        """Cost: one forward of the prompt per state."""
        return torch.cat([self._run(part, site, self.prompt.expand(len(part), -1)) for part in x.split(ROWS)])

    def generate(self, x: Float[Tensor, "n d_model"], site: Site, n_tokens: int = 8) -> list[str]:
        """What the model goes on to say, greedily, about each state. Cost: `n_tokens` forwards per state."""
        rows = self.prompt.expand(len(x), -1)
        for _ in range(n_tokens):
            best = torch.cat(
                [self._run(part, site, own) for part, own in zip(x.split(ROWS), rows.split(ROWS), strict=True)]
            ).argmax(dim=-1)
            rows = torch.cat([rows, best[:, None].cpu()], dim=1)
        return ["".join(token_text(self.model, i) for i in row[len(self.prompt) :].tolist()) for row in rows]

    def _run(self, x: Tensor, site: Site, tokens: Tensor) -> Tensor:
        where = torch.zeros(tokens.shape, dtype=torch.bool)
        where[:, self.position] = True
        write = Write(self.into or site, Value(x[:, None, :]), where)
        with torch.no_grad(), intervene(self.model, [write]):
            return run_to_the_end(self.model, tokens)


@borrows
def identity_prompt(model: TransformerBridge, words: Sequence[str], arrow: str = " ->", end: str = ";") -> str:
    """Examples of saying a word again, and an open place: ``"cat -> cat; dog -> dog; x"``; patch at the last
    position.
    """
    if not words:
        raise InputError("an identity prompt needs example words")
    return "".join(f"{word}{arrow} {word}{end} " for word in words) + "x"


@dataclass(frozen=True, eq=False)
class FutureLens(Readable):
    """Translators at ``resid_pre`` to the last state `ahead` positions later; ahead 0 would be the tuned
    lens's start.
    """

    parts: Parts
    ahead: int
    model: Provenance
    provenance: Provenance

    @property
    def name(self) -> str:
        return f"future lens (+{self.ahead})"

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("resid_pre", "resid_post")

    def check(self, model: TransformerBridge) -> None:
        """Raises `ArtefactError` for another model."""
        require_same(self.model, model, f"this {self.name}")

    def translate(self, x: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        own = self._at(site, x)
        return translate(Full(), own, x.to(own["bias"].dtype))

    def push(self, v: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        own = self._at(site, v)
        return v.to(own["bias"].dtype) + Full().change(own, v.to(own["bias"].dtype))

    def _at(self, site: Site, like: Tensor) -> Parts:
        n = len(self.parts["bias"])
        index = (
            n - 1
            if site.kind == "resid_post" and site.layer == n - 2
            else site.layer
            if site.kind == "resid_pre"
            else None
        )
        if index is None or index >= n:
            raise InputError(f"the future lens reads resid_pre.0 to resid_post.{n - 2}; got {site}")
        dtype = torch.promote_types(like.dtype, torch.float32)
        return {name: part[index].to(like.device, dtype) for name, part in self.parts.items()}


@borrows
def fit_future_lens(
    model: TransformerBridge, text: Any, ahead: int = 1, *, n_tokens: int = 50_000, ridge: float = 1e-3
) -> FutureLens:
    """The ridge regression of the last state `ahead` positions later on each place's state, over `n_tokens` tokens of
    `text`.

    Every place is fitted, the last one too (there it says what can be told of the future from the state that speaks
    now). Cost: one forward per token. Raises `InputError` for `ahead` below 1 or text without rows that long.
    """
    anatomy = read_anatomy(model)
    if ahead < 1:
        raise InputError(f"ahead counts positions and is at least 1; got {ahead}")
    stream = text if isinstance(text, TextStream) else open_text(model, text)
    sites, norm = lens_sites(anatomy), final_norm(model)
    moments = [PlaceMoments.zeros(anatomy.d_model, device_of(model)) for _ in sites]
    seen, cursor = 0, 0
    while seen < n_tokens and (rows := stream.rows(cursor, ROWS)):
        cursor += len(rows)
        for batch in forward_batches(rows, 4096):
            states = record_states(model, batch.tokens, sites)
            mask = batch.mask[:, ahead:]
            if not bool(mask.any()):
                continue
            last = states[-1][:, ahead:][mask]
            weight = torch.ones(len(last), device=last.device) if norm is None else norm.scale(last)[:, 0] ** -2
            for place, x in zip(moments, states, strict=True):
                place.add(x[:, :-ahead][mask], last, weight)
            seen += len(last)
    if not seen:
        raise InputError(f"no row of the text has more than {ahead} tokens; give longer ones")
    fitted = [Full().fit(place, ridge) for place in moments]
    parts = {name: torch.stack([one[name] for one in fitted]).float().cpu() for name in fitted[0]}
    return FutureLens(
        parts,
        ahead,
        fingerprint(model),
        build_provenance(method="future lens", ahead=ahead, text=stream.facts, n_tokens=seen),
    )


@dataclass(frozen=True, eq=False)
class DecoderComparison(Result):
    """``surprisal[decoder, place, state]`` in bits of the text's token `ahead` positions after the next one, and
    whether it came first.
    """

    decoders: tuple[str, ...]
    places: tuple[str, ...]
    surprisal: Float[Tensor, "decoder place state"]
    first: Float[Tensor, "decoder place state"]
    ahead: int
    provenance: Provenance

    def _table(self) -> Table:
        """One row per decoder and place, with a bootstrap interval of the surprisal."""
        low, high = bootstrap_interval(self.surprisal.permute(2, 0, 1).contiguous(), n=500)
        return [
            {
                "decoder": name, "place": place, "surprisal_bits": float(self.surprisal[i, j].mean()),
                "low": float(low[i, j]), "high": float(high[i, j]),
                "first": float(self.first[i, j].mean()),
            }
            for i, name in enumerate(self.decoders)
            for j, place in enumerate(self.places)
        ]  # fmt: skip

    def __str__(self) -> str:
        head = (
            f"surprisal in bits (share ranked first) of the token {self.ahead + 1} ahead, "
            f"{self.surprisal.shape[-1]} states"
        )
        lines = [head, f"{'place':<14}" + "".join(f"{name:>26}" for name in self.decoders)]
        for j, place in enumerate(self.places):
            cells = [
                f"{float(s[j].mean()):.2f} ({float(f[j].mean()):.2f})"
                for s, f in zip(self.surprisal, self.first, strict=True)
            ]
            lines.append(f"{place:<14}" + "".join(f"{cell:>26}" for cell in cells))
        return "\n".join(lines)


@borrows
@torch.no_grad()
def compare_decoders(
    model: TransformerBridge,
    decoders: Sequence[StateDecoder],
    text: Any,
    *,
    ahead: int = 0,
    n_rows: int = 16,
    sites: Sequence[Site] = (),
    start: int = 0,
) -> DecoderComparison:
    """How well each decoder tells the text's own token from states of `sites` (default: every ``resid_pre`` and the
    last place).

    `ahead` 0 is the next token. Cost: 1 forward per row, and what each decoder costs per state. Raises `InputError`
    without decoders or states.
    """
    chosen = list(sites) or lens_sites(read_anatomy(model))
    stream = text if isinstance(text, TextStream) else open_text(model, text)
    rows = [row for row in stream.rows(start, n_rows) if len(row) > ahead + 1]
    if not decoders or not rows or ahead < 0:
        raise InputError(f"a comparison needs decoders, rows of more than {ahead + 1} tokens, and ahead >= 0")
    found: list[list[list[Tensor]]] = [[[] for _ in chosen] for _ in decoders]
    hits: list[list[list[Tensor]]] = [[[] for _ in chosen] for _ in decoders]
    for batch in forward_batches(rows, 2048):
        mask = batch.mask[:, ahead + 1 :]
        target = batch.tokens[:, ahead + 1 :][mask]
        for j, (site, state) in enumerate(zip(chosen, record_states(model, batch.tokens, chosen), strict=True)):
            x = state[:, : state.shape[1] - ahead - 1][mask]
            for i, decoder in enumerate(decoders):
                for part, own in zip(x.split(256), target.split(256), strict=True):
                    log_q = decoder.logits(part, site).float().log_softmax(dim=-1).cpu()
                    found[i][j].append(-log_q.gather(1, own[:, None])[:, 0] * BITS)
                    hits[i][j].append((log_q.argmax(dim=-1) == own).float())
    surprisal, first = (
        torch.stack([torch.stack([torch.cat(c) for c in row]) for row in table]) for table in (found, hits)
    )
    provenance = build_provenance(
        method="decoder comparison", ahead=ahead, text=stream.facts, model=identify_model(model)
    )
    return DecoderComparison(
        tuple(d.name for d in decoders), tuple(map(str, chosen)), surprisal, first, ahead, provenance
    )
