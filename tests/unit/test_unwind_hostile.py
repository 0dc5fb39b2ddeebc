# SPDX-License-Identifier: Apache-2.0
"""Unwind tables, stacks and registers that lie: a stack with its end, in bounded time, and never an exception."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground import elf
from coresnap.ground.elf_file import ElfFile, Pread
from coresnap.snapshot.core import Core, open_core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import Module, list_modules
from coresnap.snapshot.stacks import End, Stack
from coresnap.snapshot.unwind.unwinder import Unwinder
from coresnap.snapshot.unwind.walk import Limits
from tests.fixtures import cores
from tests.fixtures.cfi import cie, fde
from tests.unit.test_unwind import die

_SEED = 20240623
_MUTATIONS = 400
_INTERESTING = (0, 1, 2, 8, 0x0F, 0x10, 0x16, 0x2F, 0x7F, 0x80, 0xFF)
_WORDS = (0, 1, 7, 8, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFF8)
#: What no walk may take longer than, of the few threads that there are here.
_SECONDS = 3.0


def _walk(core: Core, kept: dict[int, Pread]) -> Iterator[Stack]:
    images = Images(core, kept, root="/nonexistent")
    unwinder = Unwinder(core, list_modules(core), images, Limits(seconds=1.0))
    started = time.process_time()
    for thread in core.notes.threads:
        stack = unwinder.stack(thread)
        assert stack.frames
        assert stack.end in End
        assert all(0 <= frame.address < 1 << 64 and 0 <= frame.lookup < 1 << 64 for frame in stack.frames)
        assert all(0 <= value < 1 << 64 for frame in stack.frames for value in frame.registers.values())
        yield stack
    assert time.process_time() - started < _SECONDS
    images.close()


def _bytes(data: bytes | bytearray) -> Pread:
    return lambda count, at: bytes(data[at : at + count])


def _tables(data: bytes) -> list[range]:
    file = ElfFile(_bytes(data), "file")
    names = (".eh_frame_hdr", ".eh_frame", ".debug_frame")
    sections = [one for one in file.sections() if one.name in names]
    return [range(one.offset, one.offset + one.size_bytes) for one in sections]


def _mutate(data: bytearray, spots: list[range], chance: random.Random) -> None:
    for _ in range(chance.choice((1, 3, 10, 50, 300))):
        spot = chance.choice(spots)
        at = chance.choice(spot)
        kind = chance.randrange(4)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice(_INTERESTING)
        elif kind == 2:
            data[at] = chance.randrange(256)
        elif at + 4 <= spot.stop:
            struct.pack_into("<I", data, at, chance.choice(_WORDS) & 0xFFFFFFFF)


@pytest.mark.parametrize("mode", ["handlers", "linkage"])
@pytest.mark.parametrize(
    "flags", [("-O2",), ("-O2", "-Wl,--no-eh-frame-hdr"), ("-O2", "-fno-asynchronous-unwind-tables")]
)
def test_mutated_tables(tmp_path: Path, mode: str, flags: tuple[str, ...]) -> None:
    """Those of the program, of libc and of the dynamic linker, as archive would have kept them."""
    died = die(tmp_path, mode, *flags)
    chance = random.Random(f"{_SEED} {mode} {flags}")
    ends = set()
    with died.core.open("rb") as file:
        core = open_core(file.fileno())
        modules = [module for module in list_modules(core).listed if module.path.startswith("/")]
        whole = {module.start: Path(module.path).read_bytes() for module in modules}
        spots = {start: _tables(data) for start, data in whole.items()}
        plain = list(_walk(core, {start: _bytes(data) for start, data in whole.items()}))
        assert {stack.end for stack in plain} == {End.BOTTOM}
        for _ in range(_MUTATIONS // 4):
            mutated = {start: bytearray(data) for start, data in whole.items()}
            for start, data in mutated.items():
                _mutate(data, spots[start], chance)
                for _ in range(3):  # where the walk goes for sure
                    _mutate(data, [_own_fde(data, spots[start], plain, modules, start, chance)], chance)
            stacks = list(_walk(core, {start: _bytes(data) for start, data in mutated.items()}))
            ends |= {stack.end for stack in stacks}
    assert End.BAD_TABLE in ends or len(ends) > 1


def _own_fde(
    data: bytearray, spots: list[range], stacks: list[Stack], modules: list[Module], start: int, chance: random.Random
) -> range:
    """Return a part of a table from a place that .eh_frame_hdr names for a frame; any part where it has none."""
    [module] = [module for module in modules if module.start == start]
    within = [
        frame.lookup - module.bias
        for stack in stacks
        for frame in stack.frames
        if module.start <= frame.lookup < module.end
    ]
    at = chance.choice(chance.choice(spots))
    if within and data[spots[0].start : spots[0].start + 4] == b"\x01\x1b\x03\x3b":
        (count,) = struct.unpack_from("<I", data, spots[0].start + 8)
        pairs = list(struct.iter_unpack("<ii", bytes(data[spots[0].start + 12 :][: 8 * min(count, 1 << 16)])))
        wanted = chance.choice(within) - spots[0].start
        at = max((pair for pair in pairs if pair[0] <= wanted), default=(0, 0))[1] + spots[0].start
    spot = next((spot for spot in spots if at in spot), spots[0])
    at = min(max(at, spot.start), spot.stop - 1)
    return range(at, min(at + 48, spot.stop))


def test_mutated_stacks_and_registers(tmp_path: Path) -> None:
    died = die(tmp_path, "handlers", "-O2")
    chance = random.Random(_SEED)
    whole = died.core.read_bytes()
    header = elf.read_core(_bytes(whole))
    segments = list(elf.segments(_bytes(whole), header))
    with died.core.open("rb") as file:
        core = open_core(file.fileno())
        pointers = [thread.registers()["rsp"] for thread in core.notes.threads]
        kept = {
            module.start: _bytes(Path(module.path).read_bytes())
            for module in list_modules(core).listed
            if module.path.startswith("/")
        }
    spots = []
    for pointer in pointers:
        [segment] = [one for one in segments if one.vaddr <= pointer < one.vaddr + one.filesz]
        at = segment.offset + pointer - segment.vaddr
        spots.append(range(at, min(at + 4096, segment.offset + segment.filesz)))
    words = [struct.unpack_from("<Q", whole, at)[0] for spot in spots for at in spot[:-8:8]]
    registers = [
        range(header.notes_offset + at + 112, header.notes_offset + at + 112 + 27 * 8)
        for _name, kind, at, _size in elf.iter_notes(whole[header.notes_offset : header.notes_end])
        if kind == elf.NT_PRSTATUS
    ]
    fd = os.memfd_create("core")
    for _ in range(_MUTATIONS):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 5, 30, 100))):
            spot = chance.choice(chance.choice((spots, registers)))
            at = spot.start + 8 * chance.randrange(len(spot) // 8)
            struct.pack_into("<Q", data, at, chance.choice((chance.choice(words), chance.choice(_WORDS))))
        os.pwrite(fd, data, 0)
        list(_walk(open_core(fd), kept))
    os.close(fd)


_TEXT = 0x10000


def _made(code: bytes, stack: bytes, registers: dict[int, int], *, of_cie: bytes = b"\x0c\x07\x08\x90\x01") -> Stack:
    """Return the stack of a thread in a function with this call frame information; the registers are by pr_reg's numbers.

    The module is a file of one page: headers, .eh_frame_hdr, a CIE and an FDE.
    """
    head = cie(of_cie)
    tables = head + fde(code, 0x800 + len(head), start=0xC00, size_bytes=0x400, cie_at=0x800)
    index = struct.pack("<BBBBiIii", 1, 0x1B, 3, 0x3B, 0x800 - 0x704, 1, 0xC00 - 0x700, 0x800 + len(head) - 0x700)
    page = bytearray(4096)
    page[:64] = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    )
    page[64:120] = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 4096, 4096, 4096)
    page[120:176] = struct.pack("<IIQQQQQQ", 0x6474E550, 4, 0x700, 0x700, 0, len(index), len(index), 4)
    page[0x700 : 0x700 + len(index)] = index
    page[0x800 : 0x800 + len(tables)] = tables
    values = [registers.get(number, 0) for number in range(27)]
    values[16] = values[16] or _TEXT + 0xC10
    values[19] = values[19] or 0x70000
    notes = cores.prstatus(1, values) + cores.files((_TEXT, _TEXT + 4096, 0, b"/nonexistent"))
    fd = os.memfd_create("core")
    os.pwrite(fd, cores.core(notes, [cores.Load(_TEXT, bytes(page), 5), cores.Load(0x70000, stack, 6)]), 0)
    [found] = _walk(open_core(fd), {})
    os.close(fd)
    return found


def _words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def test_a_table_of_the_core_leads_on() -> None:
    """A module without a file is unwound by what the core has of it."""
    found = _made(b"", _words(_TEXT + 0xC20, _TEXT + 0xC30, 0), {})
    assert [frame.address - _TEXT for frame in found.frames] == [0xC10, 0xC20, 0xC30]
    assert found.end is End.BOTTOM


@pytest.mark.parametrize(
    ("code", "stack"),
    [
        (b"\x0e\x00", _words(0, 0)),  # the CFA is the stack pointer
        (b"\x13\x00", _words(0, 0)),
        (b"\x14\x07\x00", _words(_TEXT + 0xC20) * 100),  # the stack pointer is that CFA, which is the same one
        (b"\x16\x07\x01\x57", _words(_TEXT + 0xC20) * 100),
        (b"\x16\x07\x02\x77\x00", _words(_TEXT + 0xC20) * 100),  # the stack pointer stays
        (b"\x16\x10\x03\x80\x00\x96", _words(_TEXT + 0xC20) * 100),  # so does the program counter
        (b"\x0f\x03\x0a\x08\x00", _words(0)),
    ],
)
def test_tables_that_lead_in_a_circle_or_nowhere(code: bytes, stack: bytes) -> None:
    found = _made(code, stack, {})
    assert found.end in (End.CYCLE, End.NO_STACK, End.BAD_TABLE, End.BOTTOM)
    assert len(found.frames) < 200


def test_a_circle_over_two_stacks() -> None:
    """Each frame's saved rsp is that of the other."""
    stack = _words(0, 0x70028, _TEXT + 0xC20, 0, 0, 0x70008, _TEXT + 0xC20, 0)
    found = _made(b"\x0c\x07\x10\x87\x02", stack, {19: 0x70008})
    assert found.end is End.CYCLE
    assert len(found.frames) < 8


def test_a_stack_at_the_end_of_the_address_space() -> None:
    for pointer in (2**64 - 8, 2**64 - 1, 2**63, 0x70001, 1):
        found = _made(b"", _words(0), {19: pointer})
        assert found.end in (End.NO_STACK, End.NO_CALLER, End.BOTTOM)


def test_a_stack_that_is_not_aligned() -> None:
    data = b"xyz" + _words(_TEXT + 0xC20, _TEXT + 0xC30, 0)
    found = _made(b"", data, {19: 0x70003})
    assert [frame.address - _TEXT for frame in found.frames] == [0xC10, 0xC20, 0xC30]


def test_frames_without_end() -> None:
    """As many as memory has words."""
    found = _made(b"", _words(_TEXT + 0xC20) * 200000 + _words(0), {})
    assert found.end is End.BOTTOM
    assert len(found.frames) + found.omitted == 200001


def test_expressions_in_a_loop_are_cut_off() -> None:
    found = _made(b"\x0f\x03\x2f\xfd\xff", _words(0), {})
    assert found.end is End.BAD_TABLE
    assert "without end" in found.detail
