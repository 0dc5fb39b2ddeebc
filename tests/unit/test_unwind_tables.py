# SPDX-License-Identifier: Apache-2.0
"""Call frame information assembled by hand: each instruction, each encoding, each index."""

from __future__ import annotations

import struct

import pytest

from coresnap.ground.errors import BadInput
from coresnap.snapshot.unwind import encoding
from coresnap.snapshot.unwind.entries import Entries
from coresnap.snapshot.unwind.index import MadeTable, SortedTable, read_header
from coresnap.snapshot.unwind.rows import (
    EXPRESSION,
    OFFSET,
    REGISTER,
    UNDEFINED,
    VALUE_EXPRESSION,
    VALUE_OFFSET,
    row,
)
from tests.fixtures.cfi import SECTION, SIZE_BYTES, START, block, cie, fde, parsed, record, row_of, sleb, uleb

_RETURN = {16: (OFFSET, -8)}
_PUSHED = b"\x41\x0e\x10\x86\x02"  # one byte on: CFA offset 16, rbp at CFA - 16


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**64 - 1])
def test_uleb(value: int) -> None:
    assert encoding.uleb(b"x" + uleb(value) + b"\xff", 1) == (value, 1 + len(uleb(value)))


@pytest.mark.parametrize("value", [0, 1, -1, 63, 64, -64, -65, 2**62, -(2**63)])
def test_sleb(value: int) -> None:
    assert encoding.sleb(sleb(value) + b"\xff", 0) == (value, len(sleb(value)))


@pytest.mark.parametrize("read", [encoding.uleb, encoding.sleb])
def test_numbers_without_end(read: object) -> None:
    assert callable(read)
    with pytest.raises(IndexError):
        read(b"\x80" * 3, 0)
    with pytest.raises(BadInput, match="64 bits"):
        read(b"\x80" * 20, 0)


@pytest.mark.parametrize(
    ("how", "data", "value"),
    [
        (0x00, struct.pack("<Q", 0x1234), 0x1234),
        (0x01, uleb(0x1234), 0x1234),
        (0x02, struct.pack("<H", 0x1234), 0x1234),
        (0x03, struct.pack("<I", 0x1234), 0x1234),
        (0x04, struct.pack("<Q", 2**63), 2**63),
        (0x09, sleb(-2), 2**64 - 2),
        (0x0A, struct.pack("<h", -2), 2**64 - 2),
        (0x0B, struct.pack("<i", -2), 2**64 - 2),
        (0x0C, struct.pack("<q", -2), 2**64 - 2),
        (0x1B, struct.pack("<i", -2), 0xFFE),
        (0x3B, struct.pack("<i", 2), 0x2002),
        (0x4B, struct.pack("<i", 2), 0x3002),
        (0x1B, bytes(4), 0),
    ],
)
def test_pointers(how: int, data: bytes, value: int) -> None:
    found = encoding.pointer(data, 0, how, address=0x1000, table=0x2000, function=0x3000)
    assert found == (value, len(data))


@pytest.mark.parametrize("how", [0x05, 0x0E, 0x20, 0x9B, 0x50])
def test_pointers_that_are_not_followed(how: int) -> None:
    with pytest.raises(BadInput, match="encoding"):
        encoding.pointer(bytes(16), 0, how, address=0)


@pytest.mark.parametrize(
    ("instructions", "cfa", "rules"),
    [
        (b"", (7, 8), _RETURN),
        (b"\x00\x00", (7, 8), _RETURN),
        (_PUSHED, (7, 16), {**_RETURN, 6: (OFFSET, -16)}),
        (_PUSHED + b"\x43\x0d\x06", (6, 16), {**_RETURN, 6: (OFFSET, -16)}),
        (b"\x0c" + uleb(300) + uleb(1000), (300, 1000), _RETURN),
        (b"\x12\x06" + sleb(-3), (6, 24), _RETURN),
        (b"\x13" + sleb(-3), (7, 24), _RETURN),
        (b"\x05" + uleb(6) + uleb(3), (7, 8), {**_RETURN, 6: (OFFSET, -24)}),
        (b"\x11" + uleb(6) + sleb(-3), (7, 8), {**_RETURN, 6: (OFFSET, 24)}),
        (b"\x2f" + uleb(6) + uleb(3), (7, 8), {**_RETURN, 6: (OFFSET, 24)}),
        (b"\x14" + uleb(6) + uleb(3), (7, 8), {**_RETURN, 6: (VALUE_OFFSET, -24)}),
        (b"\x15" + uleb(6) + sleb(-3), (7, 8), {**_RETURN, 6: (VALUE_OFFSET, 24)}),
        (b"\x10\x06" + block(b"\x77\x08"), (7, 8), {**_RETURN, 6: (EXPRESSION, b"\x77\x08")}),
        (b"\x16\x06" + block(b"\x77\x08"), (7, 8), {**_RETURN, 6: (VALUE_EXPRESSION, b"\x77\x08")}),
        (b"\x0f" + block(b"\x77\x08"), b"\x77\x08", _RETURN),
        (b"\x07\x10", (7, 8), {16: (UNDEFINED, 0)}),
        (b"\x86\x02\x08\x06", (7, 8), _RETURN),
        (b"\x09\x06\x03", (7, 8), {**_RETURN, 6: (REGISTER, 3)}),
        (b"\x86\x02\xc6", (7, 8), _RETURN),
        (b"\x07\x10\xd0", (7, 8), _RETURN),
        (b"\x07\x10\x06\x10", (7, 8), _RETURN),
        (b"\x0a\x0e\x20\x86\x02\x0b", (7, 8), _RETURN),
        (b"\x0a\x0a\x0e\x20\x0b\x0e\x30\x0b", (7, 8), _RETURN),
        (b"\x0f" + block(b"\x77\x08") + b"\x0a\x0c\x07\x10\x0b", b"\x77\x08", _RETURN),
        (b"\x2e\x10\x2d", (7, 8), _RETURN),
    ],
)
def test_instructions(instructions: bytes, cfa: object, rules: object) -> None:
    found = row_of(instructions)
    assert (found.cfa, found.rules) == (cfa, rules)


@pytest.mark.parametrize(
    "advance",
    [b"\x44", b"\x02\x04", b"\x03\x04\0", b"\x04\x04\0\0\0", b"\x1d\x04" + bytes(7)],
    ids=["advance", "1", "2", "4", "8"],
)
def test_locations(advance: bytes) -> None:
    """A row holds from its location on, up to the next one's."""
    instructions = advance + b"\x0e\x10" + advance + b"\x0e\x18"
    assert [row_of(instructions, at).cfa[1] for at in (0, 3, 4, 7, 8, 0xFF)] == [8, 8, 16, 16, 24, 24]
    scaled = [row_of(instructions, at, factors=(4, -8)).cfa[1] for at in (0, 15, 16, 31, 32)]
    assert scaled == [8, 8, 16, 16, 24]


def test_a_location_that_is_set() -> None:
    """DW_CFA_set_loc has an address of the encoding that the CIE names, relative to its own place."""
    place = SECTION + len(cie())
    at = place + 4 + 4 + 8 + 1 + 1
    instructions = b"\x01" + struct.pack("<i", START + 0x20 - at) + b"\x0e\x10"
    assert [row_of(instructions, where).cfa for where in (0x1F, 0x20)] == [(7, 8), (7, 16)]


@pytest.mark.parametrize(
    ("instructions", "says"),
    [
        (b"\x0b", "restore"),
        (b"\x0a" * 100, "remember"),
        (b"\x3f", "not known"),
        (b"\x0f" + uleb(200), "cut"),
        (b"\x0f" + block(b"\x77\x08") + b"\x0e\x10", "no register"),
        (b"\x05\x80\x80\x80", "cut"),
        (b"\x02", "cut"),
    ],
)
def test_instructions_that_are_damaged(instructions: bytes, says: str) -> None:
    padded = instructions + b"\x80" * (-(len(instructions) + 17) % 8) if says == "cut" else instructions
    with pytest.raises(BadInput, match=says):
        row_of(padded)


def test_a_row_without_a_cfa() -> None:
    with pytest.raises(BadInput, match="without a CFA"):
        row_of(b"", instructions=b"\x90\x01")


@pytest.mark.parametrize(
    ("augmentation", "data", "is_signal"),
    [
        (b"zR", b"\x1b", False),
        (b"zRS", b"\x1b", True),
        (b"zPLR", b"\x9b" + bytes(4) + b"\x1b\x1b", False),
        (b"zPLRS", b"\x9b" + bytes(4) + b"\x1b\x1b", True),
        (b"zPR", b"\xff\x1b", False),
        (b"zRX", b"\x1b\x99\x99", False),
        (b"zRB", b"\x1b", False),
    ],
)
@pytest.mark.parametrize("version", [1, 3, 4])
def test_augmentations(augmentation: bytes, data: bytes, is_signal: bool, version: int) -> None:
    head = cie(augmentation=augmentation, data=data, version=version)
    place = SECTION + len(head)
    found = parsed(head + fde(_PUSHED, place), place)
    assert (found.start, found.end, found.cie.is_signal) == (START, START + SIZE_BYTES, is_signal)
    assert found.cie.return_register == 16
    assert row(found, START + 1).cfa == (7, 16)


def test_a_record_of_the_long_form() -> None:
    head = cie()
    place = SECTION + len(head)
    body = struct.pack("<I", place + 12 - SECTION) + struct.pack("<iI", START - (place + 16), SIZE_BYTES) + b"\0"
    found = parsed(head + record(body + _PUSHED, long=True), place)
    assert (found.start, row(found, START + 1).cfa) == (START, (7, 16))


def _debug_frame() -> bytes:
    """A CIE at 0 of .debug_frame, and an FDE behind it, whose CIE is named by its offset, and addresses stand as they are."""
    head = cie(augmentation=b"", version=4, id_=b"\xff\xff\xff\xff")
    return head + record(struct.pack("<IQQ", 0, START, SIZE_BYTES) + _PUSHED)


def test_debug_frame() -> None:
    section = _debug_frame()
    found = parsed(section, len(cie(augmentation=b"", version=4)), start=0, is_eh=False)
    assert (found.start, found.end, row(found, START + 1).cfa) == (START, START + SIZE_BYTES, (7, 16))


@pytest.mark.parametrize(
    "head",
    [
        cie(version=2),
        cie(augmentation=b"z" * 30),
        cie(augmentation=b"qq"),
        cie(version=4)[:10],
        cie(data=b"\x9b"),
        cie(id_=b"\x01\0\0\0"),
        cie(data=b"\x1b" * 200)[:40],
        bytes(40),
    ],
)
def test_cies_that_are_damaged(head: bytes) -> None:
    place = SECTION + len(head)
    with pytest.raises(BadInput):
        parsed(head + fde(b"", place), place)


@pytest.mark.parametrize("cut", range(0, 24, 3))
def test_fdes_that_are_cut(cut: int) -> None:
    head = cie()
    place = SECTION + len(head)
    with pytest.raises(BadInput):
        parsed((head + fde(b"", place))[: len(head) + cut], place)


def _indexed(count: int, code: str = "i", encoded: int = 0x3B) -> tuple[bytes, int]:
    """Return .eh_frame_hdr, at 0x10000, of functions of 0x10 bytes from 0x1000 on, each with its FDE, and its size."""
    head = struct.pack("<BBBBiI", 1, 0x1B, 0x03, encoded, 0x100, count)
    pairs = [(0x1000 + 0x10 * n - 0x10000, 0x40000 + 0x20 * n - 0x10000) for n in range(count)]
    data = head + b"".join(struct.pack(f"<{code}{code}", *pair) for pair in pairs)
    return data, len(data)


@pytest.mark.parametrize(("code", "encoded"), [("i", 0x3B), ("q", 0x3C)])
@pytest.mark.parametrize("count", [1, 2, 3, 1000, 70000])
def test_the_sorted_table(count: int, code: str, encoded: int) -> None:
    """Also of one that is larger than the window it is searched in."""
    data, size_bytes = _indexed(count, code, encoded)
    reads: list[int] = []

    def read(address: int, most: int) -> bytes:
        reads.append(most)
        return data[address - 0x10000 :][:most]

    header = read_header(read, 0x10000, size_bytes)
    assert header.frames == 0x10104
    assert isinstance(header.table, SortedTable)
    for index in {0, 1, count // 2, count - 1} & set(range(count)):
        for within in (0, 0xF):
            assert header.table.find(0x1000 + 0x10 * index + within) == 0x40000 + 0x20 * index
    assert header.table.find(0xFFF) is None
    assert max(reads) <= 64 << 10


def test_a_header_without_a_table_that_can_be_searched() -> None:
    data = struct.pack("<BBBBi", 1, 0x1B, 0xFF, 0xFF, 0x100)
    assert read_header(lambda _at, count: data[:count], 0x10000, len(data)) == (0x10104, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x02\x1b\x03\x3b" + bytes(20),
        struct.pack("<BBBBiI", 1, 0x1B, 3, 0x3B, 0, 2**32 - 1),
        b"\x01\x7f\x03\x3b",
    ],
)
def test_headers_that_are_damaged(data: bytes) -> None:
    with pytest.raises(BadInput, match="eh_frame_hdr"):
        read_header(lambda _at, count: data[:count], 0x10000, len(data))


def test_the_table_that_is_made() -> None:
    """Of all records of a section, in any order, over the ends that a linker left in it, and what is damaged."""
    data = cie()
    places = {}
    for number in (3, 1, 2, 5):
        place = SECTION + len(data)
        places[number] = place
        data += fde(_PUSHED, place, start=0x1000 * number)
        data += bytes(4) if number == 1 else b""
    data += record(b"\xff" * 12)
    table = MadeTable(Entries(lambda at, count: data[at - SECTION :][:count], SECTION, is_eh=True), data, SECTION)
    assert {number: table.find(0x1000 * number + 5) for number in places} == places
    assert table.find(0xFFF) is None
    assert table.find(0x4000) == places[3], "whether the FDE has the address, it tells itself"


def test_the_table_that_is_made_of_debug_frame() -> None:
    section = _debug_frame()
    entries = Entries(lambda at, count: section[at:][:count], 0, is_eh=False)
    assert MadeTable(entries, section, 0).find(START + 1) == len(cie(augmentation=b"", version=4))
