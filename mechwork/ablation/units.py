"""An ablation sweep as units: a sweep of `patching` in which a fitted ablation gives what is put in.

The fitting sees the whole reference set, so it is done before and its tables travel with the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..execute.task import unpack_task
from ..execute.unit import Run, Tensors, Work
from ..interventions import replace_at
from ..models.anatomy import device_of
from ..models.identity import identify_model
from ..patching.execute import GivenRows
from ..patching.sides import Given
from ..patching.units import build as build_sweep
from ..tasks.task import Task
from .bind import bind
from .fitted import Ablation
from .spec import AblationSpec, directions_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "ablate.block"
STUDY = "study.block"
FITTED = "fitted."


def given_by(model: TransformerBridge, task: Task, fitted: Mapping[str, Ablation]) -> GivenRows:
    """What replaces whole activations of each kind of site (`fitted`: by kind), for some rows of the task."""

    def rows_given(rows: slice) -> Given:
        pairs = task.pairs[rows.start : rows.stop].to(device_of(model))
        values = {kind: bind(model, one.spec, one.tables, pairs, rows.start).values for kind, one in fitted.items()}

        def put(kind: str, layer: int, own: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch pos ..."]:
            return replace_at(values[kind][f"{kind}.{layer}"], own, 0)

        return put

    return rows_given


def pack_fitted(fitted: Mapping[str, Ablation]) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """Specs as JSON values and tables as tensors, by kind of site."""
    specs = {kind: one.spec.to_json() for kind, one in fitted.items()}
    data = {}
    for kind, one in fitted.items():
        tensors = {f"table.{name}": table for name, table in one.tables.items()}
        data[FITTED + kind] = tensors | {f"direction.{name}": rows for name, rows in one.spec.directions.items()}
    return {"fitted": specs}, data


def given_means(means: Sequence[Float[Tensor, "batch pos head d_head"]]) -> GivenRows:
    """Every layer's `means`, computed over the whole task, for some rows of it."""

    def rows_given(rows: slice) -> Given:
        return lambda _, layer, own: means[layer][rows, : own.shape[1]].to(own.device)

    return rows_given


def build_study(model: TransformerBridge, work: Work) -> Run:
    """What runs the units of a study of heads in a process that has the work's data and the model alone."""
    means = work.data["means"]
    return build_sweep(model, work, given_means([means[str(layer)] for layer in range(len(means))]))


def build(model: TransformerBridge, work: Work) -> Run:
    """What runs the sweep's units in a process that has the work's data and the model alone."""
    task = unpack_task(work.settings["task"], work.data["task"])
    fitted = {}
    for kind, spec in work.settings["fitted"].items():
        tensors = work.data[FITTED + kind]
        tables = {name.removeprefix("table."): table for name, table in tensors.items() if name.startswith("table.")}
        fitted[kind] = Ablation(AblationSpec.from_json(spec, directions_of(tensors)), tables, identify_model(model))
    return build_sweep(model, work, given_by(model, task, fitted))
