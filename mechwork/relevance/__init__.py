"""Relevance: propagation rules per module, composites of them, and the one context manager that applies them.

Owns how coefficients flow backwards. Imports `runs`, `tasks`, `models` and the bottom layer; knows nothing of effects.
A rule in a file of its own in this folder is found by being there: `RULES` has it.

    with RELP.context(model) as binding:        # forwards unchanged to the bit, backwards follow the rules
        print(binding.report())
"""

from ..folders import import_all as _import_all
from .composite import RULES as _RULES
from .composite import Binding as Binding
from .composite import Composite as Composite
from .conservation import Conservation as Conservation
from .conservation import check_conservation as check_conservation
from .linear import AlphaBetaRule as AlphaBetaRule
from .linear import EpsilonRule as EpsilonRule
from .linear import GammaRule as GammaRule
from .presets import ATP_STAR as ATP_STAR
from .presets import ATTNLRP as ATTNLRP
from .presets import CP_LRP as CP_LRP
from .presets import GIM as GIM
from .presets import GRADIENT as GRADIENT
from .presets import PRESETS as PRESETS
from .presets import RELP as RELP
from .presets import RELP_AH as RELP_AH
from .presets import find_composite as find_composite
from .rules import AHRule as AHRule
from .rules import BilinearRule as BilinearRule
from .rules import GradientRule as GradientRule
from .rules import HalfRule as HalfRule
from .rules import IdentityRule as IdentityRule
from .rules import LNRule as LNRule
from .rules import PassRule as PassRule
from .rules import RouterRule as RouterRule
from .rules import Rule as Rule
from .rules import SoftcapRule as SoftcapRule
from .rules import TemperatureRule as TemperatureRule
from .straight import straight as straight
from .tokens import TokenRelevance as TokenRelevance
from .tokens import attribute_tokens as attribute_tokens

for _name, _module in _import_all(__name__, __path__).items():
    for _rule in vars(_module).values():  # of a file of its own; `rules` and `linear` have those of the papers
        if _name in ("rules", "linear") or not isinstance(_rule, type) or not issubclass(_rule, Rule):
            continue
        if _rule.__module__ == _module.__name__:
            _RULES[_rule.__name__] = _rule
