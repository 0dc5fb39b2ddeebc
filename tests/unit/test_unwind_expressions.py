# SPDX-License-Identifier: Apache-2.0
"""DWARF expressions assembled by hand: each operation, the bounds, what is damaged."""

from __future__ import annotations

import struct

import pytest

from coresnap.ground.errors import BadInput
from coresnap.snapshot.unwind.expressions import Unread, evaluate
from tests.fixtures.cfi import sleb, uleb

_M = 2**64
_REGISTERS = [100 + number for number in range(17)]


def _word(address: int) -> int:
    if address == 0xDEAD:
        raise Unread("not there")
    return address ^ 0x1122334455667788


def _run(code: bytes, *stack: int) -> int:
    return evaluate(code, _REGISTERS, _word, *stack)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (b"\x30", 0),
        (b"\x4f", 31),
        (b"\x08\xff", 255),
        (b"\x09\xff", _M - 1),
        (b"\x0a\xff\xff", 65535),
        (b"\x0b\xfe\xff", _M - 2),
        (b"\x0c\xff\xff\xff\xff", 2**32 - 1),
        (b"\x0d\xfd\xff\xff\xff", _M - 3),
        (b"\x0e" + struct.pack("<Q", _M - 4), _M - 4),
        (b"\x0f" + struct.pack("<q", -5), _M - 5),
        (b"\x10" + uleb(300), 300),
        (b"\x11" + sleb(-300), _M - 300),
        (b"\x70" + sleb(8), 108),
        (b"\x77" + sleb(-8), 99),
        (b"\x80\x00", 116),
        (b"\x92" + uleb(16) + sleb(-1), 115),
    ],
)
def test_what_pushes(code: bytes, value: int) -> None:
    assert _run(code) == value


@pytest.mark.parametrize(
    ("op", "left", "right", "value"),
    [
        (0x1A, 0b1100, 0b1010, 0b1000),
        (0x1B, 7, 2, 3),
        (0x1B, _M - 7, 2, _M - 3),
        (0x1B, _M - 7, _M - 2, 3),
        (0x1C, 1, 2, _M - 1),
        (0x1D, 7, 4, 3),
        (0x1E, 2**63, 2, 0),
        (0x21, 0b1100, 0b1010, 0b1110),
        (0x22, _M - 1, 2, 1),
        (0x24, 1, 63, 2**63),
        (0x24, 1, 64, 0),
        (0x24, 1, _M - 1, 0),
        (0x25, _M - 1, 60, 15),
        (0x25, _M - 1, _M - 1, 0),
        (0x26, _M - 16, 2, _M - 4),
        (0x26, _M - 16, _M - 1, _M - 1),
        (0x27, 0b1100, 0b1010, 0b0110),
        (0x29, 5, 5, 1),
        (0x29, 5, 6, 0),
        (0x2A, 5, 5, 1),
        (0x2A, _M - 1, 0, 0),
        (0x2B, 1, _M - 1, 1),
        (0x2C, _M - 1, 0, 1),
        (0x2D, 0, _M - 1, 0),
        (0x2E, 5, 6, 1),
    ],
)
def test_what_takes_two(op: int, left: int, right: int, value: int) -> None:
    assert _run(bytes([op]), left, right) == value


@pytest.mark.parametrize(
    ("code", "stack", "value"),
    [
        (b"\x19", (_M - 5,), 5),
        (b"\x1f", (5,), _M - 5),
        (b"\x20", (0,), _M - 1),
        (b"\x23" + uleb(300), (5,), 305),
        (b"\x12\x22", (5,), 10),
        (b"\x13", (5, 6), 5),
        (b"\x14", (5, 6), 5),
        (b"\x15\x02", (5, 6, 7), 5),
        (b"\x16", (5, 6), 5),
        (b"\x17", (5, 6, 7), 6),
        (b"\x17\x13", (5, 6, 7), 5),
        (b"\x17\x13\x13", (5, 6, 7), 7),
        (b"\x96", (5,), 5),
        (b"\x06", (0,), 0x1122334455667788),
        (b"\x94\x01", (0,), 0x88),
        (b"\x94\x02", (0,), 0x7788),
        (b"\x94\x04", (0,), 0x55667788),
        (b"\x94\x08", (0,), 0x1122334455667788),
        (b"\x2f\x01\x00\x31\x32", (), 2),
        (b"\x28\x01\x00\x31\x32", (1,), 2),
        (b"\x28\x01\x00\x31\x32\x22", (5, 0), 3),
    ],
)
def test_what_changes_the_stack(code: bytes, stack: tuple[int, ...], value: int) -> None:
    assert _run(code, *stack) == value


def test_a_loop() -> None:
    """10, counted down to 0: dup; bra +3; skip to the end; minus 1; skip back."""
    code = b"\x3a" + b"\x12\x28\x03\x00" + b"\x2f\x05\x00" + b"\x31\x1c" + b"\x2f\xf4\xff"
    assert _run(code) == 0


def test_the_procedure_linkage_table() -> None:
    """What linkers write: CFA = rsp + 8, and 8 more from the second instruction of an entry of 16 bytes on."""
    code = bytes.fromhex("7708 8000 3f 1a 3b 2a 33 24 22")
    for within in range(16):
        registers = [0] * 16 + [0x401020 + within]
        registers[7] = 0x7000
        assert evaluate(code, registers, _word) == 0x7008 + (8 if within >= 11 else 0)


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x06",
        b"\x22",
        b"\x31\x22",
        b"\x16",
        b"\x31\x15\x05",
        b"\x08",
        b"\x0e\x00",
        b"\x10\x80",
        b"\x31\x30\x1b",
        b"\x31\x30\x1d",
        b"\x31\x94\x03",
        b"\x50",
        b"\x90\x05",
        b"\x9c",
        b"\x03" + bytes(8),
        b"\xff",
        b"\x92\x40\x00",
        b"\x81\x00",
        b"\x2f\x10\x00",
        b"\x2f\xf0\xff",
        b"\x31\x2f\xfd\xff",
        b"\x2f\xfd\xff",
        b"\x12" * 300,
        b"\x31" + b"\x12\x2f\xfc\xff",
    ],
)
def test_what_is_damaged_or_does_not_end(code: bytes) -> None:
    with pytest.raises(BadInput):
        _run(code)


def test_memory_that_is_not_there() -> None:
    with pytest.raises(Unread):
        _run(b"\x06", 0xDEAD)
