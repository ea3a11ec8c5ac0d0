"""Directions: what to write, fitted from examples, and what writing it does beside what was wanted.

Owns labelled examples, directions (difference of means, principal difference, probes) with their boundaries and files, and the
study of steering: success against side effects. Imports `interventions` and below.

    she = task.train[rows where the answer is " she"]
    direction = fit_direction(model, Examples.of_task(she), Site("resid_post", 2))
    study = study_steering(model, she_held_out, direction, others=[ioi, agreement])
"""

from .direction import Direction as Direction
from .examples import Examples as Examples
from .examples import record_examples as record_examples
from .fit import FITS as FITS
from .fit import Separation as Separation
from .fit import fit_direction as fit_direction
from .fit import fit_directions as fit_directions
from .fit import fit_probe as fit_probe
from .fit import measure_separation as measure_separation
from .select import CRITERIA as CRITERIA
from .select import LayerChoice as LayerChoice
from .select import choose_layer as choose_layer
from .steer import METHODS as METHODS
from .steer import AsFar as AsFar
from .steer import rotation_plane as rotation_plane
from .steer import steering_write as steering_write
from .steer import transport_write as transport_write
from .study import STRENGTHS as STRENGTHS
from .study import SteeringRow as SteeringRow
from .study import SteeringStudy as SteeringStudy
from .study import study_steering as study_steering
