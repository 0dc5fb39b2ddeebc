# SPDX-License-Identifier: Apache-2.0
"""What the workers of the capture service do at the moment, where all of them can see it."""

import mmap

FREE, WAITS, CAPTURES = b"\0", b"w", b"c"


class Board:
    """What each worker does, a byte each, in memory that all of them share."""

    def __init__(self, size: int) -> None:
        self._bytes = mmap.mmap(-1, size)
        self._size = size

    def count(self, state: bytes) -> int:
        """Return how many workers are in that state."""
        return self._bytes[: self._size].count(state)

    def place(self) -> int:
        """Return a place that no worker has."""
        return self._bytes[: self._size].index(FREE)

    def put(self, place: int, state: bytes) -> None:
        """Say what the worker of that place does."""
        self._bytes[place : place + 1] = state

    def at(self, place: int) -> bytes:
        """Return what the worker of that place does."""
        return self._bytes[place : place + 1]
