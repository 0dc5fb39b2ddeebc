# SPDX-License-Identifier: Apache-2.0
"""A core as a bounded reader: its notes decoded, and the memory of the process by virtual address."""

from __future__ import annotations

import bisect
import operator
import os
import struct
from array import array
from collections.abc import Iterable
from typing import NamedTuple

from coresnap.ground import elf
from coresnap.ground.errors import BadInput
from coresnap.snapshot import notes
from coresnap.snapshot.notes import Machine, Notes

_READ_MAX_BYTES = 16 << 20
_PIECES_MAX = 64
_ADDRESS_MAX = (1 << 64) - 1
_HINT = "a gdb of that machine may read it"
_MACHINES = {2: "sparc", 3: "i386", 8: "mips", 20: "powerpc", 21: "powerpc64", 22: "s390", 40: "arm", 243: "riscv"}
_MACHINES |= {43: "sparc64", 62: "x86-64", 183: "aarch64", 258: "loongarch"}
#: What machines of 64 bits are called where pointers have 32 of them.
_NARROW = {62: " (x32)", 183: " (ilp32)"}
#: Who writes cores of what is no process, by the names of their notes.
_OF_NO_PROCESS = {"VMCOREINFO": "a kernel", "QEMU": "a virtual machine", "VBCORE": "a virtual machine"}


class Memory:
    """The memory that a core has, in arrays by address: there may be a million segments. `fd` is the core's.

    Of addresses that several segments have those of the last one to start count; `overlapping` are those that start within another.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._starts = array("Q")
        self._sizes = array("Q")
        self._offsets = array("Q")
        self._executable = array("Q")
        self._executable_ends = array("Q")
        self.overlapping = 0

    def load(self, segments: Iterable[elf.Segment]) -> None:
        """Take the segments. A core may have them in any order (kernel.core_sort_vma)."""
        for segment in segments:
            if segment.type == elf.PT_LOAD and segment.filesz:
                self._starts.append(segment.vaddr)
                self._sizes.append(segment.filesz)
                self._offsets.append(segment.offset)
            if segment.type == elf.PT_LOAD and segment.flags & elf.PF_X:
                self._executable.append(segment.vaddr)
                self._executable_ends.append(min(segment.vaddr + segment.memsz, _ADDRESS_MAX))
        order = sorted(range(len(self._executable)), key=self._executable.__getitem__)
        self._executable, self._executable_ends = (
            array("Q", [column[index] for index in order]) for column in (self._executable, self._executable_ends)
        )
        order = sorted(range(len(self._starts)), key=self._starts.__getitem__)
        self._starts, self._sizes, self._offsets = (
            array("Q", [column[index] for index in order]) for column in (self._starts, self._sizes, self._offsets)
        )
        ends = map(operator.add, self._starts, self._sizes)
        self.overlapping = sum(map(operator.lt, self._starts[1:], ends))

    def read(self, address: int, size_bytes: int) -> bytes:
        """Return memory of the process, over the borders of segments; fewer bytes where the core does not have them."""
        pieces: list[bytes] = []
        left_bytes = min(size_bytes, _READ_MAX_BYTES)
        index = bisect.bisect_right(self._starts, address) - 1
        while left_bytes > 0 and 0 <= index < len(self._starts) and len(pieces) < _PIECES_MAX:
            start = self._starts[index]
            wanted_bytes = min(left_bytes, start + self._sizes[index] - address)
            if address < start or wanted_bytes <= 0:
                break
            pieces.append(pread(self.fd, wanted_bytes, self._offsets[index] + address - start))
            if len(pieces[-1]) < wanted_bytes:
                break
            address, left_bytes, index = address + wanted_bytes, left_bytes - wanted_bytes, index + 1
        return b"".join(pieces)

    def next_after(self, address: int) -> int | None:
        """Return where the first segment begins, of those that the core has, above an address."""
        index = bisect.bisect_right(self._starts, address)
        return self._starts[index] if index < len(self._starts) else None

    def is_executable(self, start: int, end: int) -> bool:
        """Say whether an executable segment starts from `start` on and before `end`, be it in the core or left out."""
        index = bisect.bisect_left(self._executable, start)
        return index < len(self._executable) and self._executable[index] < end

    def has_code(self, address: int) -> bool:
        """Say whether an executable segment has the address, be its bytes in the core or left out."""
        index = bisect.bisect_right(self._executable, address) - 1
        return index >= 0 and address < self._executable_ends[index]


class Core(NamedTuple):
    """A core that has been read. `expected_bytes` is its size as its headers have it."""

    machine: Machine
    notes: Notes
    memory: Memory
    size_bytes: int
    expected_bytes: int
    notes_are_cut: bool
    time: int

    @property
    def truncated(self) -> bool:
        """Say whether the core ends before its headers say that it does."""
        return self.size_bytes < self.expected_bytes


def pread(fd: int, count: int, offset: int) -> bytes:
    """Read at an offset that the core itself gave: at one that no file can have there is nothing."""
    return os.pread(fd, count, offset) if count > 0 and offset + count < 1 << 63 else b""


def _check_kind(head: bytes) -> None:
    """Raise BadInput by the first bytes of a core that is not of 64 bits, little-endian, of a machine that is known."""
    is_wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    (number,) = struct.unpack_from(order + "H", head, 18) if len(head) >= 20 else (0,)
    if is_wide and order == "<" and number in notes.MACHINES:
        return
    machine = _MACHINES.get(number, f"ELF machine {number}")
    what = f"64-bit, of {machine}" if is_wide else f"32-bit, of {machine}{_NARROW.get(number, '')}"
    order = ", big-endian" if order == ">" else ""
    raise BadInput(f"core: {what}{order}: only 64-bit ones of x86-64 and aarch64 are read", hint=_HINT)


def _check_process(read_at: elf.Pread, header: elf.CoreHeader) -> None:
    """Raise BadInput where a core without what each process has is of something else."""
    data = read_at(min(header.notes_end - header.notes_offset, elf.NOTE_MAX_BYTES), header.notes_offset)
    for name, _kind, _at, _size in elf.iter_notes(data):
        if name in _OF_NO_PROCESS:
            raise BadInput(f"core: of {_OF_NO_PROCESS[name]}, not of a process", hint="crash(8) and drgn read it")


def open_core(fd: int) -> Core:
    """Read the core at `fd`. Raises BadInput where not even its notes can be read, or it is of another machine."""

    def read_at(count: int, offset: int) -> bytes:
        return pread(fd, count, offset)

    head = read_at(64, 0)
    if not elf.looks_like_core(head):
        _check_kind(head)  # first of all: the rest may be anywhere in another one
    header = elf.read_core(read_at)
    machine = notes.MACHINES[header.machine]
    if not header.notes_end:
        raise BadInput("core: no segment of notes", hint="it is damaged, or no core of a Linux process")
    memory = Memory(fd)
    memory.load(elf.segments(read_at, header))
    found = notes.read(read_at, header, machine)
    status = os.fstat(fd)
    if not found.auxv:
        _check_process(read_at, header)
    if not found.threads:
        where = f"its notes, at {header.notes_offset} to {header.notes_end}, tell of no thread"
        cut = status.st_size < header.notes_end
        hint = f"it is cut at {status.st_size}" if cut else "it is damaged, or no core of a Linux process"
        raise BadInput(f"core: {where}", hint=hint)
    for version in {head[6], *struct.unpack_from("<I", head, 20)} - {1}:
        found.missing.append(f"the core: ELF of version {version}, read as version 1")
    return Core(
        machine=machine,
        notes=found,
        memory=memory,
        size_bytes=status.st_size,
        expected_bytes=header.expected_bytes,
        notes_are_cut=status.st_size < header.notes_end,
        time=int(status.st_mtime),
    )
