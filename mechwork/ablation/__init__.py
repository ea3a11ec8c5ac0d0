"""Ablation: what breaks when a component's information is taken away, what repairs itself, and what each head does.

Owns `AblationSpec` (what is ablated, as a value) and the studies built on it. Imports `patching` (whose exact engine runs
the sweeps), `interventions`, `runs` and below.

    spec = AblationSpec(["a1.h3", "m2"], kind="mean")
    print(ablate(model, task, spec))
    with fit_ablation(model, spec, task).applied(model):
        model.generate(tokens)
"""

from .fitted import Ablation as Ablation
from .fitted import fit_ablation as fit_ablation
from .heads import HeadRow as HeadRow
from .heads import HeadStudy as HeadStudy
from .heads import study_heads as study_heads
from .run import AblationResult as AblationResult
from .run import ablate as ablate
from .spec import AblationSpec as AblationSpec
from .targets import Target as Target
from .targets import all_heads as all_heads
from .targets import all_mlps as all_mlps
from .targets import outside as outside
from .targets import parse_target as parse_target
