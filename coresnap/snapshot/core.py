# SPDX-License-Identifier: Apache-2.0
"""A core as a typed, bounded reader: its notes decoded, its memory by virtual address."""

from __future__ import annotations

import bisect
import os
import struct
from dataclasses import dataclass, field

from coresnap.ground import elf
from coresnap.ground.errors import BadInput

NT_AUXV, NT_SIGINFO, NT_FILE = 6, 0x53494749, 0x46494C45
THREADS_MAX = 65536
MAPPINGS_MAX = 262144
_PATH_MAX = 4096

#: pr_reg of struct elf_prstatus, in its order (struct user_regs_struct; struct user_pt_regs).
REGISTERS = {
    elf.EM_X86_64: (
        *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
        *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
    ),
    elf.EM_AARCH64: (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"),
}
PROGRAM_COUNTER = {elf.EM_X86_64: "rip", elf.EM_AARCH64: "pc"}
MACHINES = {elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "aarch64"}
_PRSTATUS_REGISTERS_AT = 112


@dataclass(frozen=True)
class Thread:
    """A thread: its id in the namespace of whoever dumped it, and its registers."""

    tid: int
    registers: dict[str, int]


@dataclass(frozen=True)
class Mapping:
    """A mapped file: addresses from `start` up to `end`, the file from `offset` bytes on."""

    start: int
    end: int
    offset: int
    path: str


@dataclass(frozen=True)
class Signal:
    """siginfo_t of the signal that killed the process; `address` where the signal has one, `sender` where a process sent it."""

    number: int
    code: int
    address: int | None
    sender_pid: int | None


@dataclass
class Core:
    """A core that has been read. `missing` says what could not be, and why."""

    fd: int
    header: elf.CoreHeader
    size_bytes: int
    pid: int = 0
    command: str = ""
    arguments: str = ""
    signal: Signal | None = None
    threads: list[Thread] = field(default_factory=list)
    mappings: list[Mapping] = field(default_factory=list)
    auxv: dict[int, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    _loads: list[elf.Segment] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)

    def read(self, address: int, size_bytes: int) -> bytes:
        """Return memory of the process, fewer bytes where the core does not have them."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return b""
        segment = self._loads[index]
        left_bytes = segment.vaddr + segment.filesz - address
        if left_bytes <= 0:
            return b""
        return _pread(self.fd, min(size_bytes, left_bytes), segment.offset + address - segment.vaddr)


def _pread(fd: int, count: int, offset: int) -> bytes:
    """Read at an offset that the core itself gave: one that no file can have reads as nothing."""
    return os.pread(fd, count, offset) if 0 <= offset < 1 << 62 else b""


def open_core(fd: int) -> Core:
    """Read the core at `fd`. Raises BadInput where not even its notes can be read, or it is of another machine."""
    header = elf.read_core(lambda count, offset: _pread(fd, count, offset))
    if header.elf_class != 64:
        raise BadInput("core: 32-bit", hint="coresnap-snapshot reads 64-bit cores; gdb reads this one")
    if header.machine not in REGISTERS or header.order != "<":
        raise BadInput(
            f"core: machine {header.machine} is not supported", hint="coresnap-snapshot reads x86-64 and aarch64 cores"
        )
    core = Core(fd, header, os.fstat(fd).st_size)
    core._loads = sorted((s for s in header.segments if s.type == elf.PT_LOAD and s.filesz), key=lambda s: s.vaddr)
    core._starts = [segment.vaddr for segment in core._loads]
    _read_notes(core)
    if core.size_bytes < header.expected_bytes:
        core.missing.append(f"the core is cut: {core.size_bytes} of {header.expected_bytes} bytes")
    return core


def _read_notes(core: Core) -> None:
    header = core.header
    data = _pread(core.fd, header.notes_end - header.notes_offset, header.notes_offset)
    for name, kind, at, size_bytes in elf.iter_notes(data):
        if name != "CORE":
            continue
        note = data[at : at + size_bytes]
        if kind == elf.NT_PRSTATUS:
            _read_prstatus(core, note)
        elif kind == elf.NT_PRPSINFO and size_bytes >= 136:
            core.pid = struct.unpack_from("<I", note, 24)[0]
            core.command = _text(note[40:56])
            core.arguments = _text(note[56:136])
        elif kind == NT_SIGINFO and size_bytes >= 24:
            core.signal = _read_siginfo(note)
        elif kind == NT_AUXV:
            core.auxv = dict(struct.iter_unpack("<QQ", note[: size_bytes & ~15][: 16 * 256]))
        elif kind == NT_FILE:
            _read_files(core, note)
    if not core.threads:
        raise BadInput("core: its notes tell of no thread", hint="it is cut in its notes, or no core of Linux")
    if len(data) < header.notes_end - header.notes_offset:
        core.missing.append(f"the notes are cut: {len(data)} of {header.notes_end - header.notes_offset} bytes")


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace")


def _read_prstatus(core: Core, note: bytes) -> None:
    """struct elf_prstatus: pid at 32, registers at 112."""
    names = REGISTERS[core.header.machine]
    if len(note) < _PRSTATUS_REGISTERS_AT + 8 * len(names) or len(core.threads) >= THREADS_MAX:
        return
    values = struct.unpack_from(f"<{len(names)}Q", note, _PRSTATUS_REGISTERS_AT)
    core.threads.append(Thread(struct.unpack_from("<I", note, 32)[0], dict(zip(names, values, strict=True))))


def _read_siginfo(note: bytes) -> Signal:
    """siginfo_t: si_signo 0, si_code 8; si_addr 16 for faults that have a positive code, si_pid 16 for sent signals."""
    number, _errno, code = struct.unpack_from("<iii", note, 0)
    address = struct.unpack_from("<Q", note, 16)[0]
    is_fault = number in (4, 5, 7, 8, 11) and 0 < code < 0x80
    sender = struct.unpack_from("<i", note, 16)[0] if code <= 0 else None
    return Signal(number, code, address if is_fault else None, sender)


def _read_files(core: Core, note: bytes) -> None:
    """NT_FILE: count, page size, (start, end, offset in pages) each, then the names, NUL-terminated."""
    if len(note) < 16:
        return
    count, page_bytes = struct.unpack_from("<QQ", note, 0)
    names_at = 16 + 24 * count
    if count > MAPPINGS_MAX or names_at > len(note) or not 0 < page_bytes <= 1 << 21:
        core.missing.append(f"the list of mapped files is damaged: {count} entries in {len(note)} bytes")
        return
    names = note[names_at:].split(b"\0")
    for index, (start, end, offset) in enumerate(struct.iter_unpack("<QQQ", note[16:names_at])):
        if index >= len(names) or not start < end:
            core.missing.append("the list of mapped files is damaged: an entry has no name, or no extent")
            return
        path = names[index][:_PATH_MAX].decode("utf-8", "replace")
        core.mappings.append(Mapping(start, end, offset * page_bytes, path))
