"""The lens table: what every place of the stream says at every position of some prompts.

    table = read_lens(model, "When Mary and John went to the shop, John gave a drink to")
    table.show()                                  # token x layer, most probable tokens on hover
    table.prediction_depth                        # the first place from which on the model's last word does not change

Places run from the stream entering the first block to the one leaving the last, which is the model's own output.
Cost: 1 forward (64 prompts at a time), and one product with the unembedding per place. Never
``[place, batch, pos, d_vocab]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..artefact import Artefact
from ..errors import InputError, UnknownNameError
from ..execute.memory import cut
from ..models.anatomy import read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.room import rows_that_fit
from ..shapes import PositionMask, Tokens
from ..tasks.marks import plain_tokens
from ..tasks.task import Task
from .lens import LOGIT_LENS, Lens
from .prompts import Prompt, Prompts, as_prompts, one_token, read_vocabulary, token_text
from .readout import Reading, Readout
from .states import RESIDUAL, lens_sites, record_states

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Target = str | int | Tensor | None
"""One token for all positions, ids ``[batch]`` or ``[batch, pos]``, or None: the prompt's own next token."""


@dataclass(frozen=True, eq=False)
class LensTable(Result, version=2):
    """Readings ``[place, batch, pos]`` (padding included: see `mask`); entropies, surprisals and divergences in bits.

    `kl` is D(model's output || reading); `rank` counts tokens with a larger logit than the target. `texts` holds the
    text of every token id that occurs.
    """

    lens: str
    places: tuple[str, ...]
    tokens: Tokens
    mask: PositionMask
    top_ids: Int[Tensor, "place batch pos k"]
    top_probabilities: Float[Tensor, "place batch pos k"]
    entropy: Float[Tensor, "place batch pos"]
    kl: Float[Tensor, "place batch pos"]
    targets: Int[Tensor, "batch pos"]
    rank: Int[Tensor, "place batch pos"]
    surprisal: Float[Tensor, "place batch pos"]
    texts: dict[int, str]
    provenance: Provenance

    def __post_init__(self) -> None:
        if len(self.places) != len(self.kl):
            raise InputError(f"a lens table has readings at each of its {len(self.places)} places; got {len(self.kl)}")
        if bool((self.rank < 0).any()):
            raise InputError("ranks count tokens with a larger logit, from 0 on; got negative ones")
        shown = torch.cat([x.flatten() for x in (self.tokens, self.targets, self.top_ids)]).unique().tolist()
        if unknown := [i for i in shown if i not in self.texts]:
            raise InputError(f"a lens table has the text of every token that occurs; there is none for {unknown[:5]}")

    @property
    def top_token(self) -> Int[Tensor, "place batch pos"]:
        """The most probable token of each cell."""
        return self.top_ids[..., 0]

    @property
    def probability(self) -> Float[Tensor, "place batch pos"]:
        """Probability of the target."""
        return (-self.surprisal).exp2()

    @property
    def prediction_depth(self) -> Int[Tensor, "batch pos"]:
        """The first place from which on the most probable token is the model's own at every later place (Belrose et al.
        2023).

        An index into `places`; the last one where only the output itself says it.
        """
        agrees = self.top_token == self.top_token[-1]
        return len(self.places) - agrees.flip(0).int().cumprod(dim=0).sum(dim=0)

    def words(self, place: int | str, row: int, pos: int) -> list[tuple[str, float]]:
        """The most probable tokens of one cell, as text, with their probabilities."""
        index = self.places.index(place) if isinstance(place, str) else place
        cell = (index, row, pos)
        return [
            (self.texts[i], p)
            for i, p in zip(self.top_ids[cell].tolist(), self.top_probabilities[cell].tolist(), strict=True)
        ]

    def prompt(self, row: int) -> list[str]:
        """The tokens of one prompt as text."""
        return [self.texts[i] for i in self.tokens[row][self.mask[row]].tolist()]

    def mean(self, name: str) -> Float[Tensor, " place"]:
        """`kl`, `entropy`, `surprisal` or `rank`, averaged over all real positions of all prompts."""
        if name not in ("kl", "entropy", "surprisal", "rank"):
            raise InputError(f"kl, entropy, surprisal and rank have means; got {name!r}")
        return getattr(self, name).double()[:, self.mask].mean(dim=1)

    def _table(self) -> Table:
        """One row per place, prompt and real position."""
        rows, positions = self.mask.nonzero(as_tuple=True)
        n = len(self.places)

        def words(ids: Tensor) -> list[str]:
            return [self.texts[i] for i in ids.flatten().tolist()]

        def cells(values: Tensor) -> Tensor:
            return values[:, rows, positions]

        return {
            "place": [place for place in self.places for _ in rows], "row": rows.tolist() * n,
            "pos": positions.tolist() * n,
            "token": words(self.tokens[rows, positions]) * n, "top": words(cells(self.top_token)),
            "top_probability": cells(self.top_probabilities)[..., 0].flatten().tolist(),
            "target": words(self.targets[rows, positions]) * n, "target_rank": cells(self.rank).flatten().tolist(),
            "target_probability": cells(self.probability).flatten().tolist(),
            "entropy_bits": cells(self.entropy).flatten().tolist(), "kl_bits": cells(self.kl).flatten().tolist(),
        }  # fmt: skip

    def __str__(self) -> str:
        ends = self.mask.sum(dim=1) - 1
        lines = [f"{self.lens}, last position of each prompt (first 4)"]
        for k, place in enumerate(self.places):
            cells = [self.words(k, row, int(ends[row]))[0] for row in range(min(4, len(self.tokens)))]
            lines.append(f"{place:<16}" + "  ".join(f"{text!r:>14} {p:4.2f}" for text, p in cells))
        return "\n".join(lines)

    @classmethod
    def _from_old(cls, found: Artefact) -> LensTable:
        facts = {**found.facts, "places": tuple(found.facts["places"])}
        facts["texts"] = {int(i): text for i, text in found.facts["texts"].items()}
        return cls(**{**facts, **found.tensors})


LOGIT = "logit"
"""The logit lens by name, here as in the shell."""


@borrows
def read_lens(
    model: TransformerBridge,
    prompts: Task | str | Tensor | Prompts | Sequence[Prompt] | Sequence[int],
    lens: Lens | str = LOGIT_LENS,
    *,
    kinds: Sequence[str] = (),
    target: Target = None,
    top_k: int = 10,
) -> LensTable:
    """What `lens` (``"logit"``: the logit lens; `load_lens` has others) reads at every place and position. `kinds`: of
    residual site (default: ``resid_pre``, or the lens's own).

    A `Task` brings its clean prompts, and its (first) correct answer as the target (whole answers: each position's next
    token). For other prompts without `target`,
    each position's target is the prompt's next token, and at the last one the model's own most probable token. Raises
    `InputError` for a target of several tokens, kinds that the lens cannot read or the model does not have, empty or
    too long prompts; `ArtefactError` for a lens of another model.

    >>> table = read_lens(model, ["The cats", "The cat"], target=" are")
    >>> table.kl.shape
    torch.Size([7, 2, 3])
    """
    anatomy = read_anatomy(model)
    if isinstance(lens, str):
        if lens != LOGIT:
            raise UnknownNameError("lens", lens, [LOGIT])
        lens = LOGIT_LENS
    data = None
    if isinstance(prompts, Task):
        data, pairs = prompts.provenance(), prompts.pairs
        if target is None and pairs.continuations is None:
            target = pairs.correct[:, 0]
        prompts = Prompts(pairs.clean_tokens.cpu(), pairs.mask.cpu())
    run = as_prompts(model, prompts)
    given = Prompts(plain_tokens(run.tokens), run.mask)
    chosen = _kinds(lens, kinds)
    sites = lens_sites(anatomy, chosen)
    lens.check(model)
    if top_k < 1:
        raise InputError(f"a table shows at least one token per cell: top_k >= 1; got {top_k}")
    wanted = _targets(model, given, target)
    readout = Readout.of(model)
    parts: list[Reading] = []
    for block in cut(len(given), rows_that_fit(model, given.tokens, sites=sites)):
        start, rows = block.start, torch.arange(block.start, block.stop)
        states = record_states(model, run.tokens[rows], sites)
        if target is None:
            last = readout.read(states[-1][rows - start, given.ends[rows]], top_k=1).top_ids
            assert last is not None
            wanted[rows, given.ends[rows]] = last[:, 0]
        translated = [*(lens.translate(x, site) for x, site in zip(states[:-1], sites[:-1], strict=True)), states[-1]]
        k = min(top_k, readout.d_vocab)
        parts.append(readout.read_places(translated, top_k=k, targets=wanted[rows], reference=states[-1]))
    found = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in vars(parts[0])}
    ids = torch.cat([found["top_ids"].flatten(), given.tokens.flatten(), wanted.flatten()]).unique().tolist()
    task = {} if data is None else {"task": data}
    provenance = build_provenance(method="lens table", lens=lens.name, model=identify_model(model), **task)
    return LensTable(
        lens=lens.name,
        places=tuple(map(str, sites)),
        tokens=given.tokens,
        mask=given.mask,
        targets=wanted,
        texts={i: token_text(model, i) for i in ids},
        provenance=provenance,
        **found,
    )


def _kinds(lens: Lens, kinds: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(kinds) or (("resid_pre",) if "resid_pre" in lens.kinds else lens.kinds)
    wrong = [kind for kind in chosen if kind in RESIDUAL and kind not in lens.kinds]
    if wrong:
        raise InputError(
            f"the {lens.name} reads {', '.join(lens.kinds)}; got {', '.join(wrong)}. Train one for that kind."
        )
    return chosen


def _targets(model: TransformerBridge, prompts: Prompts, target: Target) -> Int[Tensor, "batch pos"]:
    """Target ids per position; where none is given, the next token (the last position's is filled in later)."""
    shape = prompts.tokens.shape
    if target is None:
        return torch.cat([prompts.tokens[:, 1:], prompts.tokens[:, -1:]], dim=1).contiguous()
    if isinstance(target, Tensor):
        ids = target[:, None] if target.ndim == 1 else target
        fits = (
            ids.ndim <= 2
            and not ids.is_floating_point()
            and all(a in (1, b) for a, b in zip(ids.shape[::-1], shape[::-1], strict=False))
        )
        if not fits or not 0 <= int(ids.min()) <= int(ids.max()) < read_vocabulary(model):
            raise InputError(
                f"targets are token ids [batch] or [batch, pos] = {tuple(shape)}; got {tuple(target.shape)} of "
                f"{target.dtype}"
            )
        return ids.long().cpu().expand(shape).clone()
    return torch.full(shape, one_token(model, target))
