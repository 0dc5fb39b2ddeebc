# SPDX-License-Identifier: Apache-2.0
"""How unwind tables write numbers: LEB128 (DWARF 5, 7.6) and encoded pointers (LSB Core, "DWARF Exception Header Encoding").

A function here takes bytes and a position and returns the value and the position behind it. At the end of the bytes it
raises IndexError or struct.error, which whoever reads a whole record turns into BadInput.
"""

from __future__ import annotations

import struct

from coresnap.ground.errors import BadInput

MASK = (1 << 64) - 1
OMIT = 0xFF
#: How a pointer is applied: as it stands; relative to its own place, to the table's start, to the function's start.
PCREL, DATAREL, FUNCREL = 0x10, 0x30, 0x40
_APPLICATION, _FORMAT, _ULEB, _SLEB = 0x70, 0x0F, 0x01, 0x09
_FIXED = {
    **{0x00: struct.Struct("<Q"), 0x02: struct.Struct("<H"), 0x03: struct.Struct("<I"), 0x04: struct.Struct("<Q")},
    **{0x0A: struct.Struct("<h"), 0x0B: struct.Struct("<i"), 0x0C: struct.Struct("<q"), 0x08: struct.Struct("<q")},
}
#: No number of an unwind table takes more than 64 bits.
_LEB_MAX_BITS = 70


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """Read an unsigned LEB128. Raises IndexError where it does not end, BadInput where it is too long."""
    value = shift = 0
    while shift < _LEB_MAX_BITS:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value & MASK, at
    raise BadInput("a number of more than 64 bits")


def sleb(data: bytes, at: int) -> tuple[int, int]:
    """Read a signed LEB128. Raises IndexError where it does not end, BadInput where it is too long."""
    value = shift = 0
    while shift < _LEB_MAX_BITS:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value - (1 << shift) if byte & 0x40 else value), at
    raise BadInput("a number of more than 64 bits")


def raw(data: bytes, at: int, encoding: int) -> tuple[int, int]:
    """Read a number in the format of an encoding, whatever it is relative to. Raises BadInput at an unknown format."""
    layout = _FIXED.get(encoding & _FORMAT)
    if layout is not None:
        return layout.unpack_from(data, at)[0], at + layout.size
    if encoding & _FORMAT in (_ULEB, _SLEB):
        return (uleb if encoding & _FORMAT == _ULEB else sleb)(data, at)
    raise BadInput(f"a pointer of encoding {encoding:#x}")


def pointer(data: bytes, at: int, encoding: int, *, address: int, table: int = 0, function: int = 0) -> tuple[int, int]:
    """Read an encoded pointer that stands at `address`; 0 stays 0. Raises BadInput at one that cannot be resolved.

    An indirect pointer is one to where the pointer stands, in memory that relocations have changed: none that is followed
    here is one.
    """
    value, at = raw(data, at, encoding)
    base = {0: 0, PCREL: address, DATAREL: table, FUNCREL: function}.get(encoding & _APPLICATION)
    if base is None or encoding & 0x80:
        raise BadInput(f"a pointer of encoding {encoding:#x}")
    return (value + base & MASK if value else 0), at
