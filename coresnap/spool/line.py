# SPDX-License-Identifier: Apache-2.0
"""The line in which a stage's dumps wait for their owner: which are due, which are due later, which are held back."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

_BUSY_USEC = (5_000, 5_000_000)


class Line:
    """The dumps of a stage that are not being worked on, by UUID. A dump that nobody knows here is new."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.touched: deque[str] = deque()  #: somebody wants them tried now, whatever there is to wait for
        self.due: deque[str] = deque()
        self.later: list[tuple[int, str]] = []
        self.held: dict[str, deque[str]] = {}  #: by what they wait for
        self._busy: dict[str, int] = {}

    def add(self, uuids: set[str]) -> None:
        """Put what is new into the line."""
        new = uuids - self.known
        self.due.extend(sorted(new))
        self.known |= new

    def touch(self, uuid: str) -> None:
        """Have a dump looked at anew, at once, wherever in the line it is."""
        if uuid in self.known:
            self.later = [waiting for waiting in self.later if waiting[1] != uuid]
            heapq.heapify(self.later)
            for waiting in (self.touched, self.due, *self.held.values()):
                if uuid in waiting:
                    waiting.remove(uuid)
            self.held = {reason: held for reason, held in self.held.items() if held}
        self.known.add(uuid)
        self.touched.append(uuid)

    def prune(self, there: set[str]) -> None:
        """Know no dump any more that is not there; one that stands in the line still is found gone when its turn comes."""
        self.known &= there

    def forget(self, uuid: str) -> None:
        """Take a dump out: it is being worked on, or has gone."""
        self.known.discard(uuid)
        self._busy.pop(uuid, None)

    def leave(self, uuid: str) -> None:
        """Know a dump and do nothing with it."""
        self.known.add(uuid)

    def again(self, uuid: str) -> None:
        """Put a dump at the end of the line."""
        self.known.add(uuid)
        self.due.append(uuid)

    def schedule(self, uuid: str, moment_usec: int) -> None:
        """Have a dump due at that moment."""
        self.known.add(uuid)
        heapq.heappush(self.later, (moment_usec, uuid))

    def wait_for_lock(self, uuid: str, now_usec: int) -> None:
        """Come back soon to a dump that another holds, each time later."""
        tries = self._busy[uuid] = self._busy.get(uuid, -1) + 1
        self.schedule(uuid, now_usec + min(_BUSY_USEC[0] << min(tries, 20), _BUSY_USEC[1]))

    def hold(self, uuid: str, reason: str) -> None:
        """Hold a dump back until what it waits for admits it."""
        self.known.add(uuid)
        self.held.setdefault(reason, deque()).append(uuid)

    def wake(self, now_usec: int) -> None:
        """Have those due whose time has come."""
        while self.later and self.later[0][0] <= now_usec:
            self.due.append(heapq.heappop(self.later)[1])

    def next(self, admits: Callable[[str | None], bool]) -> tuple[str, bool] | None:
        """Return the next dump, and whether it was touched; `admits` says for which reasons those held back may go now.

        None of them is admitted, and no other but those touched, unless `admits` says so for None.
        """
        if self.touched:
            return self.touched.popleft(), True
        if not admits(None):
            return None
        for reason in list(self.held):
            if admits(reason):
                waiting = self.held[reason]
                uuid = waiting.popleft()
                if not waiting:
                    del self.held[reason]
                return uuid, False
        return (self.due.popleft(), False) if self.due else None

    def waits(self) -> bool:
        """Say whether there is a dump that only waits to be admitted."""
        return bool(self.due or self.held)
