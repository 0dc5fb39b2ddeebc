# SPDX-License-Identifier: Apache-2.0
"""Signals and their codes in words: signal(7), sigaction(2), include/uapi/asm-generic/siginfo.h."""

from __future__ import annotations

import signal

from coresnap.snapshot.notes import Signal

_SENT = {
    0: ("SI_USER", "sent by kill"),
    -1: ("SI_QUEUE", "sent by sigqueue"),
    -2: ("SI_TIMER", "sent by a timer"),
    -3: ("SI_MESGQ", "sent by a message queue"),
    -4: ("SI_ASYNCIO", "sent by asynchronous input or output"),
    -5: ("SI_SIGIO", "sent by queued input or output"),
    -6: ("SI_TKILL", "sent by tgkill, as abort and raise do"),
    0x80: ("SI_KERNEL", "sent by the kernel"),
}
_CODES = {
    "SIGSEGV": {
        1: ("SEGV_MAPERR", "address not mapped"),
        2: ("SEGV_ACCERR", "mapping does not allow it"),
        3: ("SEGV_BNDERR", "bounds check failed"),
        4: ("SEGV_PKUERR", "protection key does not allow it"),
        5: ("SEGV_ACCADI", "application data integrity not enabled"),
        6: ("SEGV_ADIDERR", "application data integrity mismatch, disrupting"),
        7: ("SEGV_ADIPERR", "application data integrity mismatch, precise"),
        8: ("SEGV_MTEAERR", "memory tag mismatch, asynchronous"),
        9: ("SEGV_MTESERR", "memory tag mismatch"),
        10: ("SEGV_CPERR", "control protection violated, as a return address overwritten"),
        0x80: ("SI_KERNEL", "general protection, as at an address that is not canonical"),
    },
    "SIGBUS": {
        1: ("BUS_ADRALN", "address not aligned"),
        2: ("BUS_ADRERR", "no such physical address, as past the end of a mapped file"),
        3: ("BUS_OBJERR", "hardware error of the object"),
        4: ("BUS_MCEERR_AR", "memory error"),
        5: ("BUS_MCEERR_AO", "memory error found"),
    },
    "SIGFPE": {
        1: ("FPE_INTDIV", "integer division by zero"),
        2: ("FPE_INTOVF", "integer overflow"),
        3: ("FPE_FLTDIV", "floating-point division by zero"),
        4: ("FPE_FLTOVF", "floating-point overflow"),
        5: ("FPE_FLTUND", "floating-point underflow"),
        6: ("FPE_FLTRES", "floating-point result inexact"),
        7: ("FPE_FLTINV", "floating-point operation invalid"),
        8: ("FPE_FLTSUB", "subscript out of range"),
        14: ("FPE_FLTUNK", "floating-point exception of no known kind"),
        15: ("FPE_CONDTRAP", "trap on condition"),
    },
    "SIGILL": {
        1: ("ILL_ILLOPC", "illegal opcode"),
        2: ("ILL_ILLOPN", "illegal operand"),
        3: ("ILL_ILLADR", "illegal addressing mode"),
        4: ("ILL_ILLTRP", "illegal trap"),
        5: ("ILL_PRVOPC", "privileged opcode"),
        6: ("ILL_PRVREG", "privileged register"),
        7: ("ILL_COPROC", "coprocessor error"),
        8: ("ILL_BADSTK", "internal stack error"),
        9: ("ILL_BADIADDR", "instruction address not implemented"),
    },
    "SIGTRAP": {
        1: ("TRAP_BRKPT", "breakpoint"),
        2: ("TRAP_TRACE", "trace trap"),
        3: ("TRAP_BRANCH", "branch trap"),
        4: ("TRAP_HWBKPT", "hardware breakpoint or watchpoint"),
        5: ("TRAP_UNK", "trap of no known kind"),
        6: ("TRAP_PERF", "event of a performance counter"),
        0x80: ("SI_KERNEL", "breakpoint instruction"),
    },
    "SIGSYS": {
        1: ("SYS_SECCOMP", "system call not allowed by seccomp"),
        2: ("SYS_USER_DISPATCH", "system call given back to the process"),
    },
}


def name(number: int) -> str:
    """Return the name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def code(info: Signal) -> tuple[str, str]:
    """Return the name of the signal's code and what it means; empty texts where it has no meaning that is known."""
    if info.code is None:
        return "", ""
    return _CODES.get(name(info.number), {}).get(info.code) or _SENT.get(info.code) or ("", "")


def sentence(info: Signal) -> str:
    """Say in a line what the process died of: `SIGSEGV: address not mapped (SEGV_MAPERR) at 0x10`."""
    symbol, meaning = code(info)
    text = name(info.number)
    if symbol:
        text += f": {meaning} ({symbol})"
    elif info.code is not None:
        text += f": code {info.code}"
    if info.address is not None:
        text += f" at {info.address:#x}"
    elif info.sender_pid:
        text += f" by pid {info.sender_pid}"
    return text
