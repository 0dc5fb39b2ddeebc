# SPDX-License-Identifier: Apache-2.0
"""What the unwinder has to know of a machine.

All else in this package is the same on each, but code.py and guesses.py, which know what calls look like in code and on stacks.

x86-64: System V ABI, AMD64 supplement: 3.2 (registers, frames) and 3.6.2 (DWARF numbers); struct ucontext and struct
sigcontext_64 of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

from coresnap.snapshot import notes
from coresnap.snapshot.notes import Thread


class Machine(NamedTuple):
    """A machine: its registers by their DWARF numbers, and of these the ones with a part of their own.

    `kept` are those that a function leaves as they were for its caller. `sigreturn` are the instructions that a signal handler
    returns to; the registers lie at `context` bytes above the stack pointer then, by number, and at `selector` the one of the
    code segment, which is always the same.
    """

    registers: tuple[str, ...]
    program_counter: int
    stack_pointer: int
    frame_pointer: int
    kept: tuple[int, ...]
    sigreturn: tuple[bytes, ...]
    context: dict[int, int]
    selector: tuple[int, int]
    read: Callable[[bytes], tuple[int, ...]]

    def of(self, thread: Thread) -> list[int]:
        """Return the registers of a thread by their DWARF numbers."""
        return list(self.read(thread.raw))


def _reader(note: notes.Machine, registers: tuple[str, ...]) -> Callable[[bytes], tuple[int, ...]]:
    """Return what reads a note's registers in the order of their DWARF numbers."""
    layout = struct.Struct(f"<{len(note.registers)}Q")
    pick = itemgetter(*(note.registers.index(name) for name in registers))
    return lambda raw: pick(layout.unpack(raw))


_X86_64 = (
    *("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
)
#: struct sigcontext_64, which stands 40 bytes into struct ucontext.
_SIGCONTEXT = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip"),
)

MACHINES = {
    "x86_64": Machine(
        registers=_X86_64,
        program_counter=16,
        stack_pointer=7,
        frame_pointer=6,
        kept=(3, 6, 7, 12, 13, 14, 15, 16),
        # mov $15, %rax (or %eax); syscall
        sigreturn=(b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05", b"\xb8\x0f\0\0\0\x0f\x05"),
        context={_X86_64.index(name): 40 + 8 * index for index, name in enumerate(_SIGCONTEXT)},
        selector=(40 + 8 * 18, 0x33),
        read=_reader(next(one for one in notes.MACHINES.values() if one.name == "x86_64"), _X86_64),
    )
}
