# SPDX-License-Identifier: Apache-2.0
"""What the workers of the capture service do at the moment, where all of them can see it, and the next service, too.

The board is a file: a service that is killed with all its workers leaves there whose crashes they had. The next one puts it
aside, and unlinks it once it has settled what stands there. Layout: _HEAD (a mark, the number of places), a byte of state for
each place, CRASHES times _CRASH for each place.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from coresnap.capture.victim import Victim
from coresnap.spool.stages import is_uuid, new_uuid

#: A place's worker: there is none, it waits, it has crashes; LEFT where it has died, and left some.
FREE, WAITS, CAPTURES, LEFT = b"\0", b"w", b"c", b"l"
#: A worker has so many crashes at most: those whose dumps are still to be finished, too.
CRASHES = 34

_NAME = "board"
_HEAD = struct.Struct("=24sQ")
_MARK = b"coresnap-board 4"
#: UUID; whether archive has it still; whether there is one; core_bytes; pid, uid, gid, signal (-1: not known); comm.
_CRASH = struct.Struct("=36s??qqqqq16s")
_CORE_BYTES = struct.Struct("=q")
_PEER = struct.Struct("=qqq")
#: Where these are. Archive looks at the first two, too (coresnap.capture.handover), also after a crash has been cleared.
_IS_OFFERED, _IS_THERE, _CORE_BYTES_AT, _PEER_AT = 36, 37, 38, 46
_UNKNOWN = (-1, -1, -1, -1, -1, b"")
_PLACES_MAX = 1 << 12


@dataclass(frozen=True)
class Taken:
    """A crash that a worker has, kept or put on record under this UUID once that is done.

    `is_offered`: archive has not been told yet that it was taken, and captures it by itself where the worker is killed.
    `core_bytes`: its core's length, -1 until its last byte has been written.
    """

    victim: Victim
    uuid: str
    is_offered: bool = False
    core_bytes: int = -1


class Crash:
    """Where a crash stands on a board, from when it is known whose it is until it is kept or on record."""

    __slots__ = ("_bytes", "at", "board_fd")

    def __init__(self, bytes_: mmap.mmap, at: int, board_fd: int) -> None:
        """`at` is its offset, in bytes, in the board's file."""
        self._bytes = bytes_
        self.at = at
        self.board_fd = board_fd

    def prepare(self, uuid: str) -> None:
        """Write down all that is known before there is a crash, so that `claim` is fast. It does not stand here yet.

        An archive that looks here finds that what it offers has not been taken.
        """
        self._bytes[self.at + _IS_OFFERED] = True
        self._bytes[self.at : self.at + _CRASH.size] = _CRASH.pack(uuid.encode(), True, False, *_UNKNOWN)

    def claim(self, pid: int, uid: int, gid: int) -> None:
        """Say that there is one that nobody else has, and whose, after `prepare`."""
        self._bytes[self.at + _IS_OFFERED] = False
        _PEER.pack_into(self._bytes, self.at + _PEER_AT, pid, uid, gid)
        self._bytes[self.at + _IS_THERE] = 1

    def put(self, victim: Victim, uuid: str, *, is_offered: bool = False) -> None:
        """Say whose crash it is; see Taken. It stands here when all of that does, or if it did before."""
        self._bytes[self.at + _IS_OFFERED] = is_offered  # before the UUID by which archive looks for it
        numbers = [-1 if number is None else number for number in (victim.pid, victim.uid, victim.gid, victim.signal)]
        comm = victim.comm.encode("utf-8", "replace")[:16] if victim.comm else b""
        data = _CRASH.pack(uuid.encode(), is_offered, not self.is_free(), -1, *numbers, comm)
        self._bytes[self.at : self.at + _CRASH.size] = data
        self._bytes[self.at + _IS_THERE] = 1

    def is_free(self) -> bool:
        """Say whether none stands here."""
        return not self._bytes[self.at + _IS_THERE]

    def take(self, is_taken: bool) -> None:
        """Say that archive is about to be told that the crash has been taken, or that it could not be told."""
        self._bytes[self.at + _IS_OFFERED] = not is_taken

    def copied(self, core_bytes: int) -> None:
        """Say that its core has been written to its last byte."""
        _CORE_BYTES.pack_into(self._bytes, self.at + _CORE_BYTES_AT, core_bytes)

    def clear(self) -> None:
        """Forget it."""
        self._bytes[self.at + _IS_THERE] = 0

    def taken(self) -> Taken:
        """Return what stands here."""
        uuid, is_offered, _there, core_bytes, *numbers, comm = _CRASH.unpack_from(self._bytes, self.at)
        victim = Victim()
        victim.pid, victim.uid, victim.gid, victim.signal = (None if number < 0 else number for number in numbers)
        victim.comm = comm.rstrip(b"\0").decode("utf-8", "replace") or None
        return Taken(victim, uuid.rstrip(b"\0").decode("ascii", "replace"), is_offered, core_bytes)


class Board:
    """What each worker does, a byte each, and whose crashes it has, in memory that all of them share."""

    def __init__(self, size: int, fd: int) -> None:
        """`fd` is of a file of that many places. Raises OSError."""
        self._fd = fd
        self._bytes = mmap.mmap(fd, _length(size))
        self._crashes_at = _HEAD.size + size
        self._places = range(size)
        self._next = 0

    @classmethod
    def new(cls, size: int, path: str = "") -> Board:
        """Return an empty one; `path` is where it outlives the service, without it nothing does. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600) if path else os.memfd_create(_NAME)
        try:
            os.posix_fallocate(fd, 0, _length(size))  # a hole that finds no room in /run later on would be a SIGBUS
            os.pwrite(fd, _HEAD.pack(_MARK, size), 0)
            return cls(size, fd)
        except OSError:
            os.close(fd)
            raise

    @classmethod
    def former(cls, path: str) -> Board | None:
        """Return the one that another service has left; None where it is not of this layout. Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            head = os.pread(fd, _HEAD.size, 0).ljust(_HEAD.size, b"\0")
            mark, size = _HEAD.unpack(head)
            if mark.rstrip(b"\0") == _MARK and size <= _PLACES_MAX and os.fstat(fd).st_size == _length(size):
                return cls(size, os.dup(fd))
            return None
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close it in this process."""
        self._bytes.close()
        os.close(self._fd)

    def count(self, state: bytes) -> int:
        """Return how many places are in that state."""
        return self._bytes[_HEAD.size : self._crashes_at].count(state)

    def place(self) -> int:
        """Return a place that is free, not the one before as long as there are others. Raises ValueError where none is.

        Archive may still have to look at what was there (coresnap.capture.handover).
        """
        states = self._bytes[_HEAD.size : self._crashes_at]
        self._next = states.index(FREE, self._next) if FREE in states[self._next :] else states.index(FREE)
        place, self._next = self._next, self._next + 1
        return place

    def put(self, place: int, state: bytes) -> None:
        """Say what the worker of that place does."""
        self._bytes[_HEAD.size + place : _HEAD.size + place + 1] = state

    def at(self, place: int) -> bytes:
        """Return what the worker of that place does."""
        return self._bytes[_HEAD.size + place : _HEAD.size + place + 1]

    def crash(self, place: int) -> Crash:
        """Return where the worker of that place can put one more crash. Raises StopIteration where it has CRASHES."""
        return next(crash for crash in self._of(place) if crash.is_free())

    def crashes(self, place: int) -> list[Crash]:
        """Return the crashes of that place."""
        return [crash for crash in self._of(place) if not crash.is_free()]

    def left(self) -> list[int]:
        """Return the places whose workers have died, and left crashes."""
        return [place for place in self._places if self.at(place) == LEFT]

    def everything(self) -> list[Crash]:
        """Return the crashes of all places."""
        return [crash for place in self._places for crash in self.crashes(place)]

    def _of(self, place: int) -> Iterator[Crash]:
        begin = self._crashes_at + place * CRASHES * _CRASH.size
        return (Crash(self._bytes, begin + number * _CRASH.size, self._fd) for number in range(CRASHES))


def _length(size: int) -> int:
    return _HEAD.size + size + size * CRASHES * _CRASH.size


def runtime_directory() -> str:
    """Return where a board outlives the service, RuntimeDirectory= of systemd.exec(5); empty where there is none."""
    return os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]


def open_board(size: int, warn: Callable[[str], None]) -> Board:
    """Return a new board, and put the one aside that a former service has left."""
    directory = runtime_directory()
    if not directory:
        return Board.new(size)
    path = f"{directory}/{_NAME}"
    try:
        with suppress(FileNotFoundError):
            former = Board.former(path)
            if former and former.everything():
                os.rename(path, f"{path}.{new_uuid()}")
            else:
                os.unlink(path)
            if former:
                former.close()
            else:
                warn(f"{path}: not of this version: what a killed service had taken is not on record")
        return Board.new(size, path)
    except OSError as error:
        warn(f"{path}: {error.strerror}: what a killed service had taken will not be on record")
        return Board.new(size)


def former_boards() -> list[str]:
    """Return the paths of the boards that have been put aside."""
    directory = runtime_directory()
    try:
        names = os.listdir(directory) if directory else []
    except OSError:
        names = []
    return [f"{directory}/{name}" for name in names if name.startswith(f"{_NAME}.") and is_uuid(name[len(_NAME) + 1 :])]


def open_former(paths: Iterable[str], warn: Callable[[str], None]) -> dict[str, Board]:
    """Return the boards at these paths that have crashes; what is none, or has none, goes."""
    found = {}
    for path in paths:
        try:
            board = Board.former(path)
            if board and board.everything():
                found[path] = board
            else:
                os.unlink(path)
        except OSError as error:
            warn(f"{path}: {error.strerror}: what a killed service had taken is not on record")
    return found


def find(boards: Iterable[Board], uuid: str) -> Taken | None:
    """Return the crash that goes by this UUID, as it stands on one of the boards just now."""
    crashes = (crash.taken() for board in boards for crash in board.everything())
    return next((taken for taken in crashes if taken.uuid == uuid), None)
