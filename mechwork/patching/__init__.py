"""Patching: effects, measured (`patch`) and estimated (`attribute`), as result objects with the same axes and sign.

Owns `Effects`. Imports `interventions`, `relevance`, `runs` and below.

    exact = patch(model, task, sites=["resid_pre", "z"])
    approx = attribute(model, task, sites=exact.sites, rules="relp")
    print(approx.agreement(exact))
"""

from .attribution import attribute as attribute
from .exact import patch as patch
from .result import Agreement as Agreement
from .result import Effect as Effect
from .result import Effects as Effects
from .study import AgreementStudy as AgreementStudy
from .study import study_agreement as study_agreement
