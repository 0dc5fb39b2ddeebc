# SPDX-License-Identifier: Apache-2.0
"""A core of any size and of a known share of pages that are not zero: bigcore.py MIB [FILL] > core

It is what no crash can give: its non-zero pages are counted beforehand, and it needs no memory of its size. The layout is
that of a kernel: ELF header, program headers (PT_NOTE first), notes, then page-aligned PT_LOAD data; see elf(5), core(5)
and struct elf_prstatus. Runs of zero and of other pages alternate at random lengths, always the same ones.
"""

from __future__ import annotations

import random
import struct
import sys
from typing import BinaryIO

PAGE_BYTES = 4096
_PATTERN_PAGES = 4096
_SEGMENT_BYTES = 64 << 20
_BASE = 0x7F0000000000
_PID, _SIGNAL, _ADDRESS = 4242, 11, 0x10
_EM_X86_64, _ET_CORE, _PT_LOAD, _PT_NOTE = 62, 4, 1, 4


def write(file: BinaryIO, size_bytes: int, fill_percent: int = 44, threads: int = 4) -> int:
    """Write a core of x86-64; return how many bytes its pages that are not zero have, headers and notes among them.

    `size_bytes` counts the memory in it, in whole pages; the headers and notes come on top.
    """
    left_bytes = size_bytes - size_bytes % PAGE_BYTES
    head = _head(left_bytes, threads)
    file.write(head)
    nonzero_bytes = len(head)
    pattern = memoryview(_pattern(fill_percent))
    # A partial pattern is counted page by page, a whole one is known.
    while left_bytes:
        part = pattern[: min(left_bytes, len(pattern))]
        file.write(part)
        whole = len(part) == len(pattern)
        nonzero_bytes += _filled(fill_percent) * PAGE_BYTES if whole else _count(part)
        left_bytes -= len(part)
    file.flush()
    return nonzero_bytes


def _head(memory_bytes: int, threads: int) -> bytes:
    """Return what comes before the memory, filled up to a whole page with something that is not zero."""
    notes = b"".join(_notes(threads))
    sizes = [min(_SEGMENT_BYTES, memory_bytes - at) for at in range(0, memory_bytes, _SEGMENT_BYTES)]
    notes_at = 64 + 56 * (len(sizes) + 1)
    offset = -(-(notes_at + len(notes)) // PAGE_BYTES) * PAGE_BYTES
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", _ET_CORE, _EM_X86_64, 1, 0, 64, 0, 0, 64, 56, len(sizes) + 1, 0, 0, 0)
    segments = [struct.pack("<IIQQQQQQ", _PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4)]
    address, at = _BASE, offset
    for bytes_ in sizes:
        segments.append(struct.pack("<IIQQQQQQ", _PT_LOAD, 6, at, address, 0, bytes_, bytes_, PAGE_BYTES))
        address, at = address + bytes_, at + bytes_
    return b"".join([ident, header, *segments, notes]).ljust(offset, b"\x01")


def _notes(threads: int) -> list[bytes]:
    process = struct.pack("<bcbb4xQIIiiii", 0, b"R", 0, 0, 0, 0, 0, _PID, 1, _PID, _PID) + b"bigcore".ljust(96, b"\0")
    siginfo = struct.pack("<iiiiQ", _SIGNAL, 0, 1, 0, _ADDRESS).ljust(128, b"\0")
    auxv = struct.pack("<QQQQ", 6, PAGE_BYTES, 0, 0)  # AT_PAGESZ, AT_NULL
    files = struct.pack("<QQ", 0, PAGE_BYTES)
    first, *others = (_note(1, _prstatus(_PID + index)) for index in range(threads))
    about = [_note(3, process), _note(0x53494749, siginfo), _note(6, auxv), _note(0x46494C45, files)]
    return [first, *about, *others]


def _note(kind: int, data: bytes) -> bytes:
    return struct.pack("<III8s", 5, len(data), kind, b"CORE") + data.ljust(-(-len(data) // 4) * 4, b"\0")


def _prstatus(tid: int) -> bytes:
    """si_signo 0, cursig 12, pid 32, registers 112 (rip the 17th, rsp the 20th), 336 bytes in all."""
    registers = [0] * 27
    registers[16], registers[19] = _BASE, _BASE + PAGE_BYTES
    start = struct.pack("<iiihhQQiiii", _SIGNAL, 0, 0, _SIGNAL, 0, 0, 0, tid, 1, _PID, _PID)
    return start.ljust(112, b"\0") + struct.pack("<27Q", *registers) + bytes(8)


def _filled(fill_percent: int) -> int:
    return _PATTERN_PAGES * fill_percent // 100


def _pattern(fill_percent: int) -> bytes:
    """Return pages in runs of 1 to 32; those that are not zero differ, some in their last byte alone."""
    chance = random.Random(fill_percent)
    filled, free = _filled(fill_percent), _PATTERN_PAGES - _filled(fill_percent)
    pages: list[bytes] = []
    while filled or free:
        of_zeros = chance.randrange(filled + free) < free
        run = min(chance.randint(1, 32), free if of_zeros else filled)
        if of_zeros:
            free -= run
            pages.append(bytes(run * PAGE_BYTES))
            continue
        filled -= run
        for _ in range(run):
            data = chance.randbytes(chance.choice([1, 64, PAGE_BYTES - 1])) + b"\xff"
            pages.append(data.rjust(PAGE_BYTES, b"\0"))
    return b"".join(pages)


def _count(memory: memoryview) -> int:
    zero = bytes(PAGE_BYTES)
    pages = (memory[at : at + PAGE_BYTES] for at in range(0, len(memory), PAGE_BYTES))
    return PAGE_BYTES * sum(page != zero for page in pages)


def main() -> int:
    """Write a core to standard output; say on standard error what is in it."""
    if len(sys.argv) < 2 or sys.stdout.isatty():
        print("usage: bigcore.py MIB [FILL] > core", file=sys.stderr)
        return 2
    fill_percent = int(sys.argv[2]) if len(sys.argv) > 2 else 44
    nonzero_bytes = write(sys.stdout.buffer, int(sys.argv[1]) << 20, fill_percent)
    print(f"{nonzero_bytes} bytes in pages that are not zero", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
