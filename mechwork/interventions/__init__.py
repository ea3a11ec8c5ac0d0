"""Interventions: what to write where while a model runs.

Owns replacements (what) and writes (what, at which site, at which positions), and the one context manager that installs
them and takes them off again. Imports `runs` and below.

    with intervene(model, [Write(Site("z", 2, head=1), Zero())]):
        logits = model(tokens)
"""

from .replacements import Add as Add
from .replacements import Replacement as Replacement
from .replacements import Value as Value
from .replacements import Where as Where
from .replacements import Zero as Zero
from .writes import Write as Write
from .writes import intervene as intervene
