# SPDX-License-Identifier: Apache-2.0
"""The core's one pass from the kernel to the disk: what is zero becomes a hole, what is not is written once.

The memory of a large process is read from the process itself, as coresnap.capture.memory describes.

Imported while a crashed process is held; this is most of the time that it is held for.
"""

import errno
import fcntl
import os

from coresnap.ground import durable, elf
from coresnap.ground.errors import BadInput
from coresnap.spool.quota import QuotaExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from coresnap.capture.memory import Memory
    from coresnap.spool.quota import Reservation

BUFFER_BYTES = 1 << 20
PAGE_BYTES = 4096
_F_SETPIPE_SZ = 1031
_ZERO_BUFFER = bytes(BUFFER_BYTES)
_ZERO_PAGE = bytes(PAGE_BYTES)
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: From how many bytes on what is left of a core is worth being read from the process's memory. More than a pipe holds, so
#: that the kernel is in the midst of its dump as long as nobody reads.
_WORTH_BYTES = 8 << 20
#: Headers and notes that have not come by then do not come.
_HEAD_MAX_BYTES = 64 << 20
#: Where the addresses of the kernel begin, of which the page of the old vsyscalls may be in a core.
_KERNEL_ADDRESS = 1 << 63


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


class _Copying:
    """One copy under way: its buffer, and where what is in it goes."""

    def __init__(self, core_fd: int, reservation: "Reservation", spare_bytes: int) -> None:
        self.core_fd = core_fd
        self.reservation = reservation
        self.spare_bytes = spare_bytes
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.copied = Copied()

    def from_source(self, source_fd: int, proc: "str | None") -> None:
        """Copy what the source has, to its end, or until the process's memory has told the rest."""
        copied = self.copied
        while filled := _fill(source_fd, self.view, copied):
            if not copied.size_bytes:
                reason = elf.looks_like_core(bytes(self.view[: min(filled, PAGE_BYTES)]))
                if reason:
                    copied.size_bytes = filled
                    copied.stop("not-a-core", reason)
                    return
            self.put(filled, copied.size_bytes)
            copied.size_bytes += filled
            if filled < BUFFER_BYTES:
                return
            if proc is not None:
                segments = _memory_left(self.core_fd, copied.size_bytes)
                if segments is not None:
                    if segments and self.from_memory(proc, segments):
                        return
                    proc = None

    def put(self, filled: int, offset: int) -> None:
        """Write what the buffer has been filled with."""
        self.reservation.ensure(filled + self.spare_bytes)
        self.reservation.spend(_put(self.core_fd, self.buffer, self.view, filled, offset))

    def from_memory(self, proc: str, segments: "Sequence[elf.Segment]") -> bool:
        """Copy the rest from the process; say no where its memory is not to be had, and what the kernel sends is to be read."""
        from coresnap.capture.memory import Memory, Unreadable  # few crashes need it

        try:
            memory = Memory(proc)
        except Unreadable:
            return False
        copied, start_bytes = self.copied, self.copied.size_bytes
        with memory:
            try:
                if not memory.same(*self._last_page(segments[0], start_bytes)):
                    return False
                self._take_segments(memory, segments, start_bytes)
                killed = not memory.is_whole()
            except Unreadable:
                killed = not memory.is_whole()
                if not killed:
                    copied.size_bytes = start_bytes
                    return False
        if killed:
            copied.stop("cut-short", "the process was killed while its memory was read")
        return True

    def _take_segments(self, memory: "Memory", segments: "Sequence[elf.Segment]", start_bytes: int) -> None:
        """Copy what the kernel has not sent of the segments. Raises Unreadable."""
        files = elf.file_mappings(lambda count, offset: os.pread(self.core_fd, count, offset))
        # Some kernels keep from us what the process itself may not read: that is found out before anything else.
        for segment in segments:
            if not segment.flags & elf.PF_R:
                self._take_segment(memory, segment, start_bytes, files)
        for segment in segments:
            if segment.flags & elf.PF_R:
                self._take_segment(memory, segment, start_bytes, files)
            self.copied.size_bytes = segment.offset + segment.filesz

    def _take_segment(self, memory: "Memory", segment: elf.Segment, start_bytes: int, files: "set[int] | None") -> None:
        """Copy what the kernel has not sent of a segment. Raises Unreadable."""
        at, end = max(start_bytes, segment.offset), segment.offset + segment.filesz
        anonymous = files is not None and segment.vaddr not in files
        readable = bool(segment.flags & elf.PF_R)
        if segment.vaddr >= _KERNEL_ADDRESS:
            return  # a page that can only be executed: the kernel writes zeros for it
        while at < end:
            count = min(BUFFER_BYTES, end - at)
            address = segment.vaddr + at - segment.offset
            if memory.fill(self.view[:count], address, anonymous=anonymous, readable=readable):
                self.put(count, at)
            at += count
            if readable:
                self.copied.size_bytes = at

    def _last_page(self, segment: elf.Segment, at: int) -> "tuple[bytes, int]":
        """Return the last bytes of this segment that the kernel has sent, up to a page, and their address."""
        count = min(PAGE_BYTES, at - segment.offset)
        return os.pread(self.core_fd, count, at - count), segment.vaddr + at - count - segment.offset


def copy(
    source_fd: int, core_fd: int, reservation: "Reservation", spare_bytes: int = 0, proc: "str | None" = None
) -> Copied:
    """Copy the core from `source_fd`, a pipe, socket or file, to its end or to the first error. Raises nothing of it.

    Nothing is written that is not reserved; `spare_bytes` of the reservation are left for what comes after the core. `proc`
    is the directory in /proc of the process that is being dumped, where it stays until the source is closed.
    """
    widen(source_fd)
    copying = _Copying(core_fd, reservation, spare_bytes)
    copied = copying.copied
    try:
        copying.from_source(source_fd, proc)
    except QuotaExceeded as error:
        copied.stop("quota", error.line())
    except OSError as error:
        copied.stop("disk-full" if error.errno in _FULL else "write-error", f"write: {error.strerror}")
    return copied


def _memory_left(core_fd: int, size_bytes: int) -> "list[elf.Segment] | None":
    """Return the segments that have not come yet, or not whole, in order; none where they are not worth it, or not in order.

    None stands for headers or notes that have not come yet.
    """

    def pread(count: int, offset: int) -> bytes:
        return os.pread(core_fd, max(0, min(count, size_bytes - offset)), offset)

    try:
        header = elf.read_core(pread)
        if header.notes_end > size_bytes:
            raise BadInput("the notes have not come yet")
        left = [
            segment
            for segment in elf.segments(pread, header)
            if segment.type == elf.PT_LOAD and segment.filesz and segment.offset + segment.filesz > size_bytes
        ]
    except BadInput:
        return None if size_bytes < _HEAD_MAX_BYTES else []
    # Of more segments than fit in the header, the kernel writes the count behind them all.
    if header.segments_count >= elf.PN_XNUM or header.expected_bytes - size_bytes < _WORTH_BYTES:
        return []
    at = size_bytes
    for number, segment in enumerate(left):
        if (segment.offset != at and (number or segment.offset > at)) or segment.vaddr % PAGE_BYTES:
            return []
        if segment.vaddr >= _KERNEL_ADDRESS and segment.flags & elf.PF_R:
            return []
        at = segment.offset + segment.filesz
    return left


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
