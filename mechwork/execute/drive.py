"""Drive units through workers: results in unit order, whoever finishes first.

- A result is kept in the ledger before it is handed out; a unit that the ledger has is not run.
- An error of mechwork's own (a metric that is not finite, say) would come again: it is raised in the unit's turn, as
  the serial run would.
- Any other error costs the unit one attempt, and it goes to the back of the queue. A lost worker costs the unit it was
  at one attempt; units that waited behind it come back uncharged. Given-up units stop nothing; `UnitError` names them
  at the end.
- `cancel` is asked between units.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing

from ..errors import Cancelled, MechworkError, UnitError
from .executors import Execution, Outcome, Pool, current_execution
from .ledger import Ledger
from .unit import Run, Tensors, Unit, Work


def run_units(
    work: Work, units: Iterable[Unit], here: Run, *, ledger: Ledger | None = None, execution: Execution | None = None,
    keep: bool = True, most: int | None = None,
) -> Iterator[tuple[Unit, Tensors]]:  # fmt: skip
    """The units' results in their order, on the CPU or wherever `here` leaves them.

    `here` runs a unit in this process (and in its forks). `units` may be made as they are needed. Without a `ledger`
    the execution's is used, if it has one and `keep` is set. `most`: units on their way, or waiting for an earlier
    one's result, at a time.
    """
    execution = execution or current_execution()
    with ExitStack() as stack:
        if ledger is None and keep and execution.ledger is not None:
            folder = execution.ledger / f"{work.operation}-{work.key[:16]}"
            ledger = stack.enter_context(Ledger(folder, work.identity()))
        drive = _Drive(execution, iter(units), ledger, most)
        pool = stack.enter_context(closing(execution.executor.open(work, here)))
        yield from drive.run(pool)


class _Drive:
    def __init__(
        self, execution: Execution, units: Iterator[Unit], ledger: Ledger | None, most: int | None = None
    ) -> None:
        self.execution, self.units, self.ledger = execution, units, ledger
        self.order: deque[Unit] = deque()
        self.waiting: deque[Unit] = deque()
        self.ready: dict[str, Tensors | Exception | None] = {}
        self.attempts: dict[str, int] = {}
        self.given_up: list[tuple[Unit, Exception]] = []
        self.on_the_way, self.most = 0, most
        self.more = True

    def run(self, pool: Pool) -> Iterator[tuple[Unit, Tensors]]:
        while True:
            self._stop_if_asked()
            self._take(pool.window)
            while self.order and self.order[0].key in self.ready:
                yield from self._hand_out()
                self._stop_if_asked()
                self._take(pool.window)
            if not self.order:
                break
            while self.waiting and pool.offer(self.waiting[0]):
                self.waiting.popleft()
                self.on_the_way += 1
            for outcome in pool.wait():
                self.on_the_way -= 1
                self._receive(outcome)
        if self.given_up:
            shown = "; ".join(f"{unit}: {error}" for unit, error in self.given_up[:3])
            raise UnitError(
                f"{len(self.given_up)} units failed {self.execution.attempts} times each and were given up; all "
                "others are finished. "
                f"{shown}" + (" ..." if len(self.given_up) > 3 else "")
            )

    def _stop_if_asked(self) -> None:
        if self.execution.cancel is not None and self.execution.cancel():
            kept = "" if self.ledger is None else f" What was finished is kept in {self.ledger.folder}."
            raise Cancelled(f"stopped between two units, as asked.{kept}")

    def _take(self, window: int) -> None:
        """Units up to the window; those that the ledger has are ready."""
        while self.more and len(self.order) < min(window, self.most or window):
            unit = next(self.units, None)
            if unit is None:
                self.more = False
            else:
                self.order.append(unit)
                if self.ledger is not None and unit in self.ledger:
                    self.ready[unit.key] = None
                else:
                    self.waiting.append(unit)

    def _hand_out(self) -> Iterator[tuple[Unit, Tensors]]:
        unit = self.order.popleft()
        values = self.ready.pop(unit.key)
        if isinstance(values, MechworkError):
            raise values
        if values is None and self.ledger is not None:
            values = self.ledger.read(unit)
        if isinstance(values, dict):
            yield unit, values

    def _receive(self, outcome: Outcome) -> None:
        unit, error = outcome.unit, outcome.error
        if error is None:
            assert outcome.values is not None
            if self.ledger is not None:
                self.ledger.write(unit, outcome.values)
            self._note("done", outcome)
            self.ready[unit.key] = outcome.values
            return
        if not outcome.blamed:
            self._note("returned", outcome)
            self.waiting.append(unit)
            return
        self.attempts[unit.key] = self.attempts.get(unit.key, 0) + 1
        final = isinstance(error, MechworkError)
        if final or self.attempts[unit.key] >= self.execution.attempts:
            self._note("given up", outcome)
            if not final:
                self.given_up.append((unit, error))
            self.ready[unit.key] = error
        else:
            self._note("failed", outcome)
            self.waiting.append(unit)

    def _note(self, event: str, outcome: Outcome) -> None:
        if self.ledger is not None:
            facts = {} if outcome.error is None else {"error": str(outcome.error)}
            tried = self.attempts.get(outcome.unit.key, 0) + (outcome.error is None)
            self.ledger.note(
                event, outcome.unit, attempt=tried, worker=outcome.worker, seconds=round(outcome.seconds, 4), **facts
            )
