# SPDX-License-Identifier: Apache-2.0
"""The bounded reader of an ELF core's headers and notes, on real cores and on crafted ones."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground import elf
from coresnap.ground.errors import BadInput
from tests.fixtures import cores


def _pread(data: bytes) -> elf.Pread:
    return lambda count, offset: data[offset : offset + count]


def _read_file(path: Path) -> elf.Pread:
    data = path.read_bytes()
    return _pread(data)


def _crashed() -> bytes:
    return cores.prstatus(78) + cores.prpsinfo(77)


def test_a_real_core(real_core: Path) -> None:
    pread = _read_file(real_core)
    header = elf.read_core(pread)
    listed = subprocess.run(["readelf", "-lW", real_core], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines() if line.startswith(("  LOAD", "  NOTE"))]
    found = [
        (("LOAD", "NOTE")[s.type == elf.PT_NOTE], s.offset, s.vaddr, s.filesz) for s in elf.segments(pread, header)
    ]
    assert found == [(row[0], int(row[1], 16), int(row[2], 16), int(row[4], 16)) for row in rows]
    assert header.expected_bytes <= real_core.stat().st_size
    assert (header.elf_class, header.order) == (64, "<")


def test_who_crashed(real_core: Path) -> None:
    known = elf.identity(_read_file(real_core))
    argv = ["gdb", "-nx", "-batch", "-ex", "set auto-load off", "-ex", "info threads", "-c", str(real_core)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    (current,) = [line for line in said.splitlines() if line.lstrip().startswith("*")]
    assert f"LWP {known.tid}" in current
    assert known.pid is not None
    assert known.tid != known.pid
    assert (known.uid, known.gid, known.signal) == (os.getuid(), os.getgid(), 11)
    assert (known.psargs or "").split()[1:3] == ["segv", "3"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(order: str) -> None:
    notes = cores.prstatus(78, order=order) + cores.prpsinfo(77, order=order)
    data = cores.core(notes, order=order, machine=21)
    header, known = elf.read_core(_pread(data)), elf.identity(_pread(data))
    assert (header.elf_class, header.order, header.machine) == (64, order, 21)
    assert (known.pid, known.tid, known.uid, known.gid, known.signal) == (77, 78, 1000, 1001, 11)
    assert (known.comm, known.psargs) == ("program", "program -x")


@pytest.mark.parametrize(
    ("psinfo", "machine"),
    [
        (struct.pack("<8xHHI12x16s80s", 1000, 1001, 77, b"program", b"program -x"), 3),  # i386
        (struct.pack(">8xIII12x16s80s", 1000, 1001, 77, b"program", b"program -x"), 20),  # PowerPC
    ],
)
def test_32_bit(psinfo: bytes, machine: int) -> None:
    order = "<" if machine == 3 else ">"
    status = struct.pack(f"{order}12xH10xI116x", 6, 78)
    notes = cores.note(cores.NT_PRSTATUS, status, order=order) + cores.note(cores.NT_PRPSINFO, psinfo, order=order)
    load = cores.Load(0x8048000, b"x" * 100)
    data = cores.core(notes, [load], elf_class=32, order=order, machine=machine)
    header, known = elf.read_core(_pread(data)), elf.identity(_pread(data))
    assert (header.elf_class, header.expected_bytes) == (32, len(data))
    assert [s.vaddr for s in elf.segments(_pread(data), header)] == [0, 0x8048000]
    assert (known.pid, known.tid, known.uid, known.gid, known.signal) == (77, 78, 1000, 1001, 6)
    assert (known.comm, known.psargs) == ("program", "program -x")


@pytest.mark.parametrize("elf_class", [32, 64])
@pytest.mark.parametrize("notes_last", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_more_segments_than_e_phnum_can_count(elf_class: int, notes_last: bool, cut: bool) -> None:
    loads = [cores.Load(0x10000 + 16 * index, b"abcd") for index in range(70000)]
    data = cores.core(_crashed(), loads, elf_class=elf_class, extended=True, notes_last=notes_last)
    if cut:
        data = data[:-20]  # in the section header with the count
    if cut and notes_last:
        with pytest.raises(BadInput, match=r"the count of its many program headers, at \d+, is cut off"):
            elf.read_core(_pread(data))
        return
    header = elf.read_core(_pread(data))
    assert header.segments_count == 70001
    assert sum(1 for _ in elf.segments(_pread(data), header)) == 70001
    assert header.notes_end - header.notes_offset == len(_crashed())


def _patched(at: int, layout: str, *values: int, notes_last: bool = False) -> bytes:
    data = bytearray(cores.core(_crashed(), [cores.Load(0x1000, b"memory")], notes_last=notes_last))
    struct.pack_into(layout, data, at, *values)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not ELF, 0 bytes"),
        (b"hello, world\n", "not ELF"),
        (b"\x7fELF", "no known class or byte order"),
        (b"\x7fELF\x03\x01" + bytes(60), "no known class or byte order"),
        (Path("/bin/true").read_bytes(), "an executable or a library, not a core"),
        (cores.core(_crashed())[:40], "the ELF header is cut at 40 bytes"),
        (cores.core(_crashed())[:100], "the program headers are cut at 100"),
        (_patched(54, "<H", 32), "a program header of 32 bytes at offset 54, 56 expected"),
        (_patched(56, "<H", 0), "0 program headers"),
        (_patched(56, "<H", 40000)[:150], "the program headers are cut at 150"),
        (_patched(32, "<Q", 2**64 - 64), "the program headers are cut at 18446744073709551552"),
        (_patched(40, "<QIHHH", 0, 0, 64, 56, 0xFFFF, notes_last=True), "the count of its many .*, at 44, is cut off"),
        (_patched(40, "<QIHHH", 2**64 - 8, 0, 64, 56, 0xFFFF, notes_last=True), "the count of its many .* is cut off"),
    ],
)
def test_bad_headers_are_refused_with_their_place(data: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        elf.identity(_pread(data))


@pytest.mark.parametrize(
    "data",
    [
        _patched(56, "<H", 40000),
        _patched(56, "<H", 40000, notes_last=True),
        _patched(40, "<QIHHH", 0, 0, 64, 56, 0xFFFF),
        _patched(40, "<QIHHH", 2**64 - 8, 0, 64, 56, 0xFFFF),
        _patched(40, "<QIHHH", 4, 0, 64, 56, 0xFFFF),
    ],
)
def test_an_absurd_count_of_segments_does_not_hide_the_notes(data: bytes) -> None:
    """The program headers end where the notes begin."""
    header = elf.read_core(_pread(data))
    assert [one.type for one in elf.segments(_pread(data), header)] == [elf.PT_NOTE, elf.PT_LOAD]
    assert elf.identity(_pread(data)).pid == 77


@pytest.mark.parametrize("at", [64 + 8, 64 + 56 + 8])
def test_offsets_that_no_file_can_have(at: int, tmp_path: Path) -> None:
    """The kernel's own pread is asked: it takes no offset of 64 bits."""
    path = tmp_path / "core"
    path.write_bytes(_patched(at, "<QQQQ", 2**64 - 1, 0, 0, 2**64 - 1))
    with path.open("rb") as file:
        header = elf.read_core(lambda count, offset: os.pread(file.fileno(), count, offset))
        assert header.expected_bytes == 2**63 - 1
        elf.identity(lambda count, offset: os.pread(file.fileno(), count, offset))


def test_a_core_cut_anywhere_gives_what_is_there(real_core: Path) -> None:
    data = real_core.read_bytes()
    header = elf.read_core(_pread(data))
    chance = random.Random(1)
    cuts = sorted({0, 1, 4, 17, 18, 52, 63, 64, *(chance.randrange(header.notes_end) for _ in range(50))})
    known = []
    for cut in cuts:
        try:
            known.append(elf.identity(_pread(data[:cut])).tid is not None)
        except BadInput:
            known.append(False)
            assert cut < header.notes_offset
    assert known == sorted(known), "once the first note is there, it is read"
    assert known[-1]


def test_notes_come_in_windows() -> None:
    large = cores.note(cores.NT_FILE, b"f" * (3 << 20))
    too_large = cores.note(0x202, b"x" * (elf.NOTE_MAX_BYTES + 4))
    data = cores.core(cores.prstatus(1) * 3000 + large + too_large + cores.prstatus(2))
    header = elf.read_core(_pread(data))
    asked: list[int] = []

    def pread(count: int, offset: int) -> bytes:
        asked.append(count)
        return data[offset : offset + count]

    found = [(kind, len(note)) for kind, note in elf.core_notes(pread, header)]
    assert found == [(1, 336)] * 3000 + [(cores.NT_FILE, 3 << 20), (1, 336)]
    assert max(asked) < 4 << 20


def test_notes_without_end_come_to_one() -> None:
    """A hole of a terabyte reads as notes of no size."""
    data = cores.core(b"x" * 100)
    header = elf.read_core(_pread(data))
    header.notes_end = 1 << 40
    read_bytes = 0

    def pread(count: int, _offset: int) -> bytes:
        nonlocal read_bytes
        read_bytes += count
        return bytes(count)

    assert list(elf.core_notes(pread, header)) == []
    assert read_bytes <= 12 * elf.NOTES_MAX + (2 << 20)


def test_large_notes_without_end_come_to_one() -> None:
    """A file of holes may claim large notes again and again, at a block of disk each."""
    large = 14 << 20
    head = cores.note(9, b"", name=b"OTHER\0")[:4] + struct.pack("<II", large, 9) + b"OTHER\0\0\0"
    header = elf.read_core(_pread(cores.core(b"x" * 100)))
    start = header.notes_offset
    header.notes_end = 1 << 50
    read_bytes = 0

    def pread(count: int, offset: int) -> bytes:
        nonlocal read_bytes
        read_bytes += count
        assert (offset - start) % (len(head) + large) == 0
        return head + bytes(count - len(head))

    assert list(elf.core_notes(pread, header)) == []
    assert read_bytes <= 1.2 * elf.NOTES_MAX_BYTES


_VALUES = (0, 1, 2, 4, 12, 0xFF, 0xFFFF, 2**31, 2**32 - 1, 2**62, 2**63 - 64, 2**63 - 1, 2**63, 2**64 - 56, 2**64 - 1)


def _mutations(count: int) -> Iterator[bytes]:
    """Yield cores of every kind with numbers of every size in their headers and notes, some of them cut."""
    chance = random.Random(20240601)
    big = cores.prstatus(78, order=">") + cores.prpsinfo(77, order=">")
    load = cores.Load(0x1000, b"memory" * 10)
    wholes = [
        cores.small(),
        cores.core(big, [load], order=">", machine=21),
        cores.core(_crashed(), [load], elf_class=32, machine=3),
        cores.core(_crashed(), [load], extended=True),
        cores.core(_crashed(), [load], notes_last=True),
    ]
    for _ in range(count):
        data = bytearray(chance.choice(wholes))
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.choice((chance.randrange(32, 240), chance.randrange(min(len(data), 2600))))
            layout = chance.choice("QQIH")
            size_bytes = struct.calcsize(layout)
            at -= at % size_bytes
            value = chance.choice(_VALUES) & (256**size_bytes - 1)
            data[at : at + size_bytes] = struct.pack(chance.choice("<<>") + layout, value)
        yield bytes(data[: chance.randrange(len(data))]) if chance.random() < 0.1 else bytes(data)


def test_numbers_of_every_size_are_read_or_refused() -> None:
    """The kernel's pread is asked directly, as archive asks it: it takes no offset that is negative or of 64 bits."""
    outcomes = {"read": 0, "refused": 0}
    fd = os.memfd_create("core")

    def pread(count: int, offset: int) -> bytes:
        assert 0 <= count <= elf.NOTE_MAX_BYTES
        return os.pread(fd, count, offset)

    for data in _mutations(5000):
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
        try:
            header = elf.read_core(pread)
            elf.identity(pread)
            list(elf.core_notes(pread, header))
        except BadInput:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert 0 <= header.notes_offset < 2**64
            assert max(header.notes_end, header.expected_bytes) < 2**63
    os.close(fd)
    assert min(outcomes.values()) > 500, outcomes
