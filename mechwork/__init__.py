"""mechwork: find, test and draw circuits in language models.

A tour; every subpackage's docstring says what it owns.

    import mechwork as mw
    model = mw.load_model("gpt2-6l")                      # a bundled model; or a local folder, or a hub name
    task = mw.tasks.ioi(model, n=64, seed=0)              # clean/corrupt pairs and a metric
    exact = mw.patch(model, task, sites=["resid_pre"])    # measured effects
    approx = mw.attribute(model, task, sites=["resid_pre"], rules="relp")   # estimated effects
    scores = mw.score_edges(model, task.train)            # every edge of the computational graph
    circuit = scores.circuit(n_edges=80)
    curve = mw.evaluate(model, task.test, scores)         # faithfulness, beside random and empty circuits
    mw.report("ioi.html", task, exact, scores, circuit, curve)

Importing this package imports nothing heavy: a name is fetched from its folder when it is first used. Type checkers
read the imports below; `_HOMES` says the same to Python (a test compares the two).
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from . import errors as errors
    from . import tasks as tasks
    from .ablation import AblationSpec as AblationSpec
    from .ablation import HeadStudy as HeadStudy
    from .ablation import ablate as ablate
    from .ablation import study_heads as study_heads
    from .circuits import Circuit as Circuit
    from .circuits import CircuitEvaluation as CircuitEvaluation
    from .circuits import EdgeScores as EdgeScores
    from .circuits import EdgeSpace as EdgeSpace
    from .circuits import FaithfulnessCurve as FaithfulnessCurve
    from .circuits import evaluate as evaluate
    from .circuits import ground_truth as ground_truth
    from .circuits import load_circuit as load_circuit
    from .circuits import referee as referee
    from .circuits import score_edges as score_edges
    from .directions import Direction as Direction
    from .directions import fit_direction as fit_direction
    from .directions import study_steering as study_steering
    from .discovery.discover import discover as discover
    from .discovery.discover import load_discovery as load_discovery
    from .discovery.explain import explain as explain
    from .discovery.found import Discovery as Discovery
    from .edits import save_model as save_model
    from .execute import executor as executor
    from .interventions import steered_pairs as steered_pairs
    from .lenses import LensTable as LensTable
    from .lenses import LogitAttribution as LogitAttribution
    from .lenses import TunedLens as TunedLens
    from .lenses import attribute_logits as attribute_logits
    from .lenses import load_lens as load_lens
    from .lenses import read_lens as read_lens
    from .lenses import train_lens as train_lens
    from .live import explore as explore
    from .models import load_model as load_model
    from .patching import Effects as Effects
    from .patching import attribute as attribute
    from .patching import patch as patch
    from .relevance import Composite as Composite
    from .relevance import TokenRelevance as TokenRelevance
    from .relevance import attribute_tokens as attribute_tokens
    from .relevance import check_conservation as check_conservation
    from .relevance import find_composite as find_composite
    from .render import figure as figure
    from .render import report as report
    from .runs import AttentionPatterns as AttentionPatterns
    from .runs import record_attention as record_attention
    from .runs import record_run as record_run
    from .sites import Site as Site
    from .tasks import metrics as metrics
    from .tasks.pairs import PromptPairs as PromptPairs
    from .tasks.task import Task as Task

__version__ = "0.2.0"

_HOMES = {
    "ablation": "AblationSpec HeadStudy ablate study_heads",
    "circuits": "Circuit CircuitEvaluation EdgeScores EdgeSpace FaithfulnessCurve evaluate ground_truth load_circuit "
    "referee score_edges",
    "directions": "Direction fit_direction study_steering",
    "discovery.discover": "discover load_discovery",
    "discovery.explain": "explain",
    "discovery.found": "Discovery",
    "edits": "save_model",
    "execute": "executor",
    "interventions": "steered_pairs",
    "lenses": "LensTable LogitAttribution TunedLens attribute_logits load_lens read_lens train_lens",
    "live": "explore",
    "models": "load_model",
    "patching": "Effects attribute patch",
    "relevance": "Composite TokenRelevance attribute_tokens check_conservation find_composite",
    "render": "figure report",
    "runs": "AttentionPatterns record_attention record_run",
    "sites": "Site",
    "tasks": "metrics",
    "tasks.pairs": "PromptPairs",
    "tasks.task": "Task",
}
"""Folder or file -> the names that are public here."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> _Any:
    """A public name, or a folder of mechwork (``mw.circuits``), imported when it is first asked for."""
    if name in _HOME_OF:
        value = getattr(_importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and name not in _HOME_OF:
        try:
            return _importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, before and after they are used."""
    return sorted({*globals(), *_HOME_OF, "errors", "tasks"} - {"annotations"})
