# SPDX-License-Identifier: Apache-2.0
"""The clocks that long waits are measured by, and the waiting itself: one seam, so that a test can let an hour pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import select


class Clock:
    """The machine's clocks."""

    def now_usec(self) -> int:
        """Return the monotonic clock, which nobody sets."""
        return time.monotonic_ns() // 1000

    def wall_usec(self) -> int:
        """Return the time since the epoch, which somebody may set."""
        return time.time_ns() // 1000

    def poll(self, poll: select.poll, wait_usec: int, *, busy: bool) -> list[tuple[int, int]]:
        """Poll for at most so long; `busy` says whether something is awaited that comes by itself."""
        del busy
        return poll.poll(wait_usec // 1000 + 1)

    def time_of_day(self, moment_usec: int) -> str:
        """Return a moment of the monotonic clock as a time of the day."""
        return time.strftime("%H:%M:%S", time.localtime((self.wall_usec() + moment_usec - self.now_usec()) / 1e6))
