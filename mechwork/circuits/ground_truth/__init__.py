"""Known circuits: small models whose circuit is known, so that a method can be tried where the answer is known.

Linear and logic gates, induction by hand, three compiled RASP programs, a model trained so that its circuit is known,
and a mixture of experts trained likewise (`MIXTURES`). Owns the cases and the comparison of scores with them. Imports
the rest of `circuits` and below.

    for model, task, circuit in all():
        print(compare(score_edges(model, task, rules="relp", direction="noise"), circuit))

    case = find_case("reverse")
    case.truth("zero").edges, case.reasons["m0->m1"]
    print(build_table(CASES.values()))
"""

from .case import KnownCircuit as KnownCircuit
from .cases import CASES as CASES
from .cases import MIXTURES as MIXTURES
from .cases import Triple as Triple
from .cases import all_cases as all_cases
from .cases import find_case as find_case
from .compare import TruthComparison as TruthComparison
from .compare import compare as compare
from .planted import plant_circuit as plant_circuit
from .rank import ALL_METHODS as ALL_METHODS
from .rank import available_methods as available_methods
from .rank import rank_edges as rank_edges
from .table import TruthTable as TruthTable
from .table import build_table as build_table

all = all_cases  # noqa: A001 - mw.ground_truth.all() reads as it should
