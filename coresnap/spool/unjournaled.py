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
from coresnap.ground.errors import BadInput
from coresnap.ground.log import CRITICAL, Log
from coresnap.spool import coredump, encrypted, record, stages

if TYPE_CHECKING:
    from coresnap.spool.stages import Dump, Spool

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
    """Tell the journal of them, if it is back; return of how many. Raises OSError."""
    if not durable.exists(spool.root_fd, NAME):
        return 0
    told = 0
    log = Log.open(echo=False)  # anew: who was started while it was away has not found it
    fd = durable.open_directory(NAME, spool.root_fd)
    try:
        for uuid in sorted(os.listdir(fd))[:_AT_ONCE_MOST]:
            dump = _take(spool, uuid)
            if dump is None and _is_there(spool, uuid):
                continue  # a worker has it just now
            if dump is not None:
                with dump:
                    told_now = _tell_of(spool, dump, log, owner)
                if told_now is None:
                    break
                told += told_now
            durable.unlink(fd, uuid)
    finally:
        os.close(fd)
    return told


def _take(spool: Spool, uuid: str) -> Dump | None:
    for stage in stages.STAGES[1:]:
        dump = spool.take(stage, uuid)
        if dump is not None:
            return dump
    return None


def _is_there(spool: Spool, uuid: str) -> bool:
    return stages.is_uuid(uuid) and any(spool.holds(stage, uuid) for stage in stages.STAGES[1:])


def _tell_of(spool: Spool, dump: Dump, log: Log, owner: tuple[int, int, int]) -> bool | None:
    """Say whether the journal has been told of it now; None where it is still away."""
    try:
        document = record.load(dump)
    except BadInput:
        return False  # those who read it tell of that
    if document["journaled_usec"] is not None:
        return False
    if dump.stage == stages.PENDING:
        return False  # it is processed again, and told of then
    path = spool.link_path(dump.uuid, encrypted.core_of(document))
    if not log.entry(CRITICAL, coredump.message(document), coredump.fields(document, path, {})):
        return None
    document["journaled_usec"] = time.time_ns() // 1000
    record.store(dump, document, *owner)
    return True
