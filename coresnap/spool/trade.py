# SPDX-License-Identifier: Apache-2.0
"""What a stage's owner is told of the stage's work, and what it tells of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from coresnap.ground.clock import Clock
from coresnap.spool.record import Record
from coresnap.spool.stages import Dump, Spool


@dataclass(frozen=True)
class Verdict:
    """What the work on a dump has come to.

    done: it goes on to the next stage. later: it is tried again, after `retry_usec` or the owner's back-off. parked:
    others wait with it; this dump is not to blame. failed: it is given up on. `scope` says who is concerned: the store
    and all dumps that go to it, one project of it, or (later) this dump perhaps alone.
    """

    status: Literal["done", "later", "parked", "failed"]
    detail: str = ""
    retry_usec: int | None = None
    scope: Literal["dump", "project", "store"] = "dump"


class Trade(Protocol):
    """What a stage's owner has to know of the stage's work."""

    name: str  #: process or send: the key of the record's attempts
    stage: str
    next_stage: str
    reuse: bool  #: one worker may be given one dump after the other
    first_retry_usec: int
    last_retry_usec: int
    spread: float  #: the share of a back-off that is left to chance
    worker: list[str]  #: argv of the worker program
    workers: int  #: how many dumps are worked on at once
    limit_usec: int  #: after which a worker that has not answered is killed
    attempts: int  #: after how many a dump is given up on; 0 for never
    owner: tuple[int, int, int]  #: mode, uid and gid of what is written into a dump

    def enter(self, spool: Spool, clock: Clock, /) -> None:
        """Learn whose dumps they are, and by what clock."""

    def rest(self, *, last: bool) -> None:
        """Do what can wait until no dump is at work; `last`: the owner ends. Raises OSError."""

    def store(self) -> str | None:
        """Return the name of the store that the stage's dumps go to now; None where they go to none."""

    def mended(self) -> bool:
        """Say whether what may have parked a store has been changed since the last call."""

    def project(self, document: Record, /) -> str:
        """Return the project of a dump."""

    def request(self, dump: Dump, document: Record, /) -> tuple[dict[str, Any], list[int]] | Verdict | None:
        """Return the worker's message and descriptors, which the owner closes.

        None where the work is done already, a Verdict where it cannot be done.
        """

    def settle(self, spool: Spool, dump: Dump, document: Record, answer: dict[str, Any] | None, /) -> None:
        """Do what is due when a dump leaves the stage, before its record is stored. Raises nothing that could keep it there."""

    def shed(self, spool: Spool, dump: Dump, document: Record, /) -> None:
        """Unlink what the record, as it is stored now, no longer speaks of. Raises OSError."""

    def conclude(self, dump: Dump, document: Record, answer: dict[str, Any] | None, /) -> Verdict:
        """Judge the answer (None: the worker died), and put its result into the dump and its record, durably."""


#: How an owner tells of an event: the dump's UUID, its record where there is one, the verdict, the stage it is in now.
Tell = Callable[[str, Record | None, Verdict, str], None]
