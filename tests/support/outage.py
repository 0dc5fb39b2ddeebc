# SPDX-License-Identifier: Apache-2.0
"""A store that is down for an hour while dumps wait for it: the real sender, its real worker, an hour of Hours."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from coresnap.ground import settings
from coresnap.ground.log import Log
from coresnap.send import Sending
from coresnap.spool import stages
from tests.support import hours, spools
from tests.support.deliveries import TOKEN
from tests.support.hours import HOUR, MINUTE, Hours
from tests.support.lying_store import Lie, LyingStore


@dataclass(frozen=True)
class Outage:
    """When the store was asked during the hour, and when each dump was acknowledged, by the clock of the test."""

    asked_usec: list[int]
    acknowledged_usec: list[int]
    offered: list[int]  #: how often each report was
    first_tries: int  #: requests until the store was known to be down

    def most_in_a_minute(self) -> int:
        """Return the most probes in any minute that begins with one.

        No probe is what shows that the store is down: what is under way then, and where it might be one dump's fault the
        next one that is tried.
        """
        moments = self.asked_usec[self.first_tries :]
        return max(sum(first <= moment < first + MINUTE for moment in moments) for first in moments)


def suffer(directory: Path, dumps: int, down: str) -> Outage:
    """Have so many dumps wait for an hour.

    `down`: the store answers "503", or "busy" (429, Retry-After: 1), or hangs up without a word: "silent".
    """
    clock = Hours(real=True)
    asked_usec: list[int] = []
    acknowledged_usec: list[int] = []

    def plan(_number: int) -> Lie | None:
        if clock.passed_usec < HOUR:
            asked_usec.append(clock.passed_usec)
            return Lie("busy", "1") if down == "busy" else Lie("status", 503)
        acknowledged_usec.append(clock.passed_usec)
        return None

    port = _free_port()
    coroner = directory / "coroner.cf"
    coroner.write_text(
        f"[universe]\nname = u\nwrite = http://127.0.0.1:{port}\n[token]\nblackhole = {TOKEN}\n", encoding="ascii"
    )
    coroner.chmod(0o600)
    made = spools.make(directory, f"send.coroner = {coroner}")
    spools.fill(made, dumps)
    trade = Sending(settings.load(str(made.configuration)), Log([]))
    store = None if down == "silent" else LyingStore(plan=plan, listen=("127.0.0.1", port)).__enter__()
    deaf = _Deaf(port, clock, asked_usec) if down == "silent" else None
    opened: list[LyingStore] = []

    def back() -> None:
        if deaf:
            deaf.close()
        opened.append(store or LyingStore(plan=plan, listen=("127.0.0.1", port)).__enter__())

    clock.at(HOUR, back)
    try:
        with made.open() as spool:
            hours.live(spool, trade, clock, HOUR + 3 * MINUTE, chance=lambda: 1.0)
        left = len(list((made.root / stages.SENDING).iterdir()))
        assert not left, f"{left} of {dumps} are left"
        offered = [one.offered for one in opened[0].objects.values()]
        first_tries = sum(moment < asked_usec[0] + MINUTE // 2 for moment in asked_usec)
        return Outage(asked_usec, sorted(acknowledged_usec), offered, first_tries)
    finally:
        for one in opened:
            one.__exit__()


class _Deaf:
    """Counts who connects, and hangs up at once."""

    def __init__(self, port: int, clock: Hours, asked_usec: list[int]) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._clock = clock
        self._asked_usec = asked_usec
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self._asked_usec.append(self._clock.passed_usec)
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
