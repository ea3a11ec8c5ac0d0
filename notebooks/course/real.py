"""A real model in the course: measured where its file is at hand, read from what the course stores where it is not.

    model = course.real_model()  # by MECHWORK_REAL_MODEL, or a path; None, with a word, if there is none
    accuracy = course.live("accuracy", lambda: {"ioi": mw.tasks.ioi(model, n=16).accuracy(model)})

`live` calls the function when a model is at hand and returns what it stored when not. Stored numbers are plain JSON;
``python -m notebooks.course.outputs 09`` makes them anew by running lesson 9 with the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "MECHWORK_REAL_MODEL"
STORED = Path(__file__).with_name("real_model.json")

_STATE: dict[str, Any] = {"model": None, "file": "", "made": {}}


def real_model(path: str | Path | None = None) -> Any:
    """The model at `path`, or at the path that MECHWORK_REAL_MODEL names: a GGUF file or a folder. None if there is
    none.
    """
    where = path or os.environ.get(VARIABLE)
    _STATE.update(model=None, made={})
    if not where:
        print(
            f"No real model at hand: no path was given and {VARIABLE} is not set. The numbers below were stored with "
            f"the course:\n{_stored()['made_with']}.\nTo run it live: course.real_model('your/path/model.gguf'), "
            "then all cells below again."
        )
        return None
    if not Path(where).exists():
        raise FileNotFoundError(f"there is no model at {where}; give the path of a GGUF file or of a model's folder")
    import mechwork as mw

    model = _STATE["model"] = mw.load_model(str(where))
    _STATE["file"] = Path(where).name
    print(f"Live: {Path(where).name}")
    return model


def live(name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, as plain JSON values, if a real model is at hand; else what was stored under `name`."""
    if _STATE["model"] is None:
        numbers = _stored()["numbers"]
        if name not in numbers:
            raise KeyError(f"nothing is stored as {name!r}; there are {', '.join(numbers)}")
        return numbers[name]
    made = json.loads(json.dumps(make()))
    _STATE["made"][name] = made
    return made


def _stored() -> dict[str, Any]:
    return json.loads(STORED.read_text(encoding="utf-8"))


def store() -> Path:
    """Keep what `live` made since the model was loaded; returns the file. Called when the outputs are renewed."""
    if _STATE["model"] is None:
        raise ValueError(f"there is nothing to store: no real model was loaded. Set {VARIABLE} and run lesson 9")
    with_what = f"{_STATE['file']}, float32 on the CPU, by python -m notebooks.course.outputs 09"
    whole = {"made_with": with_what, "numbers": _STATE["made"]}
    STORED.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return STORED
