# SPDX-License-Identifier: Apache-2.0
"""What the workers of the capture service do at the moment, where all of them can see it, and the next service, too.

The board is a file: a service that is killed with all its workers leaves there whose crashes they had taken. Layout:
_HEAD (a mark, the number of places), a byte of state for each place, a _CRASH for each place.
"""

import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from coresnap.capture.victim import Victim

FREE, WAITS, CAPTURES = b"\0", b"w", b"c"

_HEAD = struct.Struct("=24sQ")
_MARK = b"coresnap-board 2"
#: pid, uid, gid, signal; comm, the dump's UUID; whether archive has it still. A number that is not known is -1.
_CRASH = struct.Struct("=qqqq16s36s?")
_NUMBERS = ("pid", "uid", "gid", "signal")
_NOBODY = _CRASH.pack(-1, -1, -1, -1, b"", b"", False)
_PLACES_MAX = 1 << 16


@dataclass(frozen=True)
class Taken:
    """A crash that a worker has taken; `uuid` is its dump's once that is in staging, and empty before.

    `is_offered`: archive has not been told yet that it was taken, and captures it by itself where the worker is killed.
    """

    victim: Victim
    uuid: str
    is_offered: bool = False


class Board:
    """What each worker does, a byte each, and whose crash it has taken, in memory that all of them share."""

    def __init__(self, size: int, path: str = "") -> None:
        """`path` is where the board outlives the service; without it nothing does. Raises OSError.

        `left` are the crashes that a former service had taken when it was killed.
        """
        self._size = size
        self._crashes_at = _HEAD.size + size
        length = self._crashes_at + size * _CRASH.size
        self.left: list[Taken] = []
        if not path:
            self._bytes = mmap.mmap(-1, length)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self.left = _left(fd)
                os.ftruncate(fd, 0)
                os.ftruncate(fd, length)
                self._bytes = mmap.mmap(fd, length)
            finally:
                os.close(fd)
        self._bytes[: _HEAD.size] = _HEAD.pack(_MARK, size)

    def count(self, state: bytes) -> int:
        """Return how many workers are in that state."""
        return self._bytes[_HEAD.size : self._crashes_at].count(state)

    def place(self) -> int:
        """Return a place that no worker has."""
        return self._bytes[_HEAD.size : self._crashes_at].index(FREE)

    def put(self, place: int, state: bytes) -> None:
        """Say what the worker of that place does; whose crash it has taken is not known yet, or not any more."""
        at = self._crashes_at + place * _CRASH.size
        self._bytes[at : at + _CRASH.size] = _NOBODY
        self._bytes[_HEAD.size + place : _HEAD.size + place + 1] = state

    def name(self, place: int, victim: Victim, uuid: str = "", *, is_offered: bool = False) -> None:
        """Say whose crash the worker of that place has taken, and in which dump it is; see Taken."""
        at = self._crashes_at + place * _CRASH.size
        numbers = (-1 if (number := getattr(victim, name)) is None else number for name in _NUMBERS)
        comm = (victim.comm or "").encode("utf-8", "replace")[:16]
        self._bytes[at : at + _CRASH.size] = _CRASH.pack(*numbers, comm, uuid.encode(), is_offered)

    def take(self, place: int) -> None:
        """Say that archive is about to be told that the crash has been taken."""
        self._bytes[self._crashes_at + (place + 1) * _CRASH.size - 1] = 0

    def at(self, place: int) -> bytes:
        """Return what the worker of that place does."""
        return self._bytes[_HEAD.size + place : _HEAD.size + place + 1]

    def taken(self, place: int) -> Taken:
        """Return whose crash the worker of that place has taken."""
        at = self._crashes_at + place * _CRASH.size
        return _taken(self._bytes[at : at + _CRASH.size])


def open_board(size: int, warn: Callable[[str], None]) -> Board:
    """Return a board that outlives the service, where it has been told of a place for such: RuntimeDirectory=, systemd.exec(5)."""
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    try:
        return Board(size, os.path.join(directory, "board") if directory else "")
    except OSError as error:
        warn(f"{directory}/board: {error.strerror}: what a killed service had taken will not be on record")
        return Board(size)


def _taken(data: bytes) -> Taken:
    *numbers, comm, uuid, is_offered = _CRASH.unpack(data)
    victim = Victim()
    for name, number in zip(_NUMBERS, numbers, strict=True):
        setattr(victim, name, None if number < 0 else number)
    victim.comm = comm.rstrip(b"\0").decode("utf-8", "replace") or None
    return Taken(victim, uuid.rstrip(b"\0").decode("ascii", "replace"), is_offered)


def _left(fd: int) -> list[Taken]:
    """Return what is on a former service's board; nothing where it is not of this layout."""
    data = os.pread(fd, _HEAD.size + _PLACES_MAX * (1 + _CRASH.size), 0)
    if len(data) < _HEAD.size:
        return []
    mark, size = _HEAD.unpack_from(data)
    if mark.rstrip(b"\0") != _MARK or len(data) != _HEAD.size + size * (1 + _CRASH.size):
        return []
    crashes_at = _HEAD.size + size
    places = [place for place in range(size) if data[_HEAD.size + place : _HEAD.size + place + 1] == CAPTURES]
    return [_taken(data[at : at + _CRASH.size]) for at in (crashes_at + place * _CRASH.size for place in places)]
