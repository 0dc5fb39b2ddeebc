# SPDX-License-Identifier: Apache-2.0
"""Retention: what may go, and when. Only dumps that nobody waits for any more: delivered ones and given-up ones."""

import os
import time
from collections.abc import Iterator

from coresnap.ground.errors import CoresnapError
from coresnap.spool import quota, record, stages
from coresnap.spool.stages import Dump, Spool


def purge(spool: Spool, age_usec: int, *, dry_run: bool = False) -> Iterator[tuple[str, str, int]]:
    """Remove the committed and failed dumps captured more than `age_usec` ago; yield stage, UUID and bytes of each."""
    before_usec = time.time_ns() // 1000 - age_usec
    for stage in (stages.COMMITTED, stages.FAILED):
        for uuid in spool.uuids(stage):
            dump = spool.take(stage, uuid)
            if dump is None:
                continue
            with dump:
                if captured_usec(dump) >= before_usec:
                    continue
                size_bytes = dump.disk_bytes() if dry_run else remove(spool, dump)
            yield stage, uuid, size_bytes


def remove(spool: Spool, dump: Dump) -> int:
    """Remove a locked dump, and take its bytes off the count that dump.ceiling goes by; return them."""
    size_bytes = dump.disk_bytes()
    spool.remove(dump)
    quota.count(spool, -size_bytes)
    return size_bytes


def captured_usec(dump: Dump) -> int:
    """Return when the dump was captured; where its record cannot be read, when its directory last changed."""
    try:
        captured: int = record.load(dump)["captured"]["time_usec"]
    except (CoresnapError, OSError):
        return os.fstat(dump.fd).st_mtime_ns // 1000
    return captured


def recount(spool: Spool) -> int:
    """Count the bytes on disk of all dumps anew, and correct the count that dump.ceiling goes by; return it."""
    table_fd = quota.open_table(spool)
    try:
        before_bytes = quota.read_table(table_fd)[0][0]
        counted_bytes = sum(_disk_bytes(spool, stage) for stage in stages.STAGES[1:])
        quota.add_used(table_fd, counted_bytes - before_bytes)
    finally:
        os.close(table_fd)
    return counted_bytes


def _disk_bytes(spool: Spool, stage: str) -> int:
    total_bytes = 0
    for uuid in spool.uuids(stage):
        try:
            dump_fd = os.open(uuid, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=spool.stage_fds[stage])
        except OSError:
            continue  # it has moved on, and counts there, or at the next count
        total_bytes += Dump(uuid, stage, dump_fd).disk_bytes()
        os.close(dump_fd)
    return total_bytes
