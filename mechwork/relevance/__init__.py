"""Relevance: propagation rules per module, composites of them, and the one context manager that applies them.

Owns how coefficients flow backwards. Imports `models` and the bottom layer; knows nothing of tasks, effects or scores.

    with RELP.context(model) as binding:        # forwards unchanged to the bit, backwards follow the rules
        print(binding.report())
"""

from .composite import CP_LRP as CP_LRP
from .composite import GRADIENT as GRADIENT
from .composite import PRESETS as PRESETS
from .composite import RELP as RELP
from .composite import RELP_AH as RELP_AH
from .composite import Binding as Binding
from .composite import Composite as Composite
from .composite import find_composite as find_composite
from .rules import AHRule as AHRule
from .rules import GradientRule as GradientRule
from .rules import HalfRule as HalfRule
from .rules import IdentityRule as IdentityRule
from .rules import LNRule as LNRule
from .rules import RouterRule as RouterRule
from .rules import Rule as Rule
from .rules import SoftcapRule as SoftcapRule
from .straight import straight as straight
