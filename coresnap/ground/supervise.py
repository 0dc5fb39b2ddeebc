# SPDX-License-Identifier: Apache-2.0
"""Children that are kept running, or run now and then: what a service manager does, where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from coresnap.ground import runner

_RESTART_USEC = (1_000_000, 60_000_000)
_STEADY_USEC = 60_000_000


@dataclass
class Supervised:
    """A child that is kept running, or run now and then (`every_usec`)."""

    name: str
    every_usec: int = 0
    child: runner.Child | None = None
    next_usec: int = 0
    started_usec: int = 0
    failures: int = 0


class Supervisor:
    """The children, and when each is to run."""

    def __init__(
        self, children: list[Supervised], argv: Callable[[str], list[str]], tell: Callable[[str], None]
    ) -> None:
        """`argv` gives a child's command by its name; `tell` is told of children that end."""
        self.children = children
        self._argv = argv
        self._tell = tell

    def start_due(self) -> None:
        """Start the children whose time has come."""
        for supervised in self.children:
            if supervised.child is None and now_usec() >= supervised.next_usec:
                supervised.child = runner.spawn(self._argv(supervised.name))
                supervised.started_usec = now_usec()

    def wake_usec(self) -> list[int]:
        """Return when children are to be started, by the monotonic clock."""
        return [supervised.next_usec for supervised in self.children if supervised.child is None]

    def reap(self) -> None:
        """Take note of children that have ended, and when each is to run again."""
        for supervised in self.children:
            status = supervised.child.poll() if supervised.child else None
            if status is None:
                continue
            supervised.child = None
            if supervised.every_usec and status == 0:
                supervised.next_usec = now_usec() + supervised.every_usec
                continue
            steady = now_usec() - supervised.started_usec > _STEADY_USEC
            supervised.failures = 1 if steady else supervised.failures + 1
            wait_usec = min(_RESTART_USEC[0] << min(supervised.failures - 1, 20), _RESTART_USEC[1])
            supervised.next_usec = now_usec() + wait_usec
            self._tell(f"{supervised.name} ended with status {status}; starting it again in {wait_usec // 1_000_000} s")

    def end(self) -> None:
        """End all children; they are due at once."""
        for supervised in self.children:
            if supervised.child:
                supervised.child.end()
                supervised.child = None
                supervised.next_usec = 0


def now_usec() -> int:
    """Return the monotonic clock."""
    return time.monotonic_ns() // 1000
