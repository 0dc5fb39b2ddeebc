# SPDX-License-Identifier: Apache-2.0
"""The ledger: one line for every crash whose core was not kept, and why.

`<dump.root>/ledger` is a ring of lines of fixed length, written in place: its space is taken once, so that a full disk
can still be put on record, and it never grows. Line 0 says how many lines have ever been written, and how many for each
reason; line 1 + n % LINES is entry n, a JSON object padded with blanks. It can be read with any pager.

What the settings do not want (reasons of UNWANTED) has a ring of its own, `ledger.unwanted`: a program that crashes again and
again does not push out what was lost. There the crashes that a limit left out carry how many those were by then, and are
synced at the first, second, fourth, eighth and so on only.

Where the spool cannot be opened the same file in FALLBACK takes the entry: the capture service's runtime directory, which
archive makes where that service has not been started yet.
"""

import fcntl
import json
import os
import time

from coresnap.ground import durable
from coresnap.ground.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Entry = dict[str, Any]

NAME = "ledger"
UNWANTED_NAME = "ledger.unwanted"
FALLBACK = "/run/coresnap-capture"
LINE_BYTES = 1024
LINES = 2048

#: Why a core was not kept; each reason with what it means to the person who asks.
REASONS = {
    "quota": "the disk has less free space than dump.quota demands, or the spool has reached dump.ceiling",
    "disk-full": "the file system was full before the core's notes were written",
    "write-error": "the file system gave an error before the core's notes were written",
    "rlimit": "RLIMIT_CORE of the process was 0, and archive.rlimit_core has that honoured",
    "rate": "as many as its limit allows had been kept within the time",
    "excluded": "archive.include and archive.exclude leave it out",
    "too-large": "the process had more in memory than archive.core_max_bytes",
    "empty": "the kernel, or who called archive, sent no bytes",
    "not-a-core": "what came was not an ELF core",
    "cut-short": "the core ended before its notes were complete",
    "interrupted": "archive was killed before the core's notes were complete",
    "skipped": "the kernel did not hand it over; the detail is what it said",
    "no-spool": "dump.root was missing or not mounted",
    "purged": "purge has removed it, before it could be delivered: it had been given up on",
    "internal": "archive failed; the detail says how",
}
#: What the settings did not want.
UNWANTED = ("rate", "excluded", "too-large", "rlimit", "purged")
_KEPT = ("time_usec", "reason", "detail", "uuid", "root", "pid", "uid", "signal", "comm", "exe", "count", "until_usec")


def is_told(count: int) -> bool:
    """Say whether this one of those that a limit left out is told of by itself: the first, second, fourth, eighth and so on."""
    return count & (count - 1) == 0


def append(dir_fd: int, reason: str, detail: str, uuid: str = "", victim: "Entry | None" = None) -> "Entry":
    """Put a crash that was not kept on record, durably; return the entry. `reason` is one of REASONS. Raises OSError.

    `count` and `until_usec`, among what is known of the victim, are of the limit that left it out.
    """
    if reason not in REASONS:
        raise ValueError(reason)
    known = {key: value for key, value in (victim or {}).items() if key in _KEPT and value is not None}
    entry = {"time_usec": time.time_ns() // 1000, "reason": reason, "detail": detail, "uuid": uuid, **known}
    fd = _open(dir_fd, UNWANTED_NAME if reason in UNWANTED else NAME)
    try:
        number, totals = _head(fd)
        durable.pwrite(fd, _line(entry, number), (1 + number % LINES) * LINE_BYTES)
        totals[reason] = totals.get(reason, 0) + 1
        head = " ".join([f"{number + 1}", *(f"{name}={total}" for name, total in totals.items())])
        durable.pwrite(fd, head.encode().ljust(LINE_BYTES - 1) + b"\n", 0)
        if is_told(known.get("count", 0)):
            durable.sync(fd)
    finally:
        os.close(fd)
    return entry


def _open(dir_fd: int, name: str) -> int:
    """Open and lock the ledger. A new one is its directory's owner's, and takes its space on the disk for good: blank lines."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    fcntl.flock(fd, fcntl.LOCK_EX)
    if os.fstat(fd).st_size < (1 + LINES) * LINE_BYTES:
        if os.geteuid() == 0:
            owner = os.fstat(dir_fd)
            os.fchown(fd, owner.st_uid, owner.st_gid)
        durable.pwrite(fd, (b" " * (LINE_BYTES - 1) + b"\n") * (1 + LINES), 0)
        durable.sync(fd)
    return fd


def prepare(dir_fd: int, uid: int = -1, gid: int = -1) -> None:
    """Make the ledger, or leave the one that is there."""
    for name in (NAME, UNWANTED_NAME):
        fd = _open(dir_fd, name)
        os.fchown(fd, uid, gid)
        os.close(fd)


def _head(fd: int) -> "tuple[int, dict[str, int]]":
    """Return how many entries have been written, and of each reason; a crash between an entry and this line leaves it behind."""
    first, *rest = os.pread(fd, LINE_BYTES, 0).decode("ascii", "replace").split() or ["0"]
    number = int(first) if first.isdigit() and len(first) < 20 else 0
    totals = {}
    for word in rest:
        reason, _equals, total = word.partition("=")
        if reason in REASONS and total.isdigit() and len(total) < 20:
            totals[reason] = int(total)
    entry = _parse(os.pread(fd, LINE_BYTES, (1 + number % LINES) * LINE_BYTES))
    if entry and entry["n"] == number:
        if entry["reason"] in REASONS:
            totals[entry["reason"]] = totals.get(entry["reason"], 0) + 1
        number += 1
    return number, totals


def totals(dir_fd: int) -> "dict[str, int]":
    """Return how many cores have ever been put on record by each reason, those included that the ring has lost since."""
    found = dict.fromkeys(REASONS, 0)
    for name in (NAME, UNWANTED_NAME):
        try:
            fd = durable.open_regular(dir_fd, name)
        except (FileNotFoundError, BadInput):
            continue
        try:
            for reason, total in _head(fd)[1].items():
                found[reason] += total
        finally:
            os.close(fd)
    return found


def _line(entry: "Entry", number: int) -> bytes:
    """Return the entry as a line; its longest text gives way until it fits."""
    entry = {"n": number, **entry}
    while len(data := json.dumps(entry, separators=(",", ":")).encode()) > LINE_BYTES - 1:
        longest = max(
            (key for key in entry if isinstance(entry[key], str)), key=lambda key: len(json.dumps(entry[key]))
        )
        entry[longest] = entry[longest][: len(entry[longest]) * 3 // 4]
    return data.ljust(LINE_BYTES - 1) + b"\n"


def _parse(line: bytes) -> "Entry | None":
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("n"), int):
        return None
    return entry if isinstance(entry.get("time_usec"), int) and isinstance(entry.get("reason"), str) else None


def has(dir_fd: int, uuid: str) -> bool:
    """Say whether a crash is on record that goes by this UUID; a missing ledger has none."""
    entry = f'"uuid":"{uuid}"'.encode()  # in what a process has named such quotes are escaped
    return any(entry in _content(dir_fd, name) for name in (NAME, UNWANTED_NAME))


def read(dir_fd: int) -> "Iterator[Entry]":
    """Yield the entries, oldest first; damaged lines are passed over. A missing ledger has none."""
    entries = [entry for name in (NAME, UNWANTED_NAME) for entry in _read(dir_fd, name)]
    yield from sorted(entries, key=lambda entry: entry["time_usec"])


def _read(dir_fd: int, name: str) -> "list[Entry]":
    data = _content(dir_fd, name)
    lines = (data[at : at + LINE_BYTES] for at in range(LINE_BYTES, len(data), LINE_BYTES))
    return sorted(filter(None, map(_parse, lines)), key=lambda entry: entry["n"])


def _content(dir_fd: int, name: str) -> bytes:
    try:
        return durable.read(dir_fd, name, (1 + LINES) * LINE_BYTES)
    except (FileNotFoundError, BadInput):
        return b""
