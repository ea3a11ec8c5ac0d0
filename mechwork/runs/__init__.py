"""Cached runs: activations, metrics and coefficients of the clean and the corrupt prompts, recorded once.

Owns what is recorded and in which layout. Imports `tasks`, `models` and the bottom layer; knows nothing of effects,
scores or circuits.

    run = record_run(model, task.pairs, ["resid_pre", "z"])
    run["resid_pre"].shape          # (layer, batch, pos, d_model)
"""

from .attention import AttentionPatterns as AttentionPatterns
from .attention import attention_between as attention_between
from .attention import record_attention as record_attention
from .components import ComponentRow as ComponentRow
from .components import ComponentStudy as ComponentStudy
from .components import study_components as study_components
from .record import Run as Run
from .record import align_donor as align_donor
from .record import check_task as check_task
from .record import record_run as record_run
