"""The live workbench: a session of gestures over one model and one task, without and with a host.

Owns the session (a state, a history, answers with random controls), its gestures, the worker that runs them in turn,
and the hosts that carry them to a person: a notebook widget, a local server. No science of its own: every number is
what a public function of the rooms below gives. Imports `discovery` and below, and `render` for its page.

    session = Session(model, task)
    session.do(Ablate("a4.h1"))
"""

from .commands import Origin as Origin
from .explore import Explorer as Explorer
from .explore import explore as explore
from .freeze import freeze as freeze
from .gestures import GESTURES as GESTURES
from .gestures import Ablate as Ablate
from .gestures import Attention as Attention
from .gestures import Attribution as Attribution
from .gestures import ChooseRow as ChooseRow
from .gestures import EditPrompts as EditPrompts
from .gestures import Gesture as Gesture
from .gestures import KeepEdges as KeepEdges
from .gestures import Patch as Patch
from .gestures import PatchEach as PatchEach
from .gestures import ReadFeatures as ReadFeatures
from .gestures import ReadLens as ReadLens
from .gestures import Rescale as Rescale
from .gestures import Restore as Restore
from .gestures import ScaleFeature as ScaleFeature
from .gestures import ScoreEdges as ScoreEdges
from .gestures import Steer as Steer
from .gestures import ToggleParts as ToggleParts
from .gestures import gesture_json as gesture_json
from .gestures import read_gesture as read_gesture
from .session import Answer as Answer
from .session import Session as Session
from .worker import Worker as Worker
