# SPDX-License-Identifier: Apache-2.0
"""After the capture service, or a worker of it, has been killed: what it had taken is kept as far as it came, or on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from coresnap.capture.board import Crash, Taken
from coresnap.capture.loss import is_on_record, put_on_record
from coresnap.capture.sweep import sweep
from coresnap.capture.victim import Victim
from coresnap.ground import catalog
from coresnap.ground.errors import Refused
from coresnap.ground.flat import ArchiveSettings
from coresnap.ground.log import Log
from coresnap.spool import stages
from coresnap.spool.stages import Spool

_BEFORE_FIRST_BYTE = "coresnap-capture was killed before the first byte"


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


def settle(
    log: Log,
    settings: ArchiveSettings,
    within: str,
    crashes: Sequence[Crash],
    find: Callable[[str], Taken | None],
) -> None:
    """Keep, or put on record, what captures have left in staging that were killed, and what these had. Raises OSError.

    `crashes` are of workers that have died, or of a service that has: each is cleared once that is done. `find` returns what
    is known of any by its UUID: further workers may die meanwhile. `within`: see Spool.
    """
    with spool_or_none(settings.root, within) as spool:
        if spool is None:
            return  # it may be mounted later
        found = [(crash, crash.taken()) for crash in crashes]
        sweep(log, spool, settings, find)
        for crash, taken in found:
            if crash.is_free() or crash.taken().uuid != taken.uuid:
                continue  # the service wanted its place
            stage = next((stage for stage in stages.STAGES if spool.holds(stage, taken.uuid)), "")
            if stage == stages.STAGING:
                continue  # it could not be swept
            # Until it has been told otherwise archive has what it hands over. What the kernel hands over is nobody else's.
            if not stage and not taken.is_offered and not is_on_record(spool, taken.uuid):
                lose(log, settings, spool, taken.victim, "interrupted", _BEFORE_FIRST_BYTE, taken.uuid)
            crash.clear()


def lose(
    log: Log,
    settings: ArchiveSettings,
    spool: Spool | None,
    victim: Victim,
    reason: str,
    detail: str,
    uuid: str = "",
) -> None:
    """Say that a core was not kept, and put it on record. Raises nothing."""
    on_record = put_on_record(spool, settings.root, reason, detail, uuid, victim)
    also = "" if on_record else "; the ledger could not take it"
    name = victim.comm or victim.exe or "a process"
    if victim.pid is not None:
        name += f" (pid {victim.pid})"
    log.error(f"core of {name} not kept: {reason}: {detail}{also}", MESSAGE_ID=catalog.LOST.id)
