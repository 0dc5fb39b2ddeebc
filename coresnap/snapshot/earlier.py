# SPDX-License-Identifier: Apache-2.0
"""The signal that came before the one that killed: a handler ran for it, and sent itself another, or the same again.

Where the handler asked for it (SA_SIGINFO) the kernel put siginfo_t on the stack, behind the context: struct rt_sigframe of
arch/x86/include/asm/sigframe.h, struct ucontext and struct sigcontext of its uapi headers. What is told there counts only if
the context says the same: stale memory may look like anything.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from coresnap.snapshot import signals
from coresnap.snapshot.core import Core
from coresnap.snapshot.frames import Named
from coresnap.snapshot.notes import Signal, read_siginfo
from coresnap.snapshot.stacks import Found

#: From the context, which is where the stack pointer is in the frame that returns from a handler: trapno, oldmask and cr2 of
#: struct sigcontext; siginfo_t.
_TRAP_AT, _SIGINFO_AT, _SIGINFO_BYTES = 200, 304, 128
_TRAP = struct.Struct("<QQQ")
_PAGE_FAULT, _GENERAL_PROTECTION = 14, 13
_SI_KERNEL = 0x80


class Earlier(NamedTuple):
    """The signal, and the frames from where it came on: the first one's registers are those that the thread had then."""

    signal: Signal
    frames: Sequence[Named]


def earlier(core: Core, frames: Sequence[Named]) -> Earlier | None:
    """Return the first signal of the faulting thread whose handler it was still in; None where none is told for certain."""
    if core.machine.name != "x86_64":
        return None
    for index in range(1, len(frames)):
        if frames[index].frame.found == Found.SIGNAL:
            signal = _told(core, frames[index - 1].frame.registers.get("rsp", 0), frames[index].frame.address)
            if signal:
                return Earlier(signal, frames[index:])
    return None


def _told(core: Core, context: int, program_counter: int) -> Signal | None:
    data = core.memory.read(context, _SIGINFO_AT + _SIGINFO_BYTES)
    if len(data) < _SIGINFO_AT + _SIGINFO_BYTES:
        return None
    trap, _mask, fault_address = _TRAP.unpack_from(data, _TRAP_AT)
    signal = read_siginfo(data[_SIGINFO_AT:])
    kind = signals.name(signal.number)
    if kind in ("SIGSEGV", "SIGBUS") and signal.address is not None:
        return signal if trap == _PAGE_FAULT and fault_address == signal.address else None
    if kind == "SIGSEGV" and signal.code == _SI_KERNEL:
        return signal if trap == _GENERAL_PROTECTION else None
    if kind in ("SIGFPE", "SIGILL"):
        return signal if signal.address == program_counter else None
    return None
