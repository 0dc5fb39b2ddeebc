# SPDX-License-Identifier: Apache-2.0
"""The words of a stack, 8 bytes each: a window of the core's memory that is read at once and moves along."""

from __future__ import annotations

import struct
import sys
from array import array

from coresnap.snapshot.core import Memory
from coresnap.snapshot.unwind.encoding import MASK
from coresnap.snapshot.unwind.expressions import Unread

#: Most threads wait within a few thousand bytes of where their stack begins.
_FIRST_BYTES = 8 << 10
_MOST_BYTES = 256 << 10
#: A window begins so much below what it was asked for.
_BELOW_BYTES = 256


class Words:
    """Memory as an array of words from `base` up to `end`, which are multiples of 8."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._next_bytes = _FIRST_BYTES
        self.base = self.end = 0
        self.array: array[int] = array("Q")

    def begin(self) -> None:
        """Begin another stack: the first window is a small one."""
        self._next_bytes = _FIRST_BYTES

    def move(self, address: int) -> None:
        """Move the window to an address; where the core does not have it, the window is empty."""
        end = address + self._next_bytes & ~7
        base = max(0, address - _BELOW_BYTES) & ~7
        data = self._memory.read(base, end - base)
        if base + len(data) <= address:  # the segment may begin at the address
            base = address & ~7
            data = self._memory.read(base, end - base)
        self._next_bytes = min(2 * self._next_bytes, _MOST_BYTES)
        words = array("Q", data[: len(data) & ~7])
        if sys.byteorder == "big":
            words.byteswap()
        self.base, self.end, self.array = base, base + 8 * len(words), words

    def word(self, address: int) -> int:
        """Return the word at an address, be it a multiple of 8 or not. Raises Unread."""
        address &= MASK
        if address & 7:
            data = self._memory.read(address, 8)
            if len(data) < 8:
                raise Unread(f"the core does not have {address:#x}")
            return int(struct.unpack("<Q", data)[0])
        if not self.base <= address < self.end:
            self.move(address)
            if not self.base <= address < self.end:
                raise Unread(f"the core does not have {address:#x}")
        return self.array[address - self.base >> 3]
