# SPDX-License-Identifier: Apache-2.0
"""A clock of the test's own, on which an hour passes in no time, and an owner that lives by it."""

from __future__ import annotations

import heapq
import os
import select
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from coresnap.ground.clock import Clock
from coresnap.ground.program import Signals
from coresnap.spool.owner import Owner

if TYPE_CHECKING:
    from coresnap.spool.record import Record
    from coresnap.spool.stages import Spool
    from coresnap.spool.trade import Trade, Verdict

SECOND, MINUTE, HOUR = 1_000_000, 60_000_000, 3_600_000_000
_REAL_SECONDS = 60


class Hours(Clock):
    """A clock that stands still while a worker is at work, and jumps to the next moment that counts when none is.

    With `real` it goes on as the machine's does in between, so that what takes time takes as much on this clock.
    """

    def __init__(self, *, real: bool = False) -> None:
        self._skipped_usec = 0
        self._started_usec = Clock().now_usec() if real else None
        self.wall_base_usec = Clock().wall_usec()
        self._plans: list[tuple[int, int, Callable[[], object]]] = []

    @property
    def passed_usec(self) -> int:
        """How much time has passed since the clock was made."""
        real_usec = 0 if self._started_usec is None else Clock().now_usec() - self._started_usec
        return self._skipped_usec + real_usec

    def now_usec(self) -> int:
        """Return the monotonic clock."""
        return 1_000_000_000 + self.passed_usec

    def wall_usec(self) -> int:
        """Return the time since the epoch."""
        return self.wall_base_usec + self.passed_usec

    def at(self, moment_usec: int, action: Callable[[], object]) -> None:
        """Have something done when so much time has passed."""
        heapq.heappush(self._plans, (moment_usec, len(self._plans), action))

    def poll(self, poll: select.poll, wait_usec: int, *, busy: bool) -> list[tuple[int, int]]:
        """Wait in real time for a worker that is busy; else let the time pass that there is nothing to do in."""
        if busy:
            ready = poll.poll(_REAL_SECONDS * 1000)
            assert ready, "a worker does not answer"
            return ready
        if ready := poll.poll(0):
            return ready
        passed_usec = self.passed_usec
        next_usec = self._plans[0][0] - passed_usec if self._plans else wait_usec + 1
        self._skipped_usec += max(0, min(wait_usec + 1, next_usec))
        while self._plans and self._plans[0][0] <= self.passed_usec:
            heapq.heappop(self._plans)[2]()
        return poll.poll(0)


def live(
    spool: Spool, trade: Trade, clock: Hours, until_usec: int, *, chance: Callable[[], float] = lambda: 0.0
) -> tuple[Owner, list[tuple[str, Verdict]]]:
    """Let an owner live until so much time has passed; return it, and what it told."""
    told: list[tuple[str, Verdict]] = []

    def tell(uuid: str, _document: Record | None, verdict: Verdict, _stage: str) -> None:
        told.append((uuid, verdict))

    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        owner = Owner(spool, trade, tell, clock=clock, chance=chance)
        clock.at(until_usec, lambda: os.write(write_fd, bytes([signal.SIGTERM])))
        owner.run(Signals(read_fd), once=False)
    finally:
        os.close(read_fd)
        os.close(write_fd)
    return owner, told
