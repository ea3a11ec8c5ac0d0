"""Which way to score edges finds the best circuits? Every preset, two ensembles and four rules of selection, on one
task, on pairs they were not found on.

Edges are scored on ``task.train``; circuits of every size are tested on ``task.test`` under one ablation. CPR (higher
is better) and CMD (0 is best) as in the MIB benchmark, with bootstrap intervals over the held-out pairs; random
circuits beside them. CPR rewards circuits that do better than the model: `overshoot` is the most that one of the
signed ones does so (faithfulness less 1), and ``*`` marks a CPR with more than `OVERSHOT` of it. `CMD log` counts small
circuits as much as large ones; KL(model ‖ circuit) and accuracy are means over the sizes.

The rules choose edges by the scores of the default preset (arXiv:2510.25786; Hanna et al. 2024): ``greedy``,
``positive`` and ``integer`` as in `select`, ``sure`` as in `sure_first`. Without a rule the strongest ones are chosen.

Whether two methods differ is asked pair by pair: `Leaderboard.difference` resamples the same held-out pairs for both.
Chosen is, of the methods whose CMD log is not shown to be worse than the best one's, the one of least cost; those whose
CPR is marked stand back while there are others (so does ``exact``, whose cost grows with the graph).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ...errors import InputError, UnknownNameError
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...relevance import PRESETS as COMPOSITES
from ...result import Result, Table
from ...statistics import percentile_interval
from ...tasks.task import Task
from ..scoring.bootstrapped import sure_first
from ..scoring.ensemble import ensemble
from ..scoring.methods import DEFAULT, PRESETS
from ..scoring.score import score_edges
from ..scoring.scores import EdgeScores
from .curves import FaithfulnessCurve
from .evaluate import evaluate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


OVERSHOT = 0.1
"""Faithfulness beyond 1 from which a method's CPR is marked."""
MEMBERS = ("relp", "eap-ig", "clean-corrupt")
"""Presets that the two ensembles are made of."""
RULES = ("greedy", "positive", "sure", "integer")
"""Rules of selection, applied to the scores of the default preset."""


@dataclass(frozen=True)
class Standing:
    """One method on one task: areas with 95 % intervals over held-out pairs, CPU-seconds of scoring the training pairs,
    how far the signed circuits overshoot, the mean KL(model ‖ circuit) in nats and the mean accuracy over the sizes.
    `behind`: CMD log less that of the best method, and its paired interval.
    """

    method: str
    cpr: float
    cpr_interval: tuple[float, float]
    cmd: float
    cmd_interval: tuple[float, float]
    cpr_log: float
    cmd_log: float
    seconds: float
    overshoot: float = 0.0
    kl: float = float("nan")
    accuracy: float = float("nan")
    behind: float = float("nan")
    behind_interval: tuple[float, float] = (float("nan"), float("nan"))


@dataclass(frozen=True, eq=False)
class Leaderboard(Result):
    """Methods on one task, best CMD first. `random` is over random circuits of the same sizes; `curves` are by
    method.
    """

    model_name: str
    task_name: str
    standings: tuple[Standing, ...]
    random_cpr: float
    random_cmd: float
    n_train: int
    n_test: int
    ablation: str
    curves: dict[str, FaithfulnessCurve]
    provenance: Provenance

    @property
    def winner(self) -> Standing:
        """The estimated method of smallest CMD (exact effects are measured, and cost by the edge: no contender)."""
        return next(s for s in self.standings if s.method != "exact")

    def difference(self, method: str, other: str, what: str = "cmd_log") -> tuple[float, tuple[float, float]]:
        """`what` (``"cmd"``, ``"cmd_log"``, ``"cpr"``, ``"cpr_log"``) of a method less another's, and the 95 % interval
        of the paired difference over held-out pairs. Raises `UnknownNameError` for a method that is not here.
        """
        for name in (method, other):
            if name not in self.curves:
                raise UnknownNameError("method of this leaderboard", name, self.curves)
        a, b = self.curves[method], self.curves[other]
        low, high = percentile_interval((a.resampled_areas(what) - b.resampled_areas(what))[:, None], 0.95)
        return getattr(a, what) - getattr(b, what), (float(low), float(high))

    @property
    def chosen(self) -> tuple[Standing, str]:
        """The method to take as the default, and why (see the module)."""
        rows = [s for s in self.standings if s.method != "exact"] or list(self.standings)
        kept = [s for s in rows if s.overshoot <= OVERSHOT] or rows
        best = min(kept, key=lambda s: s.cmd_log)
        spreads = {s.method: self.difference(s.method, best.method)[1] for s in kept if s is not best}
        equal = [s for s in kept if s is best or spreads[s.method][0] <= 0]
        found = min(equal, key=lambda s: s.seconds)
        why = f"smallest CMD log ({best.cmd_log:.3f})"
        if found is not best:
            low, high = spreads[found.method]
            why = (
                f"not shown to be worse than {best.method} (CMD log {best.cmd_log:.3f}; paired difference "
                f"[{low:.3f}, {high:.3f}]), and the cheapest of {len(equal)} such: {found.seconds:.1f} CPU-s"
            )
        left = len(rows) - len(kept)
        return found, why + (f"; {left} that overshoot by more than {OVERSHOT:g} left out" if left else "")

    def _table(self) -> Table:
        """One row per method."""
        return [{"model": self.model_name, "task": self.task_name, **vars(s)} for s in self.standings]

    def __str__(self) -> str:
        lines = [
            (
                f"{self.model_name}, {self.task_name}: found on {self.n_train} pairs, tested on {self.n_test} others "
                f"({self.ablation} ablation)"
            ),
            (
                f"{'method':<22}{'CMD':>7}  {'95 % interval':<17}{'CPR':>6}  "
                f"{'95 % interval':<17}{'CMD log':>8}  {'behind the best':<16}"
                f"{'CPR log':>8}{'over':>7}{'KL':>7}{'acc':>6}{'CPU-s':>8}"
            ),
        ]
        for s in self.standings:
            cmd, cpr, behind = (
                f"[{low:.3f}, {high:.3f}]" if low == low else ""
                for low, high in (s.cmd_interval, s.cpr_interval, s.behind_interval)
            )
            lines.append(
                f"{s.method:<22}{s.cmd:7.3f}  {cmd:<17}{s.cpr:6.3f}  "
                f"{cpr:<17}{s.cmd_log:8.3f}  {behind:<16}{s.cpr_log:8.3f}{s.overshoot:6.2f}"
                f"{'*' if s.overshoot > OVERSHOT else ' '}{s.kl:7.3f}{s.accuracy:6.2f}{s.seconds:8.1f}"
            )
        lines.append(f"{'random circuits':<22}{self.random_cmd:7.3f}  {'':<17}{self.random_cpr:6.3f}")
        if {s.method for s in self.standings} <= set(self.curves):
            found, why = self.chosen
            lines.append(f"chosen: {found.method}: {why}")
        return "\n".join(lines)

    __repr__ = __str__


def available_presets(*, exact: bool = False) -> tuple[str, ...]:
    """Presets to compare: no second name of another, no random, and measured effects only when asked for."""
    left_out = {"atp", "random"} | (set() if exact else {"exact"})
    return tuple(n for n, how in PRESETS.items() if n not in left_out and how.get("rules", "gradient") in COMPOSITES)


@borrows
def run_leaderboard(
    model: TransformerBridge,
    task: Task,
    *,
    presets: Sequence[str] | None = None,
    ablation: str = "corrupt",
    rules: Sequence[str] | None = None,
    n_random: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Leaderboard:
    """Scores, selects and tests every preset and, when their members are among them, two ensembles and the `rules` of
    selection (default: all, ``integer`` only where scipy is installed).

    Raises `InputError` for a task without held-out pairs, or rules without the default preset, `UnknownNameError` for
    an unknown preset or rule, `MetricError` when the clean and corrupt metrics coincide. Cost: that of the scores, and
    20 circuits per method on the held-out pairs.
    """
    if not task.splits:
        raise InputError("a leaderboard tests on pairs that were not scored; this task has no train and test pairs")
    names = tuple(presets) if presets is not None else available_presets()
    for name in names:
        if name not in PRESETS:
            raise UnknownNameError("preset", name, PRESETS)
    if rules is None:
        rules = [rule for rule in RULES if rule != "integer" or find_spec("scipy")] if DEFAULT in names else []
    for rule in rules:
        if rule not in RULES:
            raise UnknownNameError("rule of selection", rule, RULES)
    if rules and DEFAULT not in names:
        raise InputError(
            f"rules choose by the scores of {DEFAULT!r}, which is not among the presets {', '.join(names)}"
        )
    train, test = task.train, task.test
    scores: dict[str, EdgeScores] = {}
    seconds: dict[str, float] = {}
    total = 2 * len(names) + len(rules) + (2 if set(MEMBERS) <= set(names) else 0)
    for i, name in enumerate(names):
        begun = time.process_time()
        scores[name] = score_edges(model, train, preset=name, keep="pairs", seed=seed)
        seconds[name] = time.process_time() - begun
        if progress is not None:
            progress(i + 1, total, f"scoring: {name}")
    if set(MEMBERS) <= set(names):
        for way in ("mean", "rank"):
            scores[f"ensemble ({way})"] = ensemble([scores[name] for name in MEMBERS], way)
            seconds[f"ensemble ({way})"] = sum(seconds[name] for name in MEMBERS)
    how: dict[str, str] = dict.fromkeys(scores, "top")
    for rule in rules:
        name = f"{DEFAULT}, {rule}"
        scores[name] = sure_first(scores[DEFAULT], seed=seed) if rule == "sure" else scores[DEFAULT]
        how[name] = "top" if rule == "sure" else rule
        seconds[name] = seconds[DEFAULT]
    curves: dict[str, FaithfulnessCurve] = {}
    for i, (name, score) in enumerate(scores.items()):
        repeats = n_random if i == 0 else 0  # random circuits do not depend on the scores
        curves[name] = evaluate(
            model, test, score, ablation=ablation, selection=how[name], n_random=repeats, random_every=1, seed=seed
        )
        if progress is not None:
            progress(len(names) + i + 1, total, f"testing: {name}")
    first = next(iter(curves.values()))
    standings = sorted((_standing(name, curves[name], seconds[name]) for name in curves), key=lambda s: s.cmd)
    provenance = build_provenance(
        method="leaderboard", ablation=ablation, seed=seed, model=identify_model(model), task=task.provenance()
    )
    board = Leaderboard(
        str(model.cfg.model_name), task.name, tuple(standings), first.random_cpr, first.random_cmd, len(train),
        len(test), ablation, curves, provenance,
    )  # fmt: skip
    best = min((s for s in standings if s.method != "exact"), key=lambda s: s.cmd_log, default=standings[0])
    against = [(s, board.difference(s.method, best.method)) for s in standings if s is not best]
    behind = {s.method: replace(s, behind=d, behind_interval=ends) for s, (d, ends) in against}
    return replace(board, standings=tuple(behind.get(s.method, s) for s in standings))


def _standing(name: str, curve: FaithfulnessCurve, seconds: float) -> Standing:
    return Standing(
        name, curve.cpr, curve.cpr_interval(), curve.cmd, curve.cmd_interval(), curve.cpr_log, curve.cmd_log, seconds,
        max(0.0, float(curve.signed.max()) - 1), float("nan") if curve.kl is None else float(curve.kl.mean()),
        float("nan") if curve.accuracy is None else float(curve.accuracy.mean()),
    )  # fmt: skip


def mean_ranks(boards: Sequence[Leaderboard]) -> dict[str, tuple[float, float, float, float]]:
    """Method -> (mean rank by CMD, mean rank by CPR, mean CMD, mean CPR) over leaderboards; only methods that are on
    all of them.
    """
    common = set.intersection(*({s.method for s in board.standings} for board in boards))
    ranks: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in common}
    for board in boards:
        rows = [s for s in board.standings if s.method in common]
        for s in rows:
            by_cmd, by_cpr = 1 + sum(o.cmd < s.cmd for o in rows), 1 + sum(o.cpr > s.cpr for o in rows)
            ranks[s.method].append((by_cmd, by_cpr, s.cmd, s.cpr))
    means = {name: tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)) for name, rows in ranks.items()}
    return {name: (row[0], row[1], row[2], row[3]) for name, row in sorted(means.items(), key=lambda item: item[1][0])}
