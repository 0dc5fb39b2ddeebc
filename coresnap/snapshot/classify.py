# SPDX-License-Identifier: Apache-2.0
"""What kind of crash it was: a table of kinds, each with what it asks of the crash. More than one may hold, or none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from coresnap.snapshot import signals
from coresnap.snapshot.contents import Contents
from coresnap.snapshot.core import Core
from coresnap.snapshot.frames import Named
from coresnap.snapshot.notes import Signal

_SI_KERNEL = 0x80
_MAPERR, _ACCERR, _BUS_ADRERR, _FPE_INTDIV, _SYS_SECCOMP = 1, 2, 2, 1, 1
_SI_TKILL, _SENT_BY_OTHERS = -6, (0, -1)
#: vm.mmap_min_addr, below which nothing is mapped, by default; a member of what a null pointer points at lies there.
_NULL_BYTES = 64 << 10
#: A function's own variables, and the guard that glibc puts below a thread's stack: how far from the stack it may fault.
_FRAME_BYTES, _PAGE_BYTES = 1 << 20, 4096
_UD2, _BRK = b"\x0f\x0b", b"\x20\xd4"
_HEAP = re.compile(
    r"(free|malloc|realloc|calloc|munmap_chunk|mremap_chunk|malloc_consolidate|sysmalloc|_int_\w+)\(\): |corrupted (size|double)"
    r"|double free|malloc: |invalid (chunk|fastbin)|unaligned (tcache|fastbin) chunk|break adjusted to free|chunk_main_arena"
)


class Crash(NamedTuple):
    """What a crash is judged by: the signal, and the thread that it came to, its registers and frames, innermost first.

    `message` is what the process left in memory of the error; `exception` the type of one that nobody caught.
    """

    core: Core
    contents: Contents
    signal: Signal | None
    registers: dict[str, int]
    frames: Sequence[Named] = ()
    message: str = ""
    exception: str = ""
    of_python: bool = False

    def is_signal(self, name: str, *codes: int) -> bool:
        """Say whether it was this signal, with one of these codes if any are given."""
        signal = self.signal
        return signal is not None and signals.name(signal.number) == name and (not codes or signal.code in codes)

    @property
    def address(self) -> int | None:
        """The address of the fault."""
        return self.signal.address if self.signal else None

    @property
    def program_counter(self) -> int:
        """Where the thread was."""
        return self.registers.get(self.core.machine.program_counter, 0)

    @property
    def stack_pointer(self) -> int:
        """How far down its stack was."""
        return self.registers.get("rsp", self.registers.get("sp", 0))

    @property
    def raised(self) -> bool:
        """Say whether the process sent the signal to itself."""
        signal = self.signal
        if signal is None or signal.code is None:
            return False
        return signal.code == _SI_TKILL or (signal.code in _SENT_BY_OTHERS and signal.sender_pid == self.core.notes.pid)


class Kind(NamedTuple):
    """A row: the classifier in the report, what it means to people, what has to hold."""

    name: str
    meaning: str
    holds: Callable[[Crash], bool]


def _near_null(crash: Crash) -> bool:
    address = crash.address
    return crash.is_signal("SIGSEGV", _MAPERR, _ACCERR) and address is not None and address < _NULL_BYTES


def _jumped(crash: Crash) -> bool:
    """Where no instruction can be fetched the address of the fault is that of the instruction."""
    return crash.is_signal("SIGSEGV", _MAPERR, _ACCERR) and crash.address == crash.program_counter


def _stack_is_full(crash: Crash) -> bool:
    """The fault is in the function's frame, and that lies below the stack that there is."""
    address, pointer, memory = crash.address, crash.stack_pointer, crash.core.memory
    if address is None or not crash.is_signal("SIGSEGV", _MAPERR, _ACCERR) or memory.read(address, 1):
        return False
    bottom = memory.next_after(address)
    if bottom is None or bottom - address > _FRAME_BYTES or _near_null(crash):
        return False
    return pointer - _PAGE_BYTES <= address and pointer <= bottom + _PAGE_BYTES


def _in_cut_file(crash: Crash) -> bool:
    address = crash.address
    return (
        crash.is_signal("SIGBUS", _BUS_ADRERR)
        and address is not None
        and any(mapping.start <= address < mapping.end for mapping in crash.core.notes.mappings)
    )


def _sent(crash: Crash) -> bool:
    signal = crash.signal
    return (
        signal is not None and signal.code in _SENT_BY_OTHERS and signal.sender_pid not in (crash.core.notes.pid, None)
    )


def _traps(crash: Crash) -> bool:
    """ud2, and brk or udf: what compilers put where a program must not come."""
    code = crash.contents.read(crash.program_counter, 4)
    if crash.core.machine.name == "x86_64":
        return crash.is_signal("SIGILL") and code.startswith(_UD2)
    return crash.is_signal("SIGTRAP") and code[2:] == _BRK


def _says(pattern: str) -> Callable[[Crash], bool]:
    return lambda crash: re.search(pattern, crash.message) is not None


def _calls(pattern: str) -> Callable[[Crash], bool]:
    return lambda crash: any(re.fullmatch(pattern, named.symbol) for named in crash.frames[:32] if named.symbol)


_TERMINATE = _calls("_ZSt9terminatev|_ZN10__cxxabiv111__terminateEPFvvE|_ZN9__gnu_cxx27__verbose_terminate_handlerEv")


def _terminated(crash: Crash) -> bool:
    return bool(crash.exception and not crash.of_python) or _TERMINATE(crash)


_PANIC = _calls(
    r"rust_panic|rust_begin_unwind|_ZN3std9panicking\w+|_R\w*9panicking\w*|runtime\.(gopanic|dieFromSignal|fatal\w*)"
)

# fmt: off
KINDS: tuple[Kind, ...] = (
    Kind("null-dereference", "a null pointer was followed", lambda crash: _near_null(crash) and not _jumped(crash)),
    Kind("stack-overflow", "the stack was full", _stack_is_full),
    Kind("jump-to-null", "a null pointer was called", lambda crash: _near_null(crash) and _jumped(crash)),
    Kind("jump-to-garbage", "it jumped to where no code is", lambda crash: _jumped(crash) and not _near_null(crash)),
    Kind("non-canonical-address", "an address that no memory can have was used",
         lambda crash: crash.is_signal("SIGSEGV", _SI_KERNEL)),
    Kind("protected-memory", "memory was used in a way that its protection forbids",
         lambda crash: crash.is_signal("SIGSEGV", _ACCERR) and not _stack_is_full(crash) and not _jumped(crash)),
    Kind("truncated-file", "a mapped file is shorter than its mapping", _in_cut_file),
    Kind("divide-by-zero", "an integer was divided by zero, or its quotient does not fit",
         lambda crash: crash.is_signal("SIGFPE", _FPE_INTDIV)),
    Kind("illegal-instruction", "an instruction that the processor does not have", lambda crash: crash.is_signal("SIGILL")),
    Kind("trap", "the compiler's own trap, where the program must not come", _traps),
    Kind("seccomp", "a system call that seccomp does not allow", lambda crash: crash.is_signal("SIGSYS", _SYS_SECCOMP)),
    Kind("abort", "the program gave up by itself", lambda crash: crash.is_signal("SIGABRT") and crash.raised),
    Kind("raised", "the program sent itself the signal, as the handler of an earlier one may",
         lambda crash: crash.raised and not crash.is_signal("SIGABRT")),
    Kind("sent", "another process sent the signal", _sent),
    Kind("assertion", "an assertion failed", _says(r"Assertion [`'].* failed|Unexpected error: ")),
    Kind("double-free", "memory was freed twice", _says("double free")),
    Kind("heap-corruption", "the heap's own data were overwritten, or a pointer freed that is none",
         lambda crash: _HEAP.search(crash.message) is not None),
    Kind("stack-smashing", "a function's frame was overwritten", _says("stack smashing detected")),
    Kind("buffer-overflow", "more was to be written than there is room for", _says("buffer overflow detected")),
    Kind("uncaught-exception", "an exception that nobody caught", lambda crash: bool(crash.exception)),
    Kind("terminate", "C++'s std::terminate was called", _terminated),
    Kind("out-of-memory", "there was no memory left to allocate",
         lambda crash: crash.exception in ("std::bad_alloc", "std::bad_array_new_length", "MemoryError")),
    Kind("panic", "the program panicked", _PANIC),
)
# fmt: on
MEANINGS = {kind.name: kind.meaning for kind in KINDS}


def classify(crash: Crash) -> list[str]:
    """Return the classifiers: the signal's name, then the kinds that hold; nothing where no signal killed the process."""
    signal = crash.signal
    if signal is None:
        return []
    return [signals.name(signal.number), *(kind.name for kind in KINDS if kind.holds(crash))]
