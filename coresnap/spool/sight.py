# SPDX-License-Identifier: Apache-2.0
"""What there is to see of one dump, read without its lock: it may move, or be removed, meanwhile."""

import os
import stat
from collections.abc import Collection, Mapping
from typing import Any

from coresnap.ground import durable
from coresnap.ground.errors import BadInput
from coresnap.spool import record, stages
from coresnap.spool.index import (
    ASSETS,
    COLUMNS,
    CORE,
    KNOWN,
    PINNED,
    READABLE,
    RECEIPT,
    SHED,
    SNAPSHOT,
    STRING_MOST,
    STRINGS,
)
from coresnap.spool.stages import Spool

_NUMBER_MOST = 2**64 - 1


def read(spool: Spool, stage: str, uuid: str) -> dict[str, Any] | None:
    """Return what goes into a dump's row, by COLUMNS; None where the dump is not, or no longer, in that stage."""
    stage_fd = spool.stage_fds[stage]
    try:
        fd = durable.open_directory(uuid, stage_fd)
    except OSError as error:
        return _from_outside(stage_fd, uuid, error)
    with stages.Dump(uuid, stage, fd) as dump:
        changed = os.fstat(fd)  # first: what changes later is a later change
        recorded_nsec = changed_nsec(fd, record.NAME)
        document, problem = None, ""
        try:
            document = record.load(dump)
        except BadInput as error:
            problem = error.line()
        except OSError as error:
            problem = f"{record.NAME}: {error.strerror}"
        sizes_bytes = {}
        for name in os.listdir(fd):
            try:
                sizes_bytes[name] = os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                pass  # a core that is being replaced by its compressed form, say
        if (document is None or not any(map(is_core, sizes_bytes))) and not spool.holds(stage, uuid):
            return None  # it is being removed
    values = values_of(sizes_bytes, document)
    values |= {"problem": problem, "recorded_nsec": recorded_nsec}
    if document is None:
        values["time_usec"] = changed.st_mtime_ns // 1000
    # What cannot be kept as it is the index does not vouch for.
    too_long = any(len(values[name]) > STRING_MOST for name in STRINGS)
    return values | {"changed_nsec": 0 if too_long else changed.st_ctime_ns}


def values_of(sizes_bytes: Mapping[str, int], document: record.Record | None) -> dict[str, Any]:
    """Return what a dump's files, with what each takes on the disk, and its record say of it, by COLUMNS."""
    values: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | dict.fromkeys(STRINGS, "")
    values["disk_bytes"] = sum(sizes_bytes.values())
    values["core_bytes"] = sum(size for name, size in sizes_bytes.items() if is_core(name))
    values["flags"] = KNOWN | _flags(sizes_bytes, document)
    if document is not None:
        _fill(values, document)
    return values


def is_core(name: str) -> bool:
    """Say whether a dump's file of this name is its core: as it came, compressed, or encrypted."""
    return name in stages.CORES


def _from_outside(stage_fd: int, uuid: str, why: OSError) -> dict[str, Any] | None:
    """Return what there is to see of a dump that may not be looked into; None where there is no dump."""
    try:
        status = os.stat(uuid, dir_fd=stage_fd, follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        return None
    values: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | dict.fromkeys(STRINGS, "")
    return values | {"time_usec": status.st_mtime_ns // 1000, "problem": f"{record.NAME}: {why.strerror}"}


def _flags(names: Collection[str], document: record.Record | None) -> int:
    """Return which files there are, complete as far as there is a record to say so."""
    flags = CORE if any(map(is_core, names)) else 0
    if "snapshot" in names and (document is None or document["snapshot"]):
        flags |= SNAPSHOT
    if (stages.ASSETS in names or stages.ASSETS + stages.AGE in names) and (
        document is None or document["assets"]["size_bytes"]
    ):
        flags |= ASSETS
    if "receipt.json" in names:
        flags |= RECEIPT
    if document is not None:
        flags |= READABLE | (PINNED if document["pinned_usec"] is not None else 0)
        flags |= SHED if document["core_removed"] else 0
    return flags


def _fill(values: dict[str, Any], document: record.Record) -> None:
    """Put what the record says into the row's values."""
    victim = document["victim"]
    values["time_usec"] = document["captured"]["time_usec"]
    for name in ("pid", "uid", "signal"):
        values[name] = 0 if victim[name] is None else min(victim[name] + 1, _NUMBER_MOST)
    for name in ("exe", "comm"):
        values[name] = victim[name] or ""
    values["fingerprint"] = document["fingerprint"] or ""
    recorded_bytes = document["core"]["disk_bytes"] if values["flags"] & CORE else 0
    recorded_bytes += document["assets"]["size_bytes"] if values["flags"] & ASSETS else 0
    recorded_bytes += document["snapshot"]["size_bytes"] if values["flags"] & SNAPSHOT else 0
    values["recorded_bytes"] = min(recorded_bytes, _NUMBER_MOST)


def changed_nsec(stage_fd: int, name: str) -> int:
    """Return when a name below a stage last changed; 0 where that cannot be seen."""
    try:
        return os.stat(name, dir_fd=stage_fd, follow_symlinks=False).st_ctime_ns
    except OSError:
        return 0
