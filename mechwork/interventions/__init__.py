"""Interventions: what to write where while a model runs.

Owns replacements (what; `steering` has those of the steering literature, `attention` those of where heads look, `curve`
moves along a curve), positions (absolute, also with a key-value cache), writes (what, at which site; `dosed`: how much,
by an earlier place; `gates`: by the prompt, once), writes and routing of experts, the statistics of reference sets
that means are taken from, files of writes, a guard against overflow, and the context managers that install writes and
take them off again. Imports `runs` and below.

    with intervene(model, [Write(Site("z", 2, head=1), Zero())]):
        logits = model(tokens)
"""

from .attention import Highlight as Highlight
from .attention import LookOnly as LookOnly
from .attention import OffsetScores as OffsetScores
from .attention import aim_attention as aim_attention
from .attention import reweigh_attention as reweigh_attention
from .curve import Curve as Curve
from .curve import Slide as Slide
from .dosed import Condition as Condition
from .dosed import Dose as Dose
from .dosed import Dosed as Dosed
from .dosed import Doses as Doses
from .experts import ExpertWrites as ExpertWrites
from .experts import intervene_experts as intervene_experts
from .experts import watch_experts as watch_experts
from .files import load_writes as load_writes
from .files import save_writes as save_writes
from .gates import Always as Always
from .gates import PerInput as PerInput
from .gates import Route as Route
from .gates import Similarity as Similarity
from .overflow import guard_overflow as guard_overflow
from .pairs import steered_pairs as steered_pairs
from .positions import Columns as Columns
from .positions import track_columns as track_columns
from .reference import MIN_EXAMPLES as MIN_EXAMPLES
from .reference import Moments as Moments
from .reference import other_prompts as other_prompts
from .reference import require_examples as require_examples
from .reference import require_spans as require_spans
from .replacements import Add as Add
from .replacements import Along as Along
from .replacements import ByCell as ByCell
from .replacements import ByPosition as ByPosition
from .replacements import Chosen as Chosen
from .replacements import Constant as Constant
from .replacements import Entries as Entries
from .replacements import Noise as Noise
from .replacements import OnEdges as OnEdges
from .replacements import Positional as Positional
from .replacements import Replacement as Replacement
from .replacements import Value as Value
from .replacements import Where as Where
from .replacements import Zero as Zero
from .replacements import replace_at as replace_at
from .routing import Routing as Routing
from .steering import Blend as Blend
from .steering import Boundary as Boundary
from .steering import Choice as Choice
from .steering import From as From
from .steering import Gated as Gated
from .steering import KeepNorm as KeepNorm
from .steering import Limit as Limit
from .steering import Reflect as Reflect
from .steering import Scale as Scale
from .steering import Stretch as Stretch
from .steering import Turn as Turn
from .steering import TurnTo as TurnTo
from .writes import Intervention as Intervention
from .writes import Steering as Steering
from .writes import Write as Write
from .writes import as_interventions as as_interventions
from .writes import intervene as intervene
from .writes import is_replacement as is_replacement
