# SPDX-License-Identifier: Apache-2.0
"""Disk space, reserved across concurrent captures before their first byte.

`<dump.root>/reservations` is a table of pairs of little-endian u64. The first of entry 0 counts the bytes that the spool's
dumps hold on disk; each further entry is a live capture's: what of its reservation is not written yet, and what it has
written, which is in the file system but not yet in that count. A capture owns an entry as long as
it holds the record lock of the byte with its number, so a reservation ends with its capture, however that ends. Whoever
takes or raises a reservation does so under the lock of the byte behind the table; a capture lowers its own entry
freely, and only after the bytes are in the file system: between the two they count twice, never not at all. That lock each
capture waits for a few seconds in all: who has it for longer has been stopped, and no process is held for that. Without it two
captures may find the same room, and a count be lost until purge counts anew; no entry is ever two captures'.

The locks are those of open file descriptions, fcntl(2): one process may have several captures that are not finished yet.

Imported while a crashed process is held.
"""

import errno
import fcntl
import os
import struct
import time

from coresnap.ground import durable
from coresnap.ground.errors import TryLater

TYPE_CHECKING = False
if TYPE_CHECKING:
    from coresnap.spool.stages import Spool

NAME = "reservations"
ENTRIES = 4096
STEP_LEAST_BYTES, STEP_MOST_BYTES = 1 << 20, 64 << 20
_MUTEX = ENTRIES
_ENTRY = struct.Struct("<QQ")
_TABLE_BYTES = ENTRIES * _ENTRY.size
_LOCK_SECONDS = 3.0
#: struct flock: type, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi4x")


class QuotaExceeded(TryLater):
    """There is no room for this dump within dump.quota or dump.ceiling."""


class Reservation:
    """The room that one capture has left. Close it when its bytes are on disk.

    It is `exact` unless the table's lock was not to be had, or the table could not be written.
    """

    __slots__ = (
        "_ceiling_bytes",
        "_entry",
        "_fd",
        "_patience_seconds",
        "_percent",
        "_root_fd",
        "exact",
        "left_bytes",
        "written_bytes",
    )

    def __init__(self, spool: "Spool", quota_percent: int, ceiling_bytes: int, need_bytes: int) -> None:
        """Reserve `need_bytes`. Raises QuotaExceeded."""
        self._root_fd = spool.root_fd
        self._percent = quota_percent
        self._ceiling_bytes = ceiling_bytes
        self._entry = 0
        self._patience_seconds = _LOCK_SECONDS
        self.exact = True
        self.left_bytes = self.written_bytes = 0
        self._fd = open_table(spool)
        try:
            self.grow(need_bytes)
        except BaseException:
            os.close(self._fd)
            raise

    def grow(self, more_bytes: int) -> None:
        """Raise the reservation. Raises QuotaExceeded, or OSError where the disk is full, and then nothing is changed."""
        self._lock_table()
        try:
            table = read_table(self._fd)
            left_bytes, written_bytes = self._outstanding(table)
            self._check(table[0][0] + written_bytes, left_bytes + more_bytes)
            self._put(self.left_bytes + more_bytes)
        finally:
            _set_lock(self._fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _MUTEX)

    def _lock_table(self) -> None:
        began = time.monotonic()
        if not _lock_table(self._fd, self._patience_seconds):
            self.exact = False
        self._patience_seconds = max(0.0, self._patience_seconds - (time.monotonic() - began))

    def _outstanding(self, table: "list[tuple[int, int]]") -> "tuple[int, int]":
        """Sum what live captures have left and have written, clear what dead ones left behind, and find an entry."""
        left_bytes = written_bytes = 0
        for number in range(1, ENTRIES):
            if number >= len(table) and self._entry:
                break
            used = number < len(table) and any(table[number])
            if number != self._entry and (used or not self._entry) and _try_lock(self._fd, number):
                if used:
                    durable.pwrite(self._fd, _ENTRY.pack(0, 0), number * _ENTRY.size)
                if self._entry:
                    _set_lock(self._fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, number)
                else:
                    self._entry = number
            elif used:
                left_bytes += table[number][0]
                written_bytes += table[number][1]
        if not self._entry:
            raise QuotaExceeded(f"{ENTRIES - 1} captures at once")
        return left_bytes, written_bytes

    def _check(self, used_bytes: int, wanted_bytes: int) -> None:
        check_free(os.fstatvfs(self._root_fd), self._percent, wanted_bytes)
        if self._ceiling_bytes and used_bytes + wanted_bytes > self._ceiling_bytes:
            raise QuotaExceeded(
                f"dump.ceiling: the spool holds {used_bytes} bytes, {wanted_bytes} are reserved or asked for,"
                f" {self._ceiling_bytes} is the ceiling",
                hint="remove dumps, or raise dump.ceiling",
            )

    def ensure(self, bytes_: int) -> None:
        """Have at least so many bytes reserved before they are written. Raises QuotaExceeded.

        A reservation doubles, up to a step: small captures, of which there may be hundreds at once, keep no room from others.
        """
        short_bytes = bytes_ - self.left_bytes
        if short_bytes > 0:
            step_bytes = min(max(self.written_bytes, STEP_LEAST_BYTES), STEP_MOST_BYTES)
            try:
                self.grow(short_bytes + step_bytes)
            except (QuotaExceeded, OSError):
                self.grow(short_bytes)

    def trim(self, bytes_: int) -> None:
        """Give back what is reserved beyond so many bytes. Raises nothing: what is too much ends with the capture."""
        if self.left_bytes > bytes_:
            try:
                self._put(bytes_)
            except OSError:
                self.exact = False

    def spend(self, written_bytes: int) -> None:
        """Take what has been written, and was ensured before, off the reservation."""
        self.written_bytes += written_bytes
        self._put(max(0, self.left_bytes - written_bytes))

    def _put(self, left_bytes: int) -> None:
        durable.pwrite(self._fd, _ENTRY.pack(left_bytes, self.written_bytes), self._entry * _ENTRY.size)
        self.left_bytes = left_bytes

    def close(self, kept_bytes: int = 0) -> None:
        """End the reservation; `kept_bytes` on disk now belong to the spool. Raises nothing: a core is worth more than a count."""
        try:
            if kept_bytes:
                self._lock_table()
                _add_used(self._fd, kept_bytes)
            self.written_bytes = 0
            self._put(0)
        except OSError:
            self.exact = False
        try:
            _set_lock(self._fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, self._entry)  # a child may have the descriptor, too
        except OSError:
            self.exact = False
        os.close(self._fd)


def _set_lock(fd: int, command: int, kind: int, number: int) -> None:
    """Lock one byte of the table, or unlock it. Raises OSError."""
    fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, number, 1, 0))


def _try_lock(fd: int, number: int) -> bool:
    try:
        _set_lock(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, number)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _lock_table(fd: int, seconds: float) -> bool:
    """Wait for so long until nobody else counts; say whether that came to be."""
    return durable.within(seconds, lambda: _try_lock(fd, _MUTEX))


def check_free(disk: os.statvfs_result, percent: int, wanted_bytes: int) -> None:
    """Raise QuotaExceeded, or OSError where the disk is full, if so many bytes more would leave less free than they may."""
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < wanted_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    keep_bytes = disk.f_blocks * disk.f_frsize * percent // 100
    if free_bytes - wanted_bytes < keep_bytes:
        raise QuotaExceeded(
            f"dump.quota: {free_bytes} bytes are free, {wanted_bytes} reserved or asked for,"
            f" {keep_bytes} ({percent}%) have to stay free",
            hint="free some space, or lower dump.quota",
        )


def open_table(spool: "Spool") -> int:
    """Return a descriptor of the spool's table of reservations, made where it is missing."""
    fd = os.open(NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=spool.root_fd)
    if os.fstat(fd).st_size < _TABLE_BYTES:
        os.posix_fallocate(fd, 0, _TABLE_BYTES)
        if os.fstat(fd).st_uid != spool.uid:
            os.fchown(fd, spool.uid, spool.gid)
    return fd


def read_table(fd: int) -> "list[tuple[int, int]]":
    """Return the table's entries, each as it is described above, up to the last that is not zero: a process is held."""
    data = os.pread(fd, _TABLE_BYTES, 0).rstrip(b"\0")
    entries = max(1, -(-len(data) // _ENTRY.size))
    return list(_ENTRY.iter_unpack(data.ljust(entries * _ENTRY.size, b"\0")))


def count(spool: "Spool", more_bytes: int) -> None:
    """Add to the count of bytes that the spool holds; a negative number takes off. Raises OSError."""
    fd = open_table(spool)
    try:
        add_used(fd, more_bytes)
    finally:
        os.close(fd)


def has_room(fd: int, quota_percent: int, more_bytes: int) -> bool:
    """Say whether so many bytes more would leave free what has to stay so, on the file system of the descriptor."""
    disk = os.fstatvfs(fd)
    return disk.f_bavail * disk.f_frsize - more_bytes >= disk.f_blocks * disk.f_frsize * quota_percent // 100


def add_used(fd: int, more_bytes: int) -> None:
    """Add to the count of bytes that the spool holds; a negative number takes off."""
    _lock_table(fd, _LOCK_SECONDS)
    _add_used(fd, more_bytes)


def _add_used(fd: int, more_bytes: int) -> None:
    """Do so, and unlock the table."""
    try:
        used_bytes = _ENTRY.unpack(os.pread(fd, _ENTRY.size, 0))[0]
        durable.pwrite(fd, _ENTRY.pack(max(0, used_bytes + more_bytes), 0), 0)
    finally:
        _set_lock(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _MUTEX)
