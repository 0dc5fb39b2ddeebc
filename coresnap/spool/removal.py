# SPDX-License-Identifier: Apache-2.0
"""Removal: of a core alone, whose dump keeps the rest, or of a whole dump. Each is durable, and whole whenever it is cut short.

A core goes in this order: the record says so, the file is unlinked, its name in by-uuid is. Cut short after the record, the
core is still there, whole, and the next purge ends what was begun (its plan has it first); after the file, the next purge
unlinks the name that is left.
"""

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from coresnap.ground import durable
from coresnap.ground.errors import CoresnapError
from coresnap.spool import ledger, quota, record, stages
from coresnap.spool.record import Record
from coresnap.spool.retention import CORE, Plan, Step
from coresnap.spool.sight import is_core
from coresnap.spool.stages import Dump, Spool


class Done(NamedTuple):
    """What has become of a step: the bytes that it freed, or why it was left."""

    step: Step
    freed_bytes: int
    left: str = ""


def carry_out(spool: Spool, plan: Plan, owner: tuple[int, int, int]) -> Iterator[Done]:
    """Carry out a plan, each step under its dump's lock, where the dump is still what the plan took it for.

    Stops as soon as there is as much room as there has to be. `owner` is mode, user and group of a dump's files.
    """
    freed_bytes = 0
    for step in plan.steps:
        if step.for_room and (freed_bytes >= plan.need_bytes or _is_free(spool, plan.until_free_bytes)):
            yield Done(step, 0, "there is room enough now")
            continue
        try:
            done = _carry_out(spool, step, owner)
        except CoresnapError as error:
            done = Done(step, 0, error.line())
        except OSError as error:
            done = Done(step, 0, error.strerror or str(error))
        freed_bytes += done.freed_bytes
        yield done


def _is_free(spool: Spool, until_free_bytes: int | None) -> bool:
    disk = os.fstatvfs(spool.root_fd)
    return until_free_bytes is not None and disk.f_bavail * disk.f_frsize >= until_free_bytes


def _carry_out(spool: Spool, step: Step, owner: tuple[int, int, int]) -> Done:
    dump = spool.take(step.stage, step.uuid)
    if dump is None:
        return Done(step, 0, "it is in work, or no longer there")
    with dump:
        document = record.load(dump)
        if document["pinned_usec"] is not None:
            return Done(step, 0, "it has been pinned")
        if document["captured"]["time_usec"] != step.time_usec:
            return Done(step, 0, "it is not what it was")
        if step.what == CORE:
            return Done(step, shed_core(spool, dump, document, step.why, owner))
        if step.stage == stages.FAILED:
            detail = f"{step.why}; it had not been delivered"
            ledger.append(spool.root_fd, "purged", detail, dump.uuid, document["victim"])
        return Done(step, remove(spool, dump))


def shed_core(spool: Spool, dump: Dump, document: Record, why: str, owner: tuple[int, int, int]) -> int:
    """Remove the core of a locked dump, and take its bytes off the count that dump.ceiling goes by; return them."""
    if document["core_removed"] is None:
        document["core_removed"] = {"time_usec": time.time_ns() // 1000, "why": why}
        record.note(document, "core removed", why)
        record.store(dump, document, *owner)
    freed_bytes = 0
    for name in filter(is_core, os.listdir(dump.fd)):
        freed_bytes += os.stat(name, dir_fd=dump.fd, follow_symlinks=False).st_blocks * 512
        durable.unlink(dump.fd, name)
    durable.sync(dump.fd)
    quota.count(spool, -freed_bytes)
    spool.unlink_orphans(dump.uuid)
    return freed_bytes


def remove(spool: Spool, dump: Dump) -> int:
    """Remove a locked dump, and take its bytes off the count that dump.ceiling goes by; return them."""
    size_bytes = dump.disk_bytes()
    spool.remove(dump)
    quota.count(spool, -size_bytes)
    return size_bytes


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
