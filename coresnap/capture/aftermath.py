# SPDX-License-Identifier: Apache-2.0
"""After the capture service, or a worker of it, has been killed: what it had taken is kept as far as it came, or on record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from coresnap.capture.board import Taken
from coresnap.capture.finish import sweep
from coresnap.capture.loss import put_on_record
from coresnap.capture.tell import tell_swept
from coresnap.capture.victim import Victim
from coresnap.ground import catalog
from coresnap.ground.errors import Refused
from coresnap.ground.flat import ArchiveSettings
from coresnap.ground.log import Log
from coresnap.spool.stages import Spool


@contextmanager
def spool_or_none(root: str, within: str) -> Iterator[Spool | None]:
    """Yield the spool, or None where there is none."""
    try:
        spool = Spool(root, within)
    except Refused:
        yield None
        return
    with spool:
        yield spool


def sweep_after(log: Log, settings: ArchiveSettings, spool: Spool | None, taken: Sequence[Taken]) -> None:
    """Keep, or put on record, what captures have left in staging that were killed, and what these had taken. Raises OSError."""
    if spool is not None:
        victims = {crash.uuid: crash.victim for crash in taken if crash.uuid}
        for outcome in sweep(spool, settings, victims, {crash.uuid for crash in taken if crash.is_offered}):
            tell_swept(log, outcome)
    for crash in taken:
        # Until it is in staging archive has what it hands over, too. What the kernel handed over is nobody else's.
        if not crash.uuid and crash.victim.pid is not None:
            lose(log, settings, spool, crash.victim, "interrupted", "coresnap-capture was killed before the first byte")


def lose(log: Log, settings: ArchiveSettings, spool: Spool | None, victim: Victim, reason: str, detail: str) -> None:
    """Say that a core was not kept, and put it on record. Raises nothing."""
    on_record = put_on_record(spool, settings.root, reason, detail, "", victim)
    also = "" if on_record else "; the ledger could not take it"
    name = victim.comm or victim.exe or "a process"
    if victim.pid is not None:
        name += f" (pid {victim.pid})"
    log.error(f"core of {name} not kept: {reason}: {detail}{also}", MESSAGE_ID=catalog.LOST.id)
