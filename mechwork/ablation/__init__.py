"""Ablation: what breaks when a component's information is taken away, and what each head does.

Owns measured ablation effects and the roles that follow from measurements. Imports `interventions`, `runs` and below.

    study = study_heads(model, task)
    print(study)
"""

from .heads import HeadRow as HeadRow
from .heads import HeadStudy as HeadStudy
from .heads import study_heads as study_heads
