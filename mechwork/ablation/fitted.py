"""`Ablation`: a spec with the activations it puts in place, where they came from, and the context manager that applies
it.

    ablation = fit_ablation(model, AblationSpec(["a1.h0"], "mean"), task)
    with ablation.applied(model):
        model(tokens); model.run_with_cache(tokens); model.generate(tokens)

Tables are kept by place: ``z.3`` (all heads of layer 3), ``mlp_out.3``, or by the target's own text for directions,
attention edges and experts. Cost of fitting: 1 forward per batch of reference prompts; of applying: the forward
itself (`corrupt`: 1 more).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..artefact import read_artefact, write_artefact
from ..display import Readable
from ..errors import ArtefactError, InputError
from ..execute.memory import MemoryBudget
from ..files import reading
from ..interventions import other_prompts, require_examples, require_spans
from ..models.anatomy import check_ready
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance
from ..runs.room import DEFAULT_BUDGET, d_mlp_of
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .bind import Bound, bind
from .record import record_examples, record_moments
from .spec import NEEDS_REFERENCE, AblationSpec, directions_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PLACES = ("z", "mlp_out", "attn_out", "mlp_post")
"""Kinds of site whose tables are one vector a layer; of heads, one vector a head."""
FORMAT = 1
WHAT = "ablation"


@dataclass(frozen=True, eq=False)
class Ablation(Readable):
    """A spec and its tables. `reference`: name, size and sha256 of the data behind them; `model`: whose activations
    they are.
    """

    spec: AblationSpec
    tables: dict[str, Tensor]
    model: Provenance
    reference: Provenance | None = None

    def __post_init__(self) -> None:
        if missing := [name for name in ("name", "anatomy", "weights_sha256") if name not in self.model]:
            raise InputError(f"an ablation knows the model it belongs to; its identity lacks {', '.join(missing)}")
        if self.spec.kind in NEEDS_REFERENCE and not self.tables:
            raise InputError(f"an ablation of kind {self.spec.kind!r} has the values it puts in place; got none")
        if bad := [
            name for name, table in self.tables.items() if table.is_complex() or not bool(table.isfinite().all())
        ]:
            raise InputError(f"an ablation puts finite values in place; there are others for {', '.join(bad)}")
        if self.spec.kind in ("mean", "optimal") and (
            bad := [
                name
                for name, table in self.tables.items()
                if table.ndim != 1 + name.startswith("z.") and name.split(".")[0] in PLACES
            ]
        ):
            raise InputError(f"a mean is one value per place; there are tables of another shape for {', '.join(bad)}")

    def bind(self, model: TransformerBridge, pairs: PromptPairs | None = None, *, first_row: int = 0) -> Bound:
        """The writes of this ablation for the clean prompts of `pairs`, which begin at row `first_row` of their task.

        Raises `ArtefactError` for a model of another architecture or other weights, `InputError` when the kind or the
        positions belong to prompts and no `pairs` are given. Cost: nothing; `corrupt`: 1 forward.
        """
        self.check_model(model)
        return bind(model, self.spec, self.tables, pairs, first_row)

    @contextmanager
    def applied(
        self, model: TransformerBridge, pairs: PromptPairs | None = None, *, first_row: int = 0
    ) -> Iterator[Bound]:
        """Inside, `model` runs ablated: forwards, ``run_with_cache``, and generation with a key-value cache.

        `pairs` are the prompts that will be run, needed when the kind (``corrupt``, ``resample``, ``mean_by_span``) or
        the positions (spans) belong to prompts.
        """
        bound = self.bind(model, pairs, first_row=first_row)
        with bound.installed(model):
            yield bound

    def check_model(self, model: TransformerBridge) -> None:
        """Raises `ArtefactError` when the tables belong to another architecture or to other weights."""
        anatomy = check_ready(model).to_dict()
        if anatomy != self.model["anatomy"]:
            differing = [name for name, value in anatomy.items() if value != self.model["anatomy"].get(name)]
            raise ArtefactError(
                f"this ablation was made for {self.model['name']}, whose {', '.join(differing)} differ from this "
                "model's. "
                "Fit the spec to this model: fit_ablation(model, ablation.spec, reference)."
            )
        if self.tables and identify_model(model)["weights_sha256"] != self.model["weights_sha256"]:
            raise ArtefactError(
                f"the values of this ablation were recorded in {self.model['name']} with other weights. "
                "Fit the spec to this model: fit_ablation(model, ablation.spec, reference)."
            )

    def provenance(self) -> Provenance:
        """Spec, hash and reference."""
        return {"spec": self.spec.to_json(), "sha256": self.spec.sha256, "reference": self.reference}

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: tables and directions as tensors, spec and provenance as JSON in its header."""
        content = {"spec": self.spec.to_json(), "model": self.model, "reference": self.reference}
        tensors = {f"table.{name}": table for name, table in self.tables.items()}
        tensors |= {f"direction.{name}": rows for name, rows in self.spec.directions.items()}
        return write_artefact(Path(path).with_suffix(".safetensors"), WHAT, content, tensors, version=FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Ablation:
        """Read what `save` wrote; raises `ArtefactError` for another kind of file, damaged or newer ones."""
        found = read_artefact(path, WHAT, version=FORMAT)
        tables = {name.removeprefix("table."): x for name, x in found.tensors.items() if name.startswith("table.")}
        with reading(path, WHAT):
            spec = AblationSpec.from_json(found.facts["spec"], directions_of(found.tensors))
            return cls(spec, tables, found.facts["model"], found.facts["reference"])


@borrows
def fit_ablation(
    model: TransformerBridge, spec: AblationSpec, reference: Task | None = None, *,
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
) -> Ablation:  # fmt: skip
    """The spec with its values: recorded on the clean prompts of `reference`, or learned on them.

    Raises `InputError` for targets that the model does not have, a kind that needs a reference without one, a reference
    of fewer than 8 prompts (at some position or span, for means by position or span), or without the spans the spec
    names; all before any forward. Cost: nothing, or 1 forward per batch of prompts that fits `memory_budget`;
    ``optimal``: about 60 x (forward + backward).

    >>> ablation = fit_ablation(model, AblationSpec(["a1.h0"], "mean"), task)
    """
    anatomy = check_ready(model)
    for target in spec.parsed:
        target.check(anatomy, d_mlp_of(model))
        if target.kind == "direction" and spec.directions[target.name].shape[-1] != (
            width := _width(model, target.site)
        ):
            raise InputError(
                f"{target} is a direction in {width} dimensions here; it has {spec.directions[target.name].shape[-1]}"
            )
    identity = identify_model(model)
    if spec.kind not in NEEDS_REFERENCE:
        return Ablation(spec, {}, identity)
    if reference is None:
        raise InputError(f"{spec.kind!r} ablation takes its values from a reference set; pass reference=task")
    tables = _tables(model, spec, reference, memory_budget)
    facts = {**reference.provenance(), "n_pos": reference.pairs.clean_tokens.shape[1], "prompts": "clean"}
    return Ablation(spec, tables, identity, facts)


def _tables(
    model: TransformerBridge, spec: AblationSpec, reference: Task, memory_budget: MemoryBudget
) -> dict[str, Tensor]:
    if spec.kind == "resample":
        order = other_prompts(reference, spec.seed)
        tables = record_examples(model, spec, reference, memory_budget)
        return {**tables, "order": order, "lengths": reference.pairs.lengths, "tokens": reference.pairs.clean_tokens}
    if spec.kind == "mean_by_span":
        require_spans(reference)
    else:
        require_examples(reference, by_position=spec.kind == "mean_by_position")
    if (
        spec.kind == "mean_by_position"
        and any(t.kind == "edge" for t in spec.parsed)
        and not reference.pairs.one_length
    ):
        raise InputError("mean patterns by position need reference prompts of one length; use kind 'mean'")
    if spec.kind == "optimal":
        from .optimal import learn_constants

        return learn_constants(model, spec, reference)
    return record_moments(model, spec, reference, memory_budget)


def _width(model: TransformerBridge, kind: str) -> int:
    if kind == "mlp_post":
        return d_mlp_of(model)
    return int(model.cfg.d_head if kind in ("q", "k", "v", "z") else model.cfg.d_model)
