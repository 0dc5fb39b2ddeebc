# SPDX-License-Identifier: Apache-2.0
"""What is kept of mapped files that will not be reached later: of an ELF file all that unwinding and naming want, but no code.

The files are another user's, who may be hostile: sizes are claims, contents may change while they are read, a read may block.
What is worth most comes first, and what does not fit is left out. Layout of .eh_frame_hdr: Linux Standard Base, Core,
"Exception Frames".

Run by the child that reads evidence, after the crashed process has been let go.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Iterator, Sequence

from coresnap.capture.reach import Pinned
from coresnap.ground.elf import PT_LOAD, PT_NOTE
from coresnap.ground.elf_file import PT_DYNAMIC, PT_GNU_EH_FRAME, ElfFile
from coresnap.ground.errors import BadInput

#: How long is read for; a mebibyte in the page cache takes some 0.2 ms.
_SECONDS = 1.5
BLOCK_BYTES = 1 << 20
#: What lies no further apart is kept in one piece.
_GAP_BYTES = 4096
_SMALL_BYTES = 64 << 10
#: Sections by what they are worth. A file's part of each group takes no more than half of the room.
_GROUPS = ((".dynsym", ".dynstr"), (".debug_frame", ".gnu_debugdata"), (".symtab", ".strtab"))
_PCREL_SDATA4 = 0x1B
_OFFSET_MAX = 1 << 62

Range = tuple[int, int]


class _File:
    """A file that is being kept: what is wanted of it, as (offset, size in bytes), in groups by worth."""

    def __init__(self, start: int, fd: int, groups: list[list[Range]]) -> None:
        self.start = start
        self.fd = fd
        self.groups = groups
        self.whole = True

    def blocks(self, ranges: list[Range], deadline: float) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes); a range that ends early, or finds no time left, is left there, and the file not whole."""
        for offset, size_bytes in ranges:
            for at in range(offset, offset + size_bytes, BLOCK_BYTES):
                wanted_bytes = min(BLOCK_BYTES, offset + size_bytes - at)
                data = _pread(self.fd, wanted_bytes, at) if time.monotonic() < deadline else b""
                if data:
                    yield at, data
                if len(data) < wanted_bytes:
                    self.whole = False
                    break


def keep(pinned: Sequence[Pinned], most_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start, offset in the file, bytes there) of each file, at most `most_bytes` in all.

    (start, -1, nothing) follows once all that is wanted of a file has been read.
    """
    deadline = time.monotonic() + _SECONDS
    files = [_opened(file, deadline) for file in pinned]
    left_bytes = most_bytes
    for number in range(2 + len(_GROUPS)):
        for file in files:
            ranges = file.groups[number] if number < len(file.groups) else []
            if sum(size_bytes for _offset, size_bytes in ranges) > min(left_bytes, most_bytes // 2):
                file.whole = False
                continue
            for at, data in file.blocks(ranges, deadline):
                left_bytes -= len(data)
                yield file.start, at, data
    for file in files:
        if file.fd >= 0:
            os.close(file.fd)
        if file.whole:
            yield file.start, -1, b""


def _opened(pinned: Pinned, deadline: float) -> _File:
    """Open a file for reading. Of one that will be reached, and known by its build-id, nothing is wanted, nor of what is no ELF."""
    file = _File(pinned.start, -1, [])
    try:
        if time.monotonic() >= deadline:
            raise TimeoutError
        status = os.fstat(pinned.fd)
        if stat.S_ISREG(status.st_mode):
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            file.fd = os.open(f"/proc/self/fd/{pinned.fd}", flags)
            found = ElfFile(lambda count, offset: _pread(file.fd, count, offset), "")
            is_reached = (status.st_dev, status.st_ino) == pinned.reached
            file.groups = [] if is_reached and (found.build_id() or found.go_build_id()) else _groups(found)
    except BadInput:
        pass
    except OSError:
        file.whole = False
    return file


def _pread(fd: int, count: int, offset: int) -> bytes:
    try:
        return os.pread(fd, count, offset)
    except OSError:
        return b""


def _groups(file: ElfFile) -> list[list[Range]]:
    """Return what is wanted of an ELF file: its headers and notes, what unwinding reads, then sections."""
    first = file.headers()[:]
    first += [(one.offset, min(one.filesz, _SMALL_BYTES)) for one in file.segments if one.type in (PT_NOTE, PT_DYNAMIC)]
    first += _sections(file, (".gnu_debuglink", ".note.gnu.build-id"))
    return [_joined(ranges) for ranges in (first, _unwind_tables(file), *(_sections(file, names) for names in _GROUPS))]


def _sections(file: ElfFile, names: tuple[str, ...]) -> list[Range]:
    found = [file.section(name) for name in names]
    return [(section.offset, section.size_bytes) for section in found if section is not None]


def _unwind_tables(file: ElfFile) -> list[Range]:
    """Return .eh_frame_hdr and .eh_frame, which the former leads to where there are no section headers."""
    index = file.segment(PT_GNU_EH_FRAME)
    named = _sections(file, (".eh_frame",))
    if index is None or named:
        return [*named, *([(index.offset, index.filesz)] if index else [])]
    head = file.read(index.offset, 8)
    if len(head) < 8 or head[1] != _PCREL_SDATA4:
        return [(index.offset, index.filesz)]
    address = index.vaddr + 4 + struct.unpack_from("<i", head, 4)[0]
    ends = [
        one.vaddr + one.filesz
        for one in file.segments
        if one.type == PT_LOAD and one.vaddr <= address < one.vaddr + one.filesz
    ]
    offset = file.offset_of(address)
    return [(index.offset, index.filesz), *([(offset, ends[0] - address)] if offset is not None else [])]


def _joined(ranges: list[Range]) -> list[Range]:
    """Return the ranges in order, those joined that touch or nearly do. What no file can have is left out."""
    result: list[Range] = []
    for offset, size_bytes in sorted(ranges):
        if size_bytes <= 0 or offset + size_bytes >= _OFFSET_MAX:
            continue
        start, end = (result[-1][0], sum(result[-1])) if result else (0, -_GAP_BYTES - 1)
        if offset <= end + _GAP_BYTES:
            result[-1] = start, max(end, offset + size_bytes) - start
        else:
            result.append((offset, size_bytes))
    return result
