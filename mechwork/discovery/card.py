"""A referee's card as stages: the formal tests, stability, one mechanism or several, what takes over, rivals.

Sizes are smaller than those of ``mechwork referee``: a discovery has one test of everything. What cannot be asked of a
task (fewer pairs than a test needs, a circuit without heads) is left out, or inconclusive where the test says so.
"""

from __future__ import annotations

from ..circuits import complete_with_backups, find_rivals, referee, study_mechanisms, study_stability
from ..circuits.scoring.methods import DEFAULT, PRESETS
from ..circuits.search.learned import pairs_within
from ..errors import InputError, MetricError
from .settings import Settings
from .work import Found, StageWork, strongest_heads

N_RANDOM, N_RANDOM_EDGES, MAX_EDGES = 39, 19, 20
"""Random circuits, random edges, and edges of the circuit that the formal tests run."""
N_BACKED = 2
"""Heads whose backups are looked for."""
N_SEEDS = 2
"""Other draws of pairs."""


def preset_of(settings: Settings) -> str:
    """The preset of these rules and steps; `DEFAULT` where they have no name."""
    said = {"rules": settings.rules, **({} if settings.ig_steps == 1 else {"ig_steps": settings.ig_steps})}
    return next((name for name, given in PRESETS.items() if given == said and name != "atp"), DEFAULT)


def judge(work: StageWork) -> Found:
    """The claims about the circuit on the test pairs, beside a null task and a model with shuffled weights."""
    s = work.settings
    review = referee(
        work.model, work.task.test, work.results["circuit"], n_random=N_RANDOM, n_random_edges=N_RANDOM_EDGES,
        max_edges=MAX_EDGES, seed=s.seed, memory_budget=s.memory, progress=work.progress,
    )  # fmt: skip
    return {"referee": review}


def choose_again(work: StageWork) -> Found:
    """The circuit from other pairs, templates, ablations, seeds and presets."""
    s, size = work.settings, _size(work)
    try:
        card = study_stability(
            work.model, work.task, n_edges=size, preset=preset_of(s), again=work.again, n_seeds=N_SEEDS, seed=s.seed,
            progress=work.progress,
        )  # fmt: skip
    except (InputError, MetricError):
        return {}
    return {"card": card}


def tell_mechanisms(work: StageWork) -> Found:
    """One mechanism, or several."""
    found = study_mechanisms(
        work.model, work.task, n_edges=_size(work), preset=preset_of(work.settings), seed=work.settings.seed,
        progress=work.progress,
    )  # fmt: skip
    return {"mechanisms": found}


def find_backups(work: StageWork) -> Found:
    """What takes over when one of the circuit's strongest heads is gone."""
    heads = strongest_heads(work)[:N_BACKED]
    if not heads:
        return {}
    try:
        found = complete_with_backups(
            work.model, work.task.test, work.results["circuit"], heads, source=work.task.train, seed=work.settings.seed,
            progress=work.progress,
        )  # fmt: skip
    except (InputError, MetricError):
        return {}
    return {"backups": found}


def learn_rival(work: StageWork) -> Found:
    """Another circuit of this size with few of its edges, learnt."""
    circuit = work.results["circuit"]
    if not circuit.n_edges or not work.task.splits:
        return {}
    try:
        found = find_rivals(
            work.model, work.task, circuit, n=1, checkpoint=work.units, seed=work.settings.seed, progress=work.progress,
            batch_size=min(16, pairs_within(work.model, work.task.train, work.settings.memory)),
        )  # fmt: skip
    except (InputError, MetricError):
        return {}
    return {"rivals": found}


def _size(work: StageWork) -> int:
    circuit = work.results["circuit"]
    return circuit.n_requested or circuit.n_edges
