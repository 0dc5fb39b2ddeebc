# SPDX-License-Identifier: Apache-2.0
"""The dumps of which the journal has not been told, because it was away: told later, from their records.

`<dump.root>/unjournaled/UUID` is an empty file. Who has processed the dump makes it; coresnapd, which looks once a minute,
takes it away once the journal has the entry, or the dump has gone. What is in a dump's asset is not read again: that is a
worker's to do, and the entry goes without it.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from coresnap.ground import durable
from coresnap.ground.errors import CoresnapError
from coresnap.ground.log import CRITICAL, Log
from coresnap.spool import coredump, encrypted, record, stages

if TYPE_CHECKING:
    from coresnap.spool.stages import Spool

NAME = "unjournaled"
#: No more at a look: coresnapd has other things to see to.
_AT_ONCE_MOST = 200


def note(spool: Spool, uuid: str) -> None:
    """Have the journal told of this dump when it is back. Raises OSError."""
    fd = _directory(spool)
    try:
        os.close(durable.create(fd, uuid, 0o600, spool.uid, spool.gid))
        durable.sync(fd)
    except FileExistsError:
        pass
    finally:
        os.close(fd)


def _directory(spool: Spool) -> int:
    if not durable.exists(spool.root_fd, NAME):
        return durable.mkdir(spool.root_fd, NAME, 0o700, spool.uid, spool.gid)
    return durable.open_directory(NAME, spool.root_fd)


def tell(spool: Spool, owner: tuple[int, int, int]) -> int:
    """Tell the journal of them, if it is back; return of how many. Raises OSError where their names cannot be read."""
    if not durable.exists(spool.root_fd, NAME):
        return 0
    told = 0
    log = Log.open(echo=False)  # anew: who was started while it was away has not found it
    fd = durable.open_directory(NAME, spool.root_fd)
    try:
        is_away = False
        for uuid in sorted(os.listdir(fd)):
            stage = _stage_of(spool, uuid)
            if stage is None:
                durable.unlink(fd, uuid)  # the dump has gone
            elif not is_away and told < _AT_ONCE_MOST:
                done = _tell_of(spool, stage, uuid, fd, log, owner)
                is_away = done is None
                told += bool(done)
    finally:
        os.close(fd)
    return told


def _stage_of(spool: Spool, uuid: str) -> str | None:
    """Return where the dump is; the way that a dump goes, so that one that moves meanwhile is not missed."""
    if not stages.is_uuid(uuid):
        return None
    return next((stage for stage in stages.STAGES[1:] if spool.holds(stage, uuid)), None)


def _tell_of(spool: Spool, stage: str, uuid: str, notes_fd: int, log: Log, owner: tuple[int, int, int]) -> bool | None:
    """Say whether the journal has been told of it now; None where it is away.

    What cannot be read, or is in work, waits. The note goes before the record is stored, which a full disk forbids: better that
    the journal is told twice, when the dump is processed again, than once a minute.
    """
    try:
        dump = spool.take(stage, uuid)
        if dump is None:
            return False
        with dump:
            document = record.load(dump)
            if stage != stages.PENDING and document["journaled_usec"] is None:  # else it is told of as it is processed
                path = spool.link_path(uuid, encrypted.core_of(document))
                if not log.entry(CRITICAL, coredump.message(document), coredump.fields(document, path, {})):
                    return None
                durable.unlink(notes_fd, uuid)
                document["journaled_usec"] = time.time_ns() // 1000
                record.store(dump, document, *owner)
                return True
            durable.unlink(notes_fd, uuid)
    except (CoresnapError, OSError):
        pass  # those whose work is the dump tell of it
    return False
