# SPDX-License-Identifier: Apache-2.0
"""What a verdict on a dump leads to: its record, its next stage or its next try, and how its store stands from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coresnap.spool import record, stages
from coresnap.spool.trade import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from coresnap.ground.clock import Clock
    from coresnap.spool.line import Line
    from coresnap.spool.outlook import Outlook
    from coresnap.spool.record import Record
    from coresnap.spool.stages import Dump, Spool
    from coresnap.spool.trade import Trade

Place = tuple[str, str]
#: How many moves of delivered dumps are synced together, at most; they are as soon as no dump is at work.
_MOVES_MOST = 64


class Conclusion:
    """Concludes the work on dumps, for their owner."""

    def __init__(
        self, spool: Spool, trade: Trade, line: Line, outlook: Outlook | None, clock: Clock, chance: Callable[[], float]
    ) -> None:
        self.spool = spool
        self.trade = trade
        self.line = line
        self.outlook = outlook
        self.clock = clock
        self.chance = chance
        self.moved = 0  #: dumps whose move is not synced yet

    def draw(
        self, dump: Dump, document: Record, verdict: Verdict, answer: dict[str, Any] | None, place: Place | None
    ) -> Verdict | None:
        """Act on the verdict; return what is to be told, None where that has been told before. Raises OSError.

        `place` is the store and project that were tried, if any were.
        """
        if self.outlook and place:
            waits = self._weigh(self.outlook, place, document, verdict)
            if waits is not None:
                self.line.again(dump.uuid)
                return waits if waits.detail else None
        attempts = document["attempts"][self.trade.name]
        if verdict.status in ("later", "parked"):
            if not self.trade.attempts or attempts < self.trade.attempts:
                return self._later(dump, document, verdict)
            verdict = Verdict("failed", f"given up on after {attempts} attempts: {verdict.detail}")
        document["next_try_usec"] = None
        if verdict.status == "failed":
            document["failure"] = {"reason": self.trade.name, "detail": verdict.detail[:2000]}
        record.note(document, f"{self.trade.name}: {verdict.status}", verdict.detail)
        self.trade.settle(self.spool, dump, document, answer)
        record.store(dump, document, *self.trade.owner)
        self.trade.shed(self.spool, dump, document)
        # Seen again where it was, a dump with its receipt would be moved again, and nothing else: many are synced at once.
        delivered = verdict.status == "done" and place is not None
        self.spool.move(dump, self.trade.next_stage if verdict.status == "done" else stages.FAILED, sync=not delivered)
        self.moved += delivered
        if self.moved >= _MOVES_MOST:
            self.sync_moves()
        return verdict

    def sync_moves(self) -> None:
        """Have the moves on the disk that are not. Raises OSError."""
        if self.moved:
            self.moved = 0
            self.spool.sync(self.trade.next_stage, self.trade.stage)

    def _later(self, dump: Dump, document: Record, verdict: Verdict) -> Verdict:
        attempts = document["attempts"][self.trade.name]
        retry_usec = min(self.trade.first_retry_usec << min(attempts - 1, 30), self.trade.last_retry_usec)
        retry_usec -= int(retry_usec * self.trade.spread * self.chance())
        document["next_try_usec"] = self.clock.wall_usec() + retry_usec
        record.note(document, f"{self.trade.name}: attempt {attempts} failed", verdict.detail)
        record.store(dump, document, *self.trade.owner)
        self.line.schedule(dump.uuid, self.clock.now_usec() + retry_usec)
        return Verdict("later", verdict.detail, retry_usec)

    def _weigh(self, outlook: Outlook, place: Place, document: Record, verdict: Verdict) -> Verdict | None:
        """Tell the outlook; return what is to be told where the dump only waits with the others, nothing is in its record."""
        store, project = place
        if verdict.status == "done":
            outlook.took(store, project)
            return None
        if verdict.status == "failed":
            outlook.abandon(store, project)
            return None
        parks = verdict.status == "parked"
        concerned = project if parks and verdict.scope == "project" else None
        before = outlook.stands(store, concerned)
        before_state, before_detail = before.state, before.detail
        if parks:
            outlook.park(store, concerned, verdict.detail, tried=project)
        else:
            of_one = verdict.scope == "dump" or document["attempts"][self.trade.name] > 1
            if outlook.failed(store, project, verdict.detail, retry_usec=verdict.retry_usec, of_one=of_one):
                return None
        after = outlook.stands(store, concerned)
        if (after.state, after.detail) == (before_state, before_detail):
            return Verdict(verdict.status)
        wait_usec = max(0, (after.next_try_usec or 0) - self.clock.wall_usec())
        return Verdict(verdict.status, verdict.detail, wait_usec, verdict.scope)
