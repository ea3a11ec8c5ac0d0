"""Work as pure data: what runs on which model with which settings and tensors, and the units it is cut into.

A `Work` is one call (a sweep, a table of scores); a `Unit` is a piece of it: some rows of the task, and some part
(cells, circuits) as JSON. Both have a key, the sha256 of everything the numbers depend on: operation, weights,
settings, rows, part and data. Where the model was loaded from, and who runs it, do not belong to the key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..display import Readable
from ..errors import ArtefactError, InputError
from ..models.anatomy import device_of, dtype_of
from ..models.identity import is_split, revision_of, source_of, weights_sha256
from ..provenance import hash_json, hash_tensors
from ..tasks.marks import is_marked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ModelRef:
    """A model by identity: where it comes from (None: made in this process), dtype, kind of device, sha256 of its
    weights, the hub's commit, whether keys and values are split.
    """

    source: str | None
    dtype: str
    device: str
    weights_sha256: str
    revision: str | None = None
    split_kv: bool = False

    @classmethod
    def of(cls, model: TransformerBridge) -> ModelRef:
        """The reference of a loaded model."""
        dtype = str(dtype_of(model)).removeprefix("torch.")
        return cls(
            source_of(model), dtype, device_of(model).type, weights_sha256(model), revision_of(model), is_split(model)
        )

    def load(self, *, device_map: Any = None) -> TransformerBridge:
        """The model, loaded here, by `device_map` over several devices. Raises `ArtefactError` when its weights are not
        those that were meant.
        """
        from ..models import load_model

        if self.source is None:
            raise InputError(
                "this model was made in the process that holds it, so other processes cannot load it. Load it by name "
                "or from "
                "a folder (load_model('gpt2-6l')), or use executor('forked'), whose workers share it."
            )
        device = None if self.device == "cpu" or device_map is not None else self.device
        dtype = getattr(torch, self.dtype)
        model = load_model(
            self.source, device, dtype, device_map=device_map, revision=self.revision, split_kv=self.split_kv
        )
        found = weights_sha256(model)
        if found != self.weights_sha256:
            raise ArtefactError(
                f"{self.source} has other weights here (sha256 {found[:12]}) than where the work was planned "
                f"({self.weights_sha256[:12]}): it was changed in memory, or this machine has another version of it. "
                "Save the changed model to a folder that every worker can read, and load that."
            )
        return model


@dataclass(frozen=True)
class Unit:
    """A piece of the work `work` (its key): the rows ``[first, last)`` of the task, and which part, as
    canonical JSON.
    """

    work: str
    operation: str
    rows: tuple[int, int]
    part: str

    @cached_property
    def key(self) -> str:
        """sha256 of what the unit is; the name of its result."""
        return hash_json([self.work, self.operation, list(self.rows), self.part])

    @property
    def says(self) -> Any:
        """The part as JSON values."""
        return json.loads(self.part)

    def __str__(self) -> str:
        return f"{self.operation} of pairs {self.rows[0]} to {self.rows[1] - 1} ({self.key[:12]})"


@dataclass(frozen=True, eq=False)
class Work(Readable):
    """One call. `operation` is a name in `operations.OPERATIONS`; `settings` are JSON values; `data` are tensors by
    name.

    `here_only` says why it cannot run in a process that does not share this one's memory (None: it can).
    """

    operation: str
    model: ModelRef
    settings: Mapping[str, Any]
    data: Mapping[str, Tensors] = field(default_factory=dict)
    here_only: str | None = None

    def __post_init__(self) -> None:
        tokens = self.data.get("task", {})
        if any(is_marked(tokens[name]) for name in ("clean_tokens", "corrupt_tokens") if name in tokens):
            reason = "its pairs differ in writes that this process holds; use forked workers"
            object.__setattr__(self, "here_only", self.here_only or reason)

    @cached_property
    def key(self) -> str:
        """sha256 of what the numbers depend on."""
        hashes = {name: hash_tensors(tensors) for name, tensors in self.data.items()}
        return hash_json([self.operation, self.model.dtype, self.model.weights_sha256, self.settings, hashes])

    def unit(self, rows: slice, part: Any = None) -> Unit:
        """The unit of some rows and some part."""
        return Unit(self.key, self.operation, (rows.start, rows.stop), json.dumps(part, separators=(",", ":")))

    def identity(self) -> dict[str, Any]:
        """What a ledger of this work says it is of."""
        return {
            "operation": self.operation,
            "work": self.key,
            "weights_sha256": self.model.weights_sha256,
            "dtype": self.model.dtype,
            **bits(self.model.device),
        }


def bits(device: str) -> dict[str, Any]:
    """What two runs must share, beside all that a unit's key holds, to give the same bits."""
    return {"device": device, "threads": torch.get_num_threads()}


Run = Callable[[Unit], Tensors]
"""Runs one unit on a model that is at hand; the tensors may be on any device."""
