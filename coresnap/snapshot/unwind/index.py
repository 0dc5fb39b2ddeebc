# SPDX-License-Identifier: Apache-2.0
"""Which FDE an address has: by the sorted table of .eh_frame_hdr, or by one made of all records where there is none.

Layout: LSB Core, "The .eh_frame_hdr section". Addresses are those of the file, without the bias.
"""

from __future__ import annotations

import bisect
import struct
import sys
from array import array
from typing import NamedTuple

from coresnap.ground.errors import BadInput
from coresnap.snapshot.unwind.encoding import DATAREL, MASK, OMIT, pointer, raw
from coresnap.snapshot.unwind.entries import Entries, Read

#: Of a sorted table so much is read at once; a larger one is narrowed down to that first.
_WINDOW_BYTES = 64 << 10
_WINDOWS_MAX = 64
#: Tables of pairs of numbers: their width in an array, by their encoding.
_PAIRS = {DATAREL | 0x0B: "i", DATAREL | 0x0C: "q"}
RECORDS_MAX = 1 << 18


class Header(NamedTuple):
    """The head of .eh_frame_hdr: where .eh_frame is, and the table, None where it has none that can be searched."""

    frames: int
    table: SortedTable | None


class SortedTable:
    """The table of .eh_frame_hdr: pairs of a function's address and its FDE's, relative to the table's section."""

    def __init__(self, read: Read, section: int, start: int, count: int, code: str) -> None:
        self._read = read
        self._section = section
        self._start = start
        self._count = count
        self._code = code
        self._pair_bytes = 2 * array(code).itemsize
        self._windows: dict[int, tuple[array[int], array[int]]] = {}

    def find(self, address: int) -> int | None:
        """Return the address of the FDE that would have the address; of what it has the FDE itself tells. Raises BadInput."""
        low, high = 0, self._count
        key = address - self._section
        while (high - low) * self._pair_bytes > _WINDOW_BYTES:
            middle = (low + high) // 2
            pair = self._pairs(middle, middle + 1)
            if pair[0] <= key:
                low = middle
            else:
                high = middle
        window = self._windows.get(low)
        if window is None:
            if len(self._windows) >= _WINDOWS_MAX:
                self._windows.clear()
            pairs = self._pairs(low, high)
            window = self._windows[low] = pairs[::2], pairs[1::2]
        index = bisect.bisect_right(window[0], key) - 1
        return self._section + window[1][index] & MASK if index >= 0 else None

    def _pairs(self, low: int, high: int) -> array[int]:
        size_bytes = (high - low) * self._pair_bytes
        data = self._read(self._start + low * self._pair_bytes, size_bytes)
        if len(data) < size_bytes:
            raise BadInput(f".eh_frame_hdr: cut behind {self._start + len(data):#x}")
        pairs = array(self._code, data)
        if sys.byteorder == "big":
            pairs.byteswap()
        return pairs


def read_header(read: Read, section: int, size_bytes: int) -> Header:
    """Read the head of .eh_frame_hdr, which stands at an address. Raises BadInput."""
    head = read(section, min(size_bytes, 64))
    try:
        version, frames_encoding, count_encoding, table_encoding = head[:4]
        if version != 1:
            raise BadInput(f"version {version}")
        frames, at = pointer(head, 4, frames_encoding, address=section + 4, table=section)
        code = _PAIRS.get(table_encoding)
        if code is None or count_encoding == OMIT:
            return Header(frames, None)
        count, at = raw(head, at, count_encoding)
    except BadInput as error:
        raise BadInput(f".eh_frame_hdr: {error}") from error
    except (ValueError, IndexError, struct.error) as error:
        raise BadInput(f".eh_frame_hdr: cut at {len(head)} bytes") from error
    most = max(0, size_bytes - at) // (2 * array(code).itemsize)
    if not 0 <= count <= most:
        raise BadInput(f".eh_frame_hdr: {count} entries, {most} at most")
    return Header(frames, SortedTable(read, section, section + at, count, code))


class MadeTable:
    """A table made of all records of a section that has no sorted one, at most RECORDS_MAX of them."""

    def __init__(self, entries: Entries, data: bytes, start: int) -> None:
        """`data` are the section's bytes, `start` its address, or 0 of .debug_frame. What is damaged is passed over."""
        found: list[tuple[int, int]] = []
        at = records = 0
        while at + 4 <= len(data) and records < RECORDS_MAX:
            (length,) = struct.unpack_from("<I", data, at)
            size_bytes = 4 + length
            if length == 0xFFFFFFFF and at + 12 <= len(data):
                size_bytes = 12 + struct.unpack_from("<Q", data, at + 4)[0]
            if length == 0:  # the end, of .eh_frame; a linker may leave several in one section
                at += 4
                continue
            records += 1
            try:
                found.append((entries.fde(start + at).start, start + at))
            except BadInput:
                pass  # a CIE, or damaged
            at += size_bytes
        found.sort()
        self._starts = array("Q", [pair[0] for pair in found])
        self._places = array("Q", [pair[1] for pair in found])

    def find(self, address: int) -> int | None:
        """Return the address of the FDE that would have the address."""
        index = bisect.bisect_right(self._starts, address) - 1
        return self._places[index] if index >= 0 else None
