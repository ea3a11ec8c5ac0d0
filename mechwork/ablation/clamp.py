"""Clamping: hold a set of activations at the values they have in another run, of other prompts or of another model.

    clamp = record_clamp(donor, tokens, ["a0.h0"], what="pattern")
    with clamp.applied(model):
        model(tokens)

Run between checkpoints of one training it asks what a component is worth that the model does not have yet (clamped to a
later step), or no longer needs (clamped to an earlier one), as Singh et al. 2024 (arXiv:2404.07129) do during training.
Cost: 1 forward of the donor; nothing beside the forward it is applied to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ..display import Readable
from ..errors import ArtefactError, InputError, UnknownNameError
from ..interventions import ByCell, ByPosition, Write, intervene
from ..models.anatomy import check_ready, device_of
from ..models.identity import identify_model
from ..provenance import Provenance, hash_tensors
from ..runs.record import record_run
from ..sites import SQUARE_KINDS, Site
from ..tasks.pairs import PromptPairs
from .targets import parse_target

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WHAT = ("z", "pattern", "q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_post")


@dataclass(frozen=True, eq=False)
class Clamp(Readable):
    """Values ``[batch, pos, ...]`` per site, of one run of particular tokens; `donor` says of which model and
    tokens.
    """

    values: dict[Site, Tensor]
    donor: Provenance

    @contextmanager
    def applied(self, model: TransformerBridge) -> Iterator[None]:
        """Inside, the sites hold the recorded values, in prompts as many as the donor's and no longer (absolute
        positions).

        Raises `ArtefactError` for a model of another architecture.
        """
        anatomy = check_ready(model).to_dict()
        if anatomy != self.donor["model"]["anatomy"]:
            raise ArtefactError(
                f"the clamped values come from {self.donor['model']['name']}, which has another architecture"
            )
        writes = [
            Write(site, ByCell(value) if site.kind in SQUARE_KINDS else ByPosition(value))
            for site, value in self.values.items()
        ]
        with intervene(model, writes):
            yield


def record_clamp(
    donor: TransformerBridge, tokens: Int[Tensor, "batch pos"], targets: Sequence[str], *, what: str | None = None
) -> Clamp:
    """The values of `targets` (heads ``a0.h0``, attention ``a0``, MLPs ``m0``) in a run of `donor` on `tokens`.

    `what`: for heads ``"z"`` (default), ``"pattern"``, ``"q"``, ``"k"`` or ``"v"``. Raises `InputError` for other
    targets, or patterns that this architecture does not let be written.
    """
    anatomy = check_ready(donor)
    sites = []
    for text in targets:
        target = parse_target(text)
        if target.kind == "head":
            kind = what or "z"
            if kind not in ("z", "pattern", "q", "k", "v"):
                raise UnknownNameError("activation of a head", kind, ("z", "pattern", "q", "k", "v"))
            head = target.index[0] // anatomy.group_size if kind in ("k", "v") else target.index[0]
            sites.append(Site(kind, target.layer, head))
        elif target.kind in ("attn", "mlp"):
            sites.append(Site("attn_out" if target.kind == "attn" else "mlp_out", target.layer))
        else:
            raise InputError(f"clamped are heads, attention and MLPs; got {text!r}")
    if not sites:
        raise InputError("targets is a list of at least one head, attention or MLP; got none")
    for site in sites:
        anatomy.check_writable(site)
    whole = sorted({Site(site.kind, site.layer) for site in sites}, key=lambda site: (site.layer or 0, site.kind))
    lone = PromptPairs.from_tokens(tokens, (tokens + 1) % anatomy.d_vocab, [0] * len(tokens), [1] * len(tokens))
    run = record_run(donor, lone.to(device_of(donor)), whole, n_tail=1)
    found = {site: run.layers[site.kind][[w for w in whole if w.kind == site.kind].index(site)] for site in whole}
    values = {}
    for site in sites:
        value = found[Site(site.kind, site.layer)]
        axis = 1 if site.kind in SQUARE_KINDS else 2
        values[site] = value if site.head is None else value.select(axis, site.head)
    return Clamp(values, {"model": identify_model(donor), "tokens": hash_tensors({"tokens": tokens})})
