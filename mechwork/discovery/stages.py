"""The stages of a discovery as values: what each needs, what it gives, what it costs, how it is run.

Costs are in F, CPU seconds of one batched forward of the train pairs, as measured on a 135-million-parameter Llama
(8 pairs) and on `gpt2-6l`; ``tests/benchmarks/discovery.py`` lays them beside what is measured now. Effects and edges
are found on ``task.train``; the circuit and its heads are tested on ``task.test``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..result import Result
from . import card, work
from .shape import Shape
from .work import StageWork

EVALUATED, PREPARED = 0.95, 0.25
"""F per circuit that is run, and what it costs however few pairs there are; what circuits share (the model, the ablated
run) costs two more."""
CELL = 0.12
"""F per patched cell: the blocks from the patched one on, at the positions from the patched one on."""
HEAD = 0.33
"""F per head that is studied."""
TOP, CONTROL = 0.05, 0.01
"""Shares of the cells that a screen measures: the most promising, and a random control."""
SIZES = (0.002, 0.01, 0.05, 0.2, 1.0)
"""Of the short curve, each with one random circuit."""


@dataclass(frozen=True)
class Stage:
    """`needs` and `gives` are names of results; `instead` is the cheaper stage that this one makes superfluous."""

    name: str
    says: str
    gives: tuple[str, ...]
    run: Callable[[StageWork], Mapping[str, Result]]
    forwards: Callable[[Shape], float]
    needs: tuple[str, ...] = ()
    instead: str = ""
    possible: Callable[[Shape], bool] = lambda _: True
    bytes: Callable[[Shape], int] = lambda shape: shape.memory
    here: bool = False


def _score(shape: Shape) -> float:
    return 1.9 * shape.n_steps + 1.5


def _circuits(shape: Shape, n: float, n_pairs: int) -> float:
    """`n` circuits on so many pairs."""
    return (2 + n * EVALUATED) * shape.share(n_pairs) + n * PREPARED


def _judged(shape: Shape) -> float:
    """The formal tests: on the task, on a null task, and on a model with shuffled weights."""
    return 1.5 * _circuits(shape, 4 + 2 * card.N_RANDOM + card.N_RANDOM_EDGES + card.MAX_EDGES, shape.n_test)


def _few(shape: Shape) -> int:
    return max(1, shape.n_tested())


def _tested(shape: Shape) -> bool:
    """Whether a circuit's parts can be knocked out one after another: pairs fit the memory, and have one length."""
    return shape.aligned and shape.n_tested() > 0


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("check", "checking the data", ("check",), work.check, lambda _: 4.0, here=True),
        Stage("scores", "scoring edges", ("scores",), work.score, _score),
        Stage("estimates", "estimating effects", ("estimated",), work.estimate, lambda s: 2.2 * s.n_steps + 1),
        Stage(
            "size", "choosing a size", ("sizing",), work.choose_size,
            lambda s: _circuits(s, 10, min(32, s.n_train)) * (1 + (s.n_size > 0)) if s.scored else 0.0,
            needs=("scores",),
        ),
        Stage(
            "test", "testing the circuit", ("evaluation",), work.test, lambda s: _circuits(s, 4, s.n_test),
            needs=("scores", "sizing"),
        ),
        Stage(
            "curve", "testing sizes", ("curve",), work.short_curve(SIZES),
            lambda s: _circuits(s, 3 * len(SIZES), s.n_test), needs=("scores",),
        ),
        Stage(
            "curve-all", "testing all sizes", ("curve",), work.full_curve, lambda s: _circuits(s, 28, s.n_test),
            needs=("scores",), instead="curve",
        ),
        Stage(
            "screen", "measuring the most promising effects", ("screened",), work.screen(TOP, CONTROL),
            lambda s: 10 + CELL * s.n_cells * (TOP + CONTROL), needs=("estimated",),
        ),
        Stage(
            "measure", "measuring all effects", ("measured",), work.measure, lambda s: 2 + CELL * s.n_cells,
            needs=("estimated",), instead="screen",
        ),
        Stage(
            "heads", "studying the circuit's heads", ("study",), work.study_some,
            lambda s: (4 + HEAD * min(work.N_HEADS, s.n_layers * s.n_heads)) * s.share(s.n_test),
            needs=("scores", "sizing", "estimated"),
        ),
        Stage(
            "heads-all", "studying all heads", ("study",), work.study_all,
            lambda s: (4 + HEAD * s.n_layers * s.n_heads) * s.share(s.n_test), needs=("scores", "sizing"),
            instead="heads",
        ),
        Stage(
            "components", "looking at components", ("attention", "components"), work.look,
            lambda s: (2 + 0.01 * min(work.N_COMPONENTS, s.n_layers * (s.n_heads + 1))) * s.share(min(64, s.n_test)),
            needs=("scores", "sizing", "study"), here=True,
        ),
        Stage(
            "stream", "reading the stream", ("lens", "lens-tuned", "direct"), work.read,
            lambda s: (4 + 3 * s.n_layers * s.unembedding) * s.share(min(work.N_READ, s.n_test)), here=True,
        ),
        Stage(
            "positions", "scoring edges by position", ("positions", "movements"), work.by_position,
            lambda s: _score(s) + 5, possible=lambda s: s.spans,
        ),
        Stage(
            "ablations", "testing under other ablations", ("under-zero", "under-mean", "under-resample"),
            work.under_others, lambda s: 3 * _circuits(s, 2, s.n_test), needs=("scores", "sizing"),
        ),
        Stage(
            "stability", "choosing again from other data",
            ("stability-pairs", "stability-templates", "stability-seeds"),
            work.stability, lambda s: 2 * _score(s) + 4 if s.again else 1.0, needs=("scores", "sizing"),
        ),
        Stage(
            "completeness", "testing completeness", ("completeness",), work.completeness,
            lambda s: _circuits(s, 14, _few(s)) + 6 * 18 * s.share(_few(s)), needs=("scores", "sizing"),
            possible=_tested, bytes=lambda s: s.pair_bytes * _few(s),
            here=True,  # almost all of it learns a knockout, step by step
        ),
        Stage(
            "minimality", "testing minimality", ("minimality",), work.minimality,
            lambda s: _circuits(s, min(work.SCREENED, s.n_layers * (s.n_heads + 1)), _few(s)),
            needs=("scores", "sizing"), possible=_tested,
        ),
        Stage("referee", "judging the circuit", ("referee",), card.judge, _judged, needs=("scores", "sizing")),
        Stage(
            "card", "choosing again in other ways", ("card",), card.choose_again,
            lambda s: (6 + card.N_SEEDS * s.again) * _score(s) + _circuits(s, 150, s.n_test),
            needs=("scores", "sizing"),
        ),
        Stage(
            "mechanisms", "asking for several mechanisms", ("mechanisms",), card.tell_mechanisms,
            lambda s: _score(s) * 2 + _circuits(s, 6, s.n_test), needs=("scores", "sizing"),
        ),
        Stage(
            "backups", "looking for what takes over", ("backups",), card.find_backups,
            lambda s: _circuits(s, 0.8 * card.N_BACKED * s.n_layers * s.n_heads, s.n_test),
            needs=("scores", "sizing", "estimated"), possible=lambda s: s.aligned,
        ),
        Stage(
            "rivals", "learning another circuit", ("rivals",), card.learn_rival, lambda _: 200 * 3.0,
            needs=("scores", "sizing"), possible=lambda s: s.aligned, here=True,
        ),
    )
}  # fmt: skip
"""In the order in which they run."""

LEAST = ("check", "scores", "estimates", "size", "test")
"""Without these there is nothing to show."""
GLANCE = (*LEAST, "curve")
MORE = ("curve", "screen", "heads", "components", "stream", "positions", "ablations", "stability")
"""What a budget adds, most telling first."""
MOST = ("curve-all", "measure", "heads-all", "completeness", "minimality")
"""What is left after that."""
CARD = ("referee", "card", "mechanisms", "backups", "rivals")
"""What a referee asks; run only when asked for."""
