# SPDX-License-Identifier: Apache-2.0
"""The notes of a core, decoded: who died of what, each thread's registers, the mapped files, the auxiliary vector.

Layouts: include/uapi/linux/elfcore.h, asm-generic/siginfo.h and fs/binfmt_elf.c of the kernel; little-endian, 64-bit.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from coresnap.ground import elf

NT_AUXV, NT_SIGINFO = 6, 0x53494749
THREADS_MAX = 65536
MAPPINGS_MAX = 262144
_PATH_MAX = 4096
_AUXV_MAX = 256
_PRSTATUS_REGISTERS_AT = 112
#: siginfo_t has an address for these, where the kernel raised them: SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV.
_FAULTS = (4, 5, 7, 8, 11)
#: siginfo_t has a sender for these codes: SI_USER, SI_QUEUE, SI_MESGQ, SI_TKILL.
_SENT = (0, -1, -3, -6)


class Machine(NamedTuple):
    """A machine whose cores are read: its registers in the order of struct elf_prstatus's pr_reg."""

    name: str
    registers: tuple[str, ...]
    program_counter: str
    stack_pointer: str


#: struct user_regs_struct; struct user_pt_regs.
MACHINES = {
    elf.EM_X86_64: Machine(
        "x86_64",
        (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
            *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        ),
        "rip",
        "rsp",
    ),
    elf.EM_AARCH64: Machine("aarch64", (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"), "pc", "sp"),
}


class Thread(NamedTuple):
    """A thread: its id in the pid namespace of whoever dumped it, and its registers as they stand in the note."""

    tid: int
    machine: Machine
    raw: bytes

    def registers(self) -> dict[str, int]:
        """Return the registers by name."""
        names = self.machine.registers
        return dict(zip(names, struct.unpack(f"<{len(names)}Q", self.raw), strict=True))

    @property
    def stack_pointer(self) -> int:
        """How far down the thread's stack is."""
        at = self.machine.registers.index(self.machine.stack_pointer)
        return int.from_bytes(self.raw[8 * at : 8 * at + 8], "little")


class Mapping(NamedTuple):
    """A mapped file: addresses from `start` up to `end`, the file from `offset` bytes on."""

    start: int
    end: int
    offset: int
    path: str


class Signal(NamedTuple):
    """What killed the process, from siginfo_t. The code is None where only the signal's number is known."""

    number: int
    code: int | None = None
    address: int | None = None
    sender_pid: int | None = None
    sender_uid: int | None = None


class Notes:
    """What the notes tell. The thread that crashed is the first; `missing` says what could not be read.

    There is no signal where nothing killed the process: gdb's gcore dumped it alive.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.command = ""
        self.arguments = ""
        self.signal: Signal | None = None
        self.threads: list[Thread] = []
        self.mappings: list[Mapping] = []
        self.auxv: dict[int, int] = {}
        self.missing: list[str] = []


def read(pread: elf.Pread, header: elf.CoreHeader, machine: Machine) -> Notes:
    """Read the notes of a core. What is damaged is left out, and said to be."""
    notes = Notes()
    tids: set[int] = set()
    for kind, note in elf.core_notes(pread, header):
        if kind == elf.NT_PRSTATUS:
            _read_prstatus(notes, note, machine, tids)
        elif kind == elf.NT_PRPSINFO and len(note) >= 136 and not notes.command:
            notes.pid = struct.unpack_from("<I", note, 24)[0]
            notes.command = elf.text(note[40:56])
            notes.arguments = elf.text(note[56:136])
        elif kind == NT_SIGINFO and len(note) >= 24:
            _take_siginfo(notes, read_siginfo(note))
        elif kind == NT_AUXV and not notes.auxv:
            notes.auxv = dict(struct.iter_unpack("<QQ", note[: len(note) & ~15][: 16 * _AUXV_MAX]))
        elif kind == elf.NT_FILE and not notes.mappings:
            _read_files(notes, note)
    size_bytes = header.notes_end - header.notes_offset
    if size_bytes > elf.NOTES_MAX_BYTES:
        notes.missing.append(f"the notes: at most the first {elf.NOTES_MAX_BYTES} of {size_bytes} bytes are read")
    if len(tids) > THREADS_MAX:
        notes.missing.append(f"threads: the first {THREADS_MAX} of {len(tids)}")
    return notes


def _read_prstatus(notes: Notes, note: bytes, machine: Machine, tids: set[int]) -> None:
    """struct elf_prstatus: cursig at 12, pid at 32, registers at 112."""
    end = _PRSTATUS_REGISTERS_AT + 8 * len(machine.registers)
    if len(note) < end:
        notes.missing.append(f"a thread: a note of {len(note)} bytes, {end} expected")
        return
    tid = struct.unpack_from("<I", note, 32)[0]
    number = struct.unpack_from("<H", note, 12)[0]
    if not tids and number:
        notes.signal = Signal(number)
    if tid not in tids and len(tids) < THREADS_MAX:
        notes.threads.append(Thread(tid, machine, note[_PRSTATUS_REGISTERS_AT:end]))
    tids.add(tid)


def _take_siginfo(notes: Notes, found: Signal) -> None:
    """Take the siginfo_t of the signal that killed the process, which each thread's cursig names, and whose thread it is.

    The kernel writes one, behind the first thread. gdb writes one for each thread: SIGSTOP, which is its own, where it only
    stopped a thread; and an old gdb writes the threads in an order of its own, the one that crashed anywhere.
    """
    if notes.signal and notes.signal.code is None and notes.signal.number == found.number:
        notes.signal = found
        notes.threads.insert(0, notes.threads.pop())


def read_siginfo(note: bytes) -> Signal:
    """Read siginfo_t: si_signo at 0, si_code at 8; si_addr at 16 of a fault, si_pid at 16 and si_uid at 20 of what was sent."""
    number, _errno, code = struct.unpack_from("<iii", note, 0)
    if number in _FAULTS and 0 < code < 0x80:
        return Signal(number, code, address=struct.unpack_from("<Q", note, 16)[0])
    if code in _SENT:
        pid, uid = struct.unpack_from("<iI", note, 16)
        return Signal(number, code, sender_pid=pid, sender_uid=uid)
    return Signal(number, code)


def _read_files(notes: Notes, note: bytes) -> None:
    """NT_FILE: count, page size, (start, end, offset in pages) each, then the names, NUL-terminated."""
    if len(note) < 16:
        notes.missing.append(f"the mapped files: a note of {len(note)} bytes")
        return
    count, page_bytes = struct.unpack_from("<QQ", note, 0)
    names_at = 16 + 24 * count
    if names_at > len(note) or not 0 < page_bytes <= 1 << 21:
        notes.missing.append(f"the mapped files: {count} entries claimed in {len(note)} bytes, pages of {page_bytes}")
        return
    names = note[names_at:].split(b"\0", min(count, MAPPINGS_MAX))
    entries = struct.iter_unpack("<QQQ", note[16 : min(names_at, 16 + 24 * MAPPINGS_MAX)])
    for (start, end, offset), name in zip(entries, names, strict=False):
        if start < end:
            path = name[:_PATH_MAX].decode("utf-8", "replace")
            notes.mappings.append(Mapping(start, end, offset * page_bytes, path))
    if len(notes.mappings) < count:
        notes.missing.append(f"the mapped files: {len(notes.mappings)} of {count} are whole")
