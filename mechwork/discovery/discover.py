"""``mw.discover``: from a model and a task to everything a report shows, stage by stage, in a folder that survives.

    found = discover(model, task, out="reports/ioi", budget="5min")
    found.circuit, found.curve, found.page
    found = load_discovery("reports/ioi").extend(model, thorough=True)

Killed at any moment, the same call goes on: finished stages are read from the folder, not run again, and the
circuit, the
tables and the page have the bytes of a run that was not killed. A budget that the user gives is also kept: no
stage begins
after it is spent.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..arguments import checked
from ..circuits import EdgeSpace
from ..circuits.graph.writers import require_correspondence
from ..errors import InputError
from ..models.anatomy import check_ready
from ..models.identity import identify_model, is_split
from ..provenance import made_by
from ..relevance import find_composite
from ..tasks.task import Task
from .folder import Folder
from .found import Again, Discovery
from .plan import Plan, extend_plan, make_plan
from .publish import publish
from .settings import Mode, Settings, parse_seconds
from .stages import STAGES
from .stored_task import StoredTask
from .work import StageWork, add

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TASK = "task"
"""The stored task stands in the ledger like a stage."""
PAUSE = 10.0
"""Seconds between two versions of the page, at least; and it takes no more than a fifth of the time."""


@runtime_checkable
class Observer(Protocol):
    """Told of every stage; gives a progress callback for it."""

    def stage(self, says: str, done: int, n: int, seconds_left: float) -> contextlib.AbstractContextManager[Any]:
        """Inside, the stage that `says` this runs: number `done` of `n` is finished, the rest takes about
        `seconds_left`.
        """
        ...


class Silent:
    """Says nothing."""

    @contextlib.contextmanager
    def stage(self, says: str, done: int, n: int, seconds_left: float) -> Iterator[Any]:
        yield None


@checked
def discover(
    model: TransformerBridge,
    task: Task,
    *,
    out: str | Path | None = None,
    budget: float | str | None = None,
    mode: Mode = "default",
    card: bool = False,
    settings: Settings | None = None,
    force: bool = False,
    audience: str = "research",
    again: Again | None = None,
    request: Mapping[str, Any] | None = None,
    command: str | None = None,
    observer: Observer | None = None,
) -> Discovery:
    """Find, test and describe the circuit of `task`. `budget`: seconds or ``"5min"``; `mode`: ``"quick"``,
    ``"thorough"``; `card`: also what a referee asks (formal tests, stability, mechanisms, backups, a rival).

    `again` makes the task with another seed, for stability over seeds. `force` replaces an earlier discovery in `out`.

    Raises `InputError` before any long step: data that a circuit cannot be found on, a model that does not do the
    task, a
    budget below the least plan, a folder of something else or in use.
    """
    settings, seconds = settings or Settings(), parse_seconds(budget)
    find_composite(settings.rules)
    settings.given_size(EdgeSpace.of(check_ready(model)))
    require_correspondence(task)
    asked = {
        "task": task.name, "model": str(model.cfg.model_name), "settings": asdict(settings), "audience": audience,
        **(request or {}), "data": task.pairs.fingerprint(), "weights": identify_model(model)["weights_sha256"],
        "prepend_bos": bool(model.cfg.default_prepend_bos), "again": again is not None,
        **({"split_kv": True} if is_split(model) else {}),
    }  # fmt: skip
    command = command or f"mechwork discover {shlex.quote(task.name)} --model {shlex.quote(str(asked['model']))}"
    asked = json.loads(json.dumps({**asked, "command": command}, default=str))
    folder = None if out is None else Folder(out)
    if folder is not None:
        folder.check(asked, force=force)
        StoredTask.of(task)
        if folder.begun and not force:  # the words of the first command stand in every result
            asked = {key: value for key, value in folder.request().items() if key != "format"}
    known = None if folder is None or force or not folder.begun else folder.plan()
    plan = known or make_plan(model, task, settings, mode=mode, budget=seconds, again=again is not None, card=card)
    if known is not None and (mode == "thorough" or seconds is not None or card):
        more = make_plan(
            model,
            known.cut(task),
            settings,
            mode=mode,
            budget=seconds,
            again=again is not None,
            seconds=known.forward,
            card=card,
        )
        plan = extend_plan(known, more, tuple(folder.ledger()) if folder else ())
    found = Discovery(
        plan.cut(task), str(asked["model"]), settings, plan, {}, (), asked, None if folder is None else folder.path,
        model, again, audience,
    )  # fmt: skip
    hold = contextlib.nullcontext() if folder is None else folder.claim(asked, force=force)
    with hold, made_by(str(asked["command"])):
        return _run(found, folder, observer or Silent(), seconds)


def _run(found: Discovery, folder: Folder | None, observer: Observer, budget: float | None) -> Discovery:
    begun, told, cost = time.monotonic(), time.monotonic(), 0.0
    ledger: dict[str, Any] = {}
    if folder is not None:
        folder.keep_plan(found.plan)
        ledger = folder.ledger()
        if TASK not in ledger:
            folder.finish(TASK, {TASK: StoredTask.of(found.task)}, 0.0)
        found = _with_finished(found, folder)
    for number, step in enumerate(found.plan.rows):
        if step.stage in found.done:
            continue
        if budget is not None and time.monotonic() - begun > budget and "evaluation" in found.named:
            break
        stage = STAGES[step.stage]
        left = sum(row.seconds for row in found.plan.rows if row.stage not in found.done)
        units = None if folder is None else folder.units(stage.name)
        started = time.monotonic()
        with observer.stage(stage.says, number, len(found.plan.rows), left) as progress:
            model: Any = found.model
            work = StageWork(model, found.task, found.settings, found.named, found.again, progress, units)
            results: Mapping[str, Any] = stage.run(work)
            if folder is not None:
                folder.finish(stage.name, results, time.monotonic() - started)
                results = folder.results(stage.name)  # what a resumed run would read, so that both go on from the same
        found = replace(found, named=add(found.named, results), done=(*found.done, stage.name))
        if stage.name == "check":
            _gate(found)
        pause = max(PAUSE, 4 * cost)
        if folder is not None and "estimated" in found.named and time.monotonic() - told > pause and found.left:
            told = time.monotonic()
            publish(found, folder.path)
            told, cost = time.monotonic(), time.monotonic() - told
    if folder is not None:
        with observer.stage("writing the report", len(found.plan.rows), len(found.plan.rows), 0.0):
            publish(found, folder.path)
    return found


def _with_finished(found: Discovery, folder: Folder) -> Discovery:
    """`found` with the stages in the ledger, in the order in which stages stand."""
    ledger = folder.ledger()
    done = tuple(name for name in STAGES if name in ledger)
    named: dict[str, Any] = {}
    for name in done:
        named = add(named, folder.results(name))
    found = replace(found, named=named, done=done)
    if "check" in named:
        _gate(found)
    return found


def _gate(found: Discovery) -> None:
    """Stop before any long step where the data or the model's answers leave nothing to explain."""
    problems = found["check"].problems
    if problems:
        said = " ".join(f"{row.what}: {row.said}. {row.remedy}" for row in problems)
        raise InputError(f"{found.task.name} on {found.model_name} is stopped before any long step: {said}")


@checked
def load_discovery(path: str | Path) -> Discovery:
    """What a folder holds so far; its model is not loaded. Raises `ArtefactError` for other or damaged folders."""
    folder = Folder(path)
    request = folder.request()
    plan = folder.plan()
    if plan is None or TASK not in folder.ledger():
        plan = plan or Plan((), 1, 1, 0.0)
        if TASK not in folder.ledger():
            raise InputError(f"nothing is finished in {path} yet; run its command again to go on")
    stored: Any = folder.results(TASK)[TASK]
    task = stored.task()
    settings = Settings(**request["settings"])
    found = Discovery(
        task, str(request["model"]), settings, plan, {}, (), request, Path(path), audience=str(request["audience"])
    )
    return _with_finished(found, folder)


def go_on(
    found: Discovery,
    model: TransformerBridge | None,
    *,
    thorough: bool,
    card: bool,
    budget: float | str | None,
    observer: Observer | None,
) -> Discovery:
    """See `Discovery.extend`."""
    model = model or found.model
    if model is None:
        raise InputError(
            f"a discovery that was read from a folder needs its model: extend(load_model({found.model_name!r}))"
        )
    if identify_model(model)["weights_sha256"] != found.request["weights"]:
        raise InputError(
            f"{found.folder or 'this discovery'} is of a model with other weights, {found.model_name}. Pass that one."
        )
    seconds = parse_seconds(budget)
    mode: Mode = "thorough" if thorough else "default"
    more = make_plan(
        model,
        found.task,
        found.settings,
        mode=mode,
        budget=seconds,
        again=found.again is not None,
        seconds=found.plan.forward,
        card=card,
    )
    plan = extend_plan(found.plan, more, found.done) if thorough or card or seconds is not None else found.plan
    found = replace(found, model=model, plan=plan)
    folder = None if found.folder is None else Folder(found.folder)
    hold = contextlib.nullcontext() if folder is None else folder.claim(found.request, force=False)
    with hold, made_by(str(found.request["command"])):
        return _run(found, folder, observer or Silent(), seconds)
