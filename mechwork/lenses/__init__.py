"""Decoders: what a state, a head, a neuron or a direction says in the model's own vocabulary.

Owns the readout, lenses (as they are, trained, imported), tables and trajectories, direct logit attribution, and what
weights say. Imports `patching` and below.

    table = read_lens(model, "The war lasted from the year 1732 to the year 17")
    table.show()
"""

from .attribution import attribute_logits as attribute_logits
from .contributions import LogitAttribution as LogitAttribution
from .lens import LOGIT_LENS as LOGIT_LENS
from .lens import Lens as Lens
from .lens import LogitLens as LogitLens
from .prompts import Prompts as Prompts
from .prompts import as_prompts as as_prompts
from .readout import Reading as Reading
from .readout import Readout as Readout
from .table import LensTable as LensTable
from .table import read_lens as read_lens
