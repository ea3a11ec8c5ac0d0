"""Patching: effects, measured and estimated, as result objects with the same axes and sign.

Owns `Effects`. Measured: `patch` (a sweep over cells, see `sweep`, `execute`), `patch_paths` (direct paths),
`patch_subspace`
and `check_illusion` (directions). Estimated: `attribute`; `patch(..., screen="relp")` estimates all and verifies the
top. Imports `interventions`, `relevance`, `runs` and below.

    exact = patch(model, task, sites=["resid_pre", "z"])
    approx = attribute(model, task, sites=exact.sites, rules="relp")
    print(approx.agreement(exact))
"""

from .attribution import attribute as attribute
from .exact import patch as patch
from .illusion import IllusionCheck as IllusionCheck
from .illusion import check_illusion as check_illusion
from .path import patch_paths as patch_paths
from .result import Agreement as Agreement
from .result import Effect as Effect
from .result import Effects as Effects
from .screen import Missed as Missed
from .screen import ScreenedEffects as ScreenedEffects
from .steered import SteeringIllusion as SteeringIllusion
from .steered import check_steering as check_steering
from .study import AgreementStudy as AgreementStudy
from .study import study_agreement as study_agreement
from .subspace import Subspace as Subspace
from .subspace import fit_das as fit_das
from .subspace import leading_differences as leading_differences
from .subspace import mean_difference as mean_difference
from .subspace import neurons as neurons
from .subspace import patch_subspace as patch_subspace
from .sweep import Sweep as Sweep
from .sweep import Tricks as Tricks
