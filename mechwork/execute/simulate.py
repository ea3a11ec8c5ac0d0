"""How long workers would take, from how long units take: the queues of the pools, played through on paper.

    found = simulate([0.5] * 40, n_workers=8, start=20.0, overhead=0.001)
    found.seconds, found.speed_up

Each worker is ready `start` seconds after the beginning, holds two units (the one it is at and the next), and waits
where results further on would have to be kept (`LOOKAHEAD`). Handing out and taking back a unit costs the one driver
`overhead` seconds. Units are given out in their order.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from .forked import LOOKAHEAD, QUEUE

PAY = 5.0
"""A worker pays while its start is at most this part of its work: W seconds of work, S of start, at most W / 5S."""


@dataclass(frozen=True)
class Simulation:
    """`seconds` until the last unit is back; `serial`: of one process that needs no start; `busy`: the share of the
    workers' time in which they compute.
    """

    seconds: float
    serial: float
    busy: float

    @property
    def speed_up(self) -> float:
        """How many times faster than one process."""
        return self.serial / self.seconds if self.seconds else 1.0


def simulate(
    units: Sequence[float], n_workers: int, *, start: float = 0.0, overhead: float = 0.0, shared: float = 0.0
) -> Simulation:
    """`units`: seconds of each, in order; `shared`: seconds of what each worker does once beside its units.

    Raises `InputError` for no workers, and times below zero.

    >>> simulate([1.0] * 8, n_workers=2).seconds
    4.0
    """
    if n_workers < 1 or min([start, overhead, shared, *units]) < 0:
        raise InputError("a simulation takes one worker or more, and times of zero or more")
    order, window = deque(enumerate(units)), LOOKAHEAD * n_workers
    queues: list[deque[tuple[int, float]]] = [deque() for _ in range(n_workers)]
    free = [start + shared] * n_workers
    running: list[tuple[float, int]] = []
    finished, first, driver, last = set[int](), 0, start, 0.0
    while order or running:
        while order and order[0][0] < first + window:
            worker = min(range(n_workers), key=lambda one: len(queues[one]))
            if len(queues[worker]) >= QUEUE:
                break
            number, seconds = order.popleft()
            driver += overhead
            queues[worker].append((number, seconds))
            if len(queues[worker]) == 1:
                free[worker] = max(free[worker], driver) + seconds
                heapq.heappush(running, (free[worker], worker))
        last, worker = heapq.heappop(running)
        driver = max(driver, last)
        finished.add(queues[worker].popleft()[0])
        while first in finished:
            first += 1
        if queues[worker]:
            free[worker] = last + queues[worker][0][1]
            heapq.heappush(running, (free[worker], worker))
    serial = sum(units) + shared
    last = max(last, driver)
    return Simulation(last, serial, min(1.0, serial / (n_workers * last)) if last else 1.0)


def paying_workers(units: Sequence[float], start: float, most: int) -> int:
    """How many workers, up to `most`, still pay: W / 5S for W seconds of work and S of start, never more than units."""
    limit = most if start <= 0 else int(sum(units) / (PAY * start))
    return max(1, min(most, limit, len(units)))
