# SPDX-License-Identifier: Apache-2.0
"""What a process left in memory of its error. What cannot be found for certain is left out, never guessed.

glibc keeps the text that abort was called with, an assertion's among it, behind __abort_msg (assert/assert.c and
sysdeps/posix/libc_fatal.c of glibc: struct abort_msg_s, an unsigned size of the whole, then the text). A C++ exception lies
behind a header: struct __cxa_exception of the Itanium C++ ABI as of libstdc++ and libc++abi, whose class, GNUCC++ or CLNGC++
and a NUL, is what it is known by. Its type_info has a pointer to its name; the text of std::runtime_error and
std::logic_error, and of what derives from them alone, is the pointer behind their first. Rust's standard library formats the
line of a panic on the stack.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from coresnap.snapshot import go_panic, python_exception
from coresnap.snapshot.contents import Contents
from coresnap.snapshot.core import Core
from coresnap.snapshot.frames import Named
from coresnap.snapshot.modules import AT_ENTRY, Module, Modules

_TEXT_MAX = 4096
_LIBC = re.compile(r"libc[-.][\d.so]+")
_LIBCS_MAX = 4  #: dlmopen(3) makes more of them
_FRAMES_MAX = 24
_FRAME_WORDS_MAX = 512
#: Whose exception it is, libstdc++'s or libc++'s, and how far before its header its count of references stands: once it has been
#: handled this is 0, or, since the memory is free then, something else that is not small.
_CLASSES = {int.from_bytes(b"GNUCC++\0", "big"): 96, int.from_bytes(b"CLNGC++\0", "big"): 88}
_REFERENCES_MAX = 1 << 16
#: One that std::rethrow_exception made refers to another's object: how far before its header the pointer to that stands.
_REFERRING = {int.from_bytes(b"GNUCC++\1", "big"): 80, int.from_bytes(b"CLNGC++\1", "big"): 88}
#: From the start of a struct __cxa_exception to its unwind header, and from there to the object that was thrown.
_HEADER_AT, _OBJECT_AT = 80, 32
_BASES_MAX = 16
_NAME_MAX = 1024
_SINGLE_BASE = "_ZTVN10__cxxabiv120__si_class_type_infoE"
_WITH_TEXT = ("St13runtime_error", "St11logic_error")
#: Who holds a pointer to the exception when the program ends of it.
_THROWERS = re.compile(
    r"__cxa_(throw|rethrow\w*|call_terminate)|__clang_call_terminate|_ZSt9terminatev|_ZN10__cxxabiv111__terminateEPFvvE"
    r"|_ZSt17rethrow_exception\w*"
)
#: Functions of a Rust program that panics; one of them has a pointer to where: core::panic::Location, the file's name (pointer
#: and length), line and column.
_PANICS = re.compile(
    r"rust_panic|rust_begin_unwind|_RNv\w*7___rustc\w*|_ZN(3std|4core)9panicking.*|_R\w*(3std|4core)9panicking.*"
)
_LOCATION = struct.Struct("<QQII")
_PANIC_BELOW_BYTES, _PANIC_ABOVE_BYTES = 64 << 10, 32 << 10
_PANIC = re.compile(
    rb"thread '[^'\0\n]{0,200}' (?:\(\d+\) )?panicked at ([^\0\n]{1,500}):(\d{1,9}):(\d{1,9}):\n[^\0]{1,1000}?(?=\n|\0)"
)


class Message(NamedTuple):
    """The text, and the type of an exception that nobody caught, of C++ or Python; either may be empty."""

    text: str = ""
    exception: str = ""
    of_python: bool = False


def find(
    core: Core, contents: Contents, listed: Modules, frames: Sequence[Named], demangle: Callable[[str], str]
) -> Message:
    """Return what the process said of its error; `frames` are the faulting thread's, innermost first."""
    thrown = _exception(contents, listed, frames, demangle)
    if thrown.exception:
        return thrown
    kind, text = python_exception.find(contents, frames)
    if kind:
        return Message(f"{kind}: {text}" if text else kind, kind, of_python=True)
    panic = _panic(core, contents, frames)
    if panic:
        return Message(panic)
    panic = go_panic.find(contents, frames)
    if panic:
        return Message(f"panic: {panic}")
    for module in _libcs(core, listed):
        text = _abort_text(contents, module)
        if text:
            return Message(text)
    return Message()


def _libcs(core: Core, listed: Modules) -> Iterator[Module]:
    """Yield glibc, and the executable, which may have it inside."""
    libcs = (module for module in listed.listed if _LIBC.fullmatch(os.path.basename(module.path)))
    yield from itertools.islice(libcs, _LIBCS_MAX)
    main = listed.find(core.notes.auxv.get(AT_ENTRY, 0))
    if main:
        yield main


def _abort_text(contents: Contents, module: Module) -> str:
    at = contents.address_of(module, "__abort_msg")
    place = contents.word(at) if at else None
    if not place:
        return ""
    size_bytes = int.from_bytes(contents.read(place, 4), "little")
    if not 4 < size_bytes <= 1 << 20:
        return ""
    return _clean(contents.text(place + 4, min(size_bytes - 4, _TEXT_MAX)) or b"")


def _clean(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()


def _exception(contents: Contents, listed: Modules, frames: Sequence[Named], demangle: Callable[[str], str]) -> Message:
    """Find the exception in the registers and on the stack of those functions that end the program because of it."""
    for candidate in _candidates(contents, frames):
        header = _primary(contents, candidate)
        if not header:
            continue
        names = list(_type_names(contents, listed, contents.word(header - _HEADER_AT) or 0))
        if not names:
            continue
        shown = demangle(names[0])
        text = b""
        if any(name in _WITH_TEXT for name in names):
            text = contents.text(contents.word(header + _OBJECT_AT + 8) or 0, _TEXT_MAX) or b""
        said = _clean(text)
        return Message(f"{shown}: {said}" if said else shown, shown)
    return Message()


def _primary(contents: Contents, candidate: int) -> int:
    """Return the unwind header of the exception that this is the header of, or that it refers to; 0 where there is none."""
    class_ = contents.word(candidate)
    if class_ in _REFERRING:
        candidate = (contents.word(candidate - _REFERRING[class_]) or 0) - _OBJECT_AT
        class_ = contents.word(candidate)
    if class_ not in _CLASSES:
        return 0
    return candidate if 0 < (contents.word(candidate - _CLASSES[class_]) or 0) < _REFERENCES_MAX else 0


def _candidates(contents: Contents, frames: Sequence[Named]) -> Iterator[int]:
    """Yield what may be pointers to an exception's header: what the throwers hold, then what those hold that they called."""
    throwers = [index for index, named in enumerate(frames[:_FRAMES_MAX]) if _THROWERS.fullmatch(named.symbol)]
    for index in [*throwers, *(index for index in range(max(throwers, default=0)) if index not in throwers)]:
        registers = frames[index].frame.registers
        yield from (value for name, value in registers.items() if name not in ("rip", "rsp", "pc", "sp"))
        start = _stack_pointer(frames[index])
        end = _stack_pointer(frames[index + 1]) if index + 1 < len(frames) else start
        yield from contents.words(start, min(max(0, end - start) // 8, _FRAME_WORDS_MAX))


def _type_names(contents: Contents, listed: Modules, kind: int) -> Iterator[str]:
    """Yield the mangled name of a type, and those of its bases as long as there is one alone."""
    for _ in range(_BASES_MAX):
        table, name_at = (*contents.words(kind, 2), 0, 0)[:2]
        name = (contents.text(name_at, _NAME_MAX) or b"").lstrip(b"*") if name_at else b""
        if not name.isascii() or not name:
            return
        yield name.decode()
        module = listed.find(table)
        of_one_base = contents.address_of(module, _SINGLE_BASE) if module else None
        if of_one_base is None or table != of_one_base + 16:
            return
        kind = contents.word(kind + 16) or 0


def _panic(core: Core, contents: Contents, frames: Sequence[Named]) -> str:
    """Find the line that Rust's default hook wrote on the stack, if it is of the place where the thread panics now."""
    within = [index for index, named in enumerate(frames[:_FRAMES_MAX]) if _PANICS.fullmatch(named.symbol)]
    if not within:
        return ""
    first, last = _stack_pointer(frames[within[0]]), _stack_pointer(frames[min(within[-1] + 1, len(frames) - 1)])
    start = _stack_pointer(frames[0])
    data = core.memory.read(max(0, start - _PANIC_BELOW_BYTES), _PANIC_BELOW_BYTES + _PANIC_ABOVE_BYTES)
    for found in _PANIC.finditer(data):
        place = found[1], int(found[2]), int(found[3])
        words = contents.words(first, min(max(0, last - first) // 8, _FRAME_WORDS_MAX))
        if any(_is_location(contents, word, place) for word in words):
            return _clean(found[0])
    return ""


def _is_location(contents: Contents, address: int, place: tuple[bytes, int, int]) -> bool:
    data = contents.read(address, _LOCATION.size)
    if len(data) < _LOCATION.size:
        return False
    name_at, name_bytes, line, column = _LOCATION.unpack(data)
    name, *numbers = place
    # The length of a name may count a NUL at its end.
    return [line, column] == numbers and name_bytes - len(name) in (0, 1) and contents.read(name_at, len(name)) == name


def _stack_pointer(named: Named) -> int:
    registers = named.frame.registers
    return registers.get("rsp", registers.get("sp", 0))
