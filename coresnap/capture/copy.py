# SPDX-License-Identifier: Apache-2.0
"""The core's one pass from the kernel to the disk: what is zero becomes a hole, what is not is written once.

Imported while a crashed process is held; this is most of the time that it is held for.
"""

import errno
import fcntl
import os

from coresnap.ground import durable
from coresnap.ground.elf import looks_like_core
from coresnap.spool.quota import QuotaExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from coresnap.spool.quota import Reservation

BUFFER_BYTES = 1 << 20
PAGE_BYTES = 4096
_F_SETPIPE_SZ = 1031
_ZERO_BUFFER = bytes(BUFFER_BYTES)
_ZERO_PAGE = bytes(PAGE_BYTES)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Copied:
    """How the copy ended: `reason` is empty where the source came to its end, else of the ledger's or of record's."""

    __slots__ = ("detail", "reason", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self.reason = ""
        self.detail = ""

    def stop(self, reason: str, detail: str) -> None:
        """End the copy before the source's end."""
        self.reason = reason
        self.detail = detail


def copy(source_fd: int, core_fd: int, reservation: "Reservation", spare_bytes: int = 0) -> Copied:
    """Copy the core from `source_fd`, a pipe, socket or file, to its end or to the first error. Raises nothing of it.

    Nothing is written that is not reserved; `spare_bytes` of the reservation are left for what comes after the core.
    """
    widen(source_fd)
    copied = Copied()
    buffer = bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    try:
        while filled := _fill(source_fd, view, copied):
            if not copied.size_bytes:
                reason = looks_like_core(bytes(view[: min(filled, PAGE_BYTES)]))
                if reason:
                    copied.size_bytes = filled
                    copied.stop("not-a-core", reason)
                    return copied
            reservation.ensure(filled + spare_bytes)
            written_bytes = _put(core_fd, buffer, view, filled, copied.size_bytes)
            copied.size_bytes += filled
            reservation.spend(written_bytes)
            if filled < BUFFER_BYTES:
                break
    except QuotaExceeded as error:
        copied.stop("quota", error.line())
    except OSError as error:
        copied.stop("disk-full" if error.errno in _FULL else "write-error", f"write: {error.strerror}")
    return copied


def widen(fd: int) -> None:
    """Let a pipe take as much as one read does; another source, or a limit of the system, leaves it as it is."""
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, BUFFER_BYTES)
    except OSError:
        pass


def _fill(fd: int, view: memoryview, copied: Copied) -> int:
    """Fill the buffer as far as the source goes; return the bytes in it. A failing source ends where it fails."""
    filled = 0
    while filled < BUFFER_BYTES:
        try:
            count = os.readv(fd, [view[filled:]])
        except InterruptedError:
            continue
        except OSError as error:
            copied.stop("cut-short", f"read: {error.strerror}")
            return filled
        if not count:
            break
        filled += count
    return filled


def _put(fd: int, buffer: bytearray, view: memoryview, filled: int, offset: int) -> int:
    """Write the runs of pages that are not zero; return how many bytes that was."""
    zero = buffer.startswith
    if filled == BUFFER_BYTES and zero(_ZERO_BUFFER):
        return 0
    written_bytes = 0
    start = -1
    for at in range(0, filled, PAGE_BYTES):
        if zero(_ZERO_PAGE, at, filled) or (at + PAGE_BYTES > filled and not any(view[at:filled])):
            if start >= 0:
                durable.pwrite(fd, view[start:at], offset + start)
                written_bytes += at - start
                start = -1
        elif start < 0:
            start = at
    if start >= 0:
        durable.pwrite(fd, view[start:filled], offset + start)
        written_bytes += filled - start
    return written_bytes
