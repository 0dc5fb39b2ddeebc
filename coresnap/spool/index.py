# SPDX-License-Identifier: Apache-2.0
"""`<dump.root>/index`: what was last seen of each dump, so that the next look reads only what has changed since.

It is a cache and nothing is decided by it alone: the directories are the truth. A row counts only as long as the dump's
directory has the very change time (st_ctime, which no program can set) that it had when its record was read, and a row
whose directory had changed less than _SETTLED_NSEC before the index was written does not count at all: it may have
changed again within the same tick of the clock. So an index that is missing, damaged, old or another spool's costs time,
never truth; so does a clock that was set back. An index that cannot be written costs the next look the same time again.

    one line of JSON       version, byte order, dumps in each of INDEXED, bytes of the strings, CRC-32 of all that follows
    COLUMNS                an array for each, of the array module's type; the dumps stage by stage, as they were listed
    order                  unsigned ints: the dumps' numbers, oldest first
    UUIDs                  36 characters and a line feed each
    strings                a JSON array; columns have numbers in it
"""

import json
import os
import stat
import sys
import zlib
from array import array
from typing import Any

from coresnap.ground import durable
from coresnap.ground.errors import BadInput
from coresnap.spool import stages
from coresnap.spool.stages import Spool

NAME = "index"
VERSION = 1
INDEXED = (stages.PENDING, stages.SENDING, stages.COMMITTED, stages.FAILED)
#: The stages in the order of an inventory. What is being captured just now no index has.
SEEN = (*INDEXED, stages.STAGING)
#: What is known of a dump; `changed_nsec` and `recorded_nsec` are the change times of its directory and of its record.
COLUMNS = {
    **dict.fromkeys(("changed_nsec", "recorded_nsec", "time_usec"), "Q"),
    **dict.fromkeys(("disk_bytes", "core_bytes", "recorded_bytes"), "Q"),
    **dict.fromkeys(("pid", "uid", "signal"), "Q"),  # one more than the number; 0 where it is not known
    "flags": "Q",
    **dict.fromkeys(("exe", "comm", "fingerprint", "problem"), "I"),  # numbers of strings; string 0 is empty
}
#: What `flags` is made of. KNOWN: its files can be seen; READABLE: its record can be read; the others: it has such a file,
#: PINNED: a person wants it kept; SHED: purge has removed its core.
CORE, SNAPSHOT, ASSETS, RECEIPT, KNOWN, READABLE, PINNED, SHED = (1 << bit for bit in range(8))
STRINGS = ("exe", "comm", "fingerprint", "problem")
#: No longer string is kept: a dump that has one is read each time.
STRING_MOST = 1024
_STRINGS_MOST_BYTES = 64 << 20
_LIMIT_BYTES = 512 << 20
_HEAD_BYTES = 512
_UUID_BYTES = 37
_SETTLED_NSEC = 2_000_000_000
_HEXADECIMAL = b"0123456789abcdef"


class Columns:
    """Rows of dumps, as columns; row n is the n-th of each. `uuids` and `stage_of` (a number in INDEXED) go along."""

    __slots__ = ("columns", "counts", "order", "strings", "uuids")

    def __init__(self) -> None:
        self.columns: dict[str, array[int]] = {name: array(kind) for name, kind in COLUMNS.items()}
        self.uuids: list[str] = []
        self.counts: list[int] = [0] * len(INDEXED)
        self.order: array[int] = array("I")
        self.strings: list[str] = [""]

    def __getitem__(self, name: str) -> "array[int]":
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.uuids)


def load(spool: Spool, expected: list[str] | None = None) -> Columns | None:
    """Return the index; None where there is none that can be relied on. `expected` are the UUIDs that it may well have."""
    try:
        fd = durable.open_regular(spool.root_fd, NAME)
    except (OSError, BadInput):
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid not in (0, spool.uid) or status.st_size > _LIMIT_BYTES or status.st_mode & stat.S_IWOTH:
            return None
        try:
            return _parse(file.readline(_HEAD_BYTES), memoryview(file.read(_LIMIT_BYTES)), expected or [])
        except (BadInput, OSError, ValueError, RecursionError):
            return None


def _parse(head: bytes, body: memoryview, expected: list[str]) -> Columns:
    """Read an index, every part of it. Raises BadInput, ValueError."""
    counts, strings_bytes, checksum = _head(head)
    total = sum(counts)
    sizes = [(name, array(kind).itemsize * total) for name, kind in COLUMNS.items()]
    order_bytes = array("I").itemsize * total
    if len(body) != sum(size for _name, size in sizes) + order_bytes + _UUID_BYTES * total + strings_bytes:
        raise BadInput(f"{NAME}: length")
    if zlib.crc32(body) != checksum:
        raise BadInput(f"{NAME}: checksum")
    found = Columns()
    found.counts = counts
    at = 0
    for name, size in sizes:
        found.columns[name].frombytes(body[at : at + size])
        at += size
    found.order.frombytes(body[at : at + order_bytes])
    at += order_bytes
    found.uuids = _uuids(bytes(body[at : at + _UUID_BYTES * total]), expected)
    found.strings = _strings(bytes(body[at + _UUID_BYTES * total :]))
    for name in STRINGS:
        if max(found[name], default=0) >= len(found.strings):
            raise BadInput(f"{NAME}: {name}: there is no such string")
    if max(found.order, default=-1) >= total:
        raise BadInput(f"{NAME}: order")
    return found


def _head(line: bytes) -> tuple[list[int], int, int]:
    head = json.loads(line)
    wanted = {"version": VERSION, "byteorder": sys.byteorder}
    if not isinstance(head, dict) or {name: head.get(name) for name in wanted} != wanted:
        raise BadInput(f"{NAME}: version {VERSION}, {sys.byteorder}-endian expected")
    counts = head.get("dumps")
    if not isinstance(counts, list) or len(counts) != len(INDEXED):
        raise BadInput(f"{NAME}: dumps")
    *counts, strings_bytes, checksum = (
        _number(value) for value in [*counts, head.get("strings_bytes"), head.get("crc32")]
    )
    return counts, strings_bytes, checksum


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise BadInput(f"{NAME}: a number is out of range")
    return value


def _uuids(data: bytes, expected: list[str]) -> list[str]:
    """Return the UUIDs, each of the shape that stages.is_uuid demands."""
    total = len(data) // _UUID_BYTES
    hyphens = b"-" * total
    right = data[36::_UUID_BYTES] == b"\n" * total and all(data[at::_UUID_BYTES] == hyphens for at in (8, 13, 18, 23))
    if not right or len(data.translate(None, _HEXADECIMAL)) != 5 * total:
        raise BadInput(f"{NAME}: UUIDs")
    if total == len(expected) and data == os.fsencode("\n".join([*expected, ""])):
        return expected  # no need to make them anew
    return data.decode("ascii").split("\n")[:-1]


def _strings(data: bytes) -> list[str]:
    strings: Any = json.loads(data)
    if not isinstance(strings, list) or not strings or strings[0] != "" or set(map(type, strings)) != {str}:
        raise BadInput(f"{NAME}: strings")
    return strings


def settled_nsec(since_nsec: int) -> int:
    """Return up to when a change counts as the last, for a look that began at `since_nsec`."""
    return since_nsec - _SETTLED_NSEC


def save(spool: Spool, found: Columns, since_nsec: int) -> bool:
    """Write what was found by a look that began at `since_nsec`; say whether that could be done. A dump is not at stake."""
    changed = array("Q", found["changed_nsec"])
    before_nsec = settled_nsec(since_nsec)
    if max(changed, default=0) > before_nsec:
        changed = array("Q", [nsec if nsec <= before_nsec else 0 for nsec in changed])
    _compact(found)
    strings = json.dumps(found.strings, separators=(",", ":")).encode()
    if len(strings) > _STRINGS_MOST_BYTES:
        return False
    parts = [changed if name == "changed_nsec" else found[name] for name in COLUMNS]
    uuids = "".join([f"{uuid}\n" for uuid in found.uuids]).encode("ascii")
    body = b"".join([*parts, found.order, uuids, strings])
    head = {
        "version": VERSION,
        "byteorder": sys.byteorder,
        "dumps": found.counts[: len(INDEXED)],
        "strings_bytes": len(strings),
        "crc32": zlib.crc32(body),
    }
    line = json.dumps(head, separators=(",", ":")).encode() + b"\n"
    if len(line) > _HEAD_BYTES or len(body) > _LIMIT_BYTES:
        return False
    owner = (spool.uid, spool.gid) if os.geteuid() == 0 else (-1, -1)
    try:
        return durable.replace_cache(spool.root_fd, NAME, (line, body), 0o600, *owner)
    except OSError:
        return False


def _compact(found: Columns) -> None:
    """Leave out the strings of dumps that have gone, once they are the most."""
    used = {0}.union(*(found[name] for name in STRINGS))
    if len(found.strings) <= 2 * len(used):
        return
    numbers = {old: new for new, old in enumerate(sorted(used))}
    found.strings = [found.strings[old] for old in sorted(used)]
    for name in STRINGS:
        found.columns[name] = array(COLUMNS[name], map(numbers.__getitem__, found[name]))
