"""Tasks: pairs of clean and corrupt prompts, the metric that says whether a behaviour is there, and the classic ones.

Owns what a behaviour is. Imports `models` (for tokenizers and word lists) and the bottom layer; runs no analysis. A
file NAME.py with a function NAME, and ``data/tasks/NAME.json``, are found by being there.

    task = ioi(model, n=64, seed=0)             # task.train, task.test: disjoint names and templates
    print(task.describe())
    task = from_file(model, "pairs.csv")        # a user's own
"""

from collections.abc import Callable
from inspect import isfunction as _isfunction
from typing import Any as _Any

from ..errors import UnknownNameError
from ..folders import import_all as _import_all
from .agreement import agreement as agreement
from .build import from_chat as from_chat
from .build import from_file as from_file
from .build import from_prompt as from_prompt
from .build import from_text as from_text
from .capitals import capitals as capitals
from .colored_objects import colored_objects as colored_objects
from .docstring import docstring as docstring
from .generated import from_generation as from_generation
from .greater_than import greater_than as greater_than
from .in_context import in_context as in_context
from .induction import induction as induction
from .ioi import ioi as ioi
from .metrics import METRICS as METRICS
from .metrics import Metric as Metric
from .metrics import first_difference as first_difference
from .metrics import first_token as first_token
from .metrics import kl_divergence as kl_divergence
from .metrics import log_probability as log_probability
from .metrics import logit_difference as logit_difference
from .metrics import probability_difference as probability_difference
from .metrics import sequence_difference as sequence_difference
from .metrics import sequence_difference_per_token as sequence_difference_per_token
from .metrics import sequence_probability as sequence_probability
from .metrics import sequence_probability_difference as sequence_probability_difference
from .pairs import PromptPairs as PromptPairs
from .pronoun import pronoun as pronoun
from .task import Task as Task

TASKS: dict[str, Callable[..., Task]] = {
    "ioi": ioi,
    "greater_than": greater_than,
    "pronoun": pronoun,
    "agreement": agreement,
    "docstring": docstring,
    "induction": induction,
    "capitals": capitals,
    "colored_objects": colored_objects,
    "in_context": in_context,
}
"""The classic tasks by name: ``TASKS[name](model, n=64, seed=0)``. Other files of this folder are added below."""

for _name, _module in _import_all(__name__, __path__).items():
    _builder: _Any = vars(_module).get(_name)
    if _isfunction(_builder):
        TASKS.setdefault(_name, _builder)
        globals()[_name] = _builder  # not the module of the same name


def find_task(name: str) -> Callable[..., Task]:
    """The builder of a classic task; raises `UnknownNameError` with the nearest names."""
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]
