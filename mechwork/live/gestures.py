"""Gestures: one live action each, as a value. The closed list that a host may ask for; nothing else is ever run.

Every gesture says whether the state admits it (`check`), what state it leads to (`then`), and what it asks of the model
(`ask`): an answer of plain JSON values. `python` prints what gives the same numbers; so does the command beside it.

| gesture | answers with |
|---|---|
| `Ablate`, `Patch`, `Rescale`, `Steer`, `ScaleFeature` | the metric before and after, controls, the next tokens |
| `ChooseRow`, `EditPrompts`, `Restore` | what the model says about the pair and the changes that are left |
| `ReadLens`, `Attention`, `Attribution`, `ReadFeatures` | a view of the state reached |
| `PatchEach`, `ScoreEdges` | every head measured; every edge estimated (jobs) |
| `KeepEdges`, `ToggleParts` | the circuit's faithfulness beside random circuits, and what it says about the pair |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from ..encoding import Decoder
from ..errors import InputError, UnknownNameError
from .changing import Ablate, ChooseRow, EditPrompts, Patch, Rescale, Restore, ScaleFeature, Steer
from .gesture import Gesture
from .looking import (
    Attention,
    Attribution,
    KeepEdges,
    PatchEach,
    ReadFeatures,
    ReadLens,
    ScoreEdges,
    ToggleParts,
)


def read_gesture(data: object) -> Gesture:
    """A gesture from JSON values, ``{"do": "ablate", "place": "a3.h1"}``; raises `InputError` for anything else."""
    if not isinstance(data, Mapping) or not isinstance(data.get("do"), str):
        raise InputError(f"a gesture is an object that says what to do; got {data!r:.80}")
    named = dict(data)
    cls = GESTURES.get(named.pop("do"))
    if cls is None:
        raise UnknownNameError("gesture", data["do"], GESTURES)
    try:
        return cast(Gesture, Decoder({}).build(cls, named, data["do"]))
    except (TypeError, ValueError) as error:
        raise InputError(f"{error}") from error


def gesture_json(gesture: Gesture) -> dict[str, Any]:
    """The gesture as JSON values; `read_gesture` reads them."""
    return {"do": gesture.do, **{f.name: getattr(gesture, f.name) for f in fields(cast(Any, gesture))}}


GESTURES: dict[str, type] = {
    cls.do: cls
    for cls in (
        Ablate, Patch, Rescale, Steer, ScaleFeature, ChooseRow, EditPrompts, Restore, ReadLens, Attention, Attribution,
        ReadFeatures, PatchEach, ScoreEdges, KeepEdges, ToggleParts,
    )
}  # fmt: skip
"""What a host may ask for, by its word."""

VIEWS = (ReadLens, Attention, Attribution, ReadFeatures)
"""Gestures that only look, and can be asked in two states to be compared."""
