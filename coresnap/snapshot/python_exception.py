# SPDX-License-Identifier: Apache-2.0
"""The exception that Python was about to print when the process died, as of a sys.excepthook that ends in os.abort().

Found by the frame of the function that prints it. Objects are told by their types, and layouts that differ between versions of
CPython by the sizes that these types themselves have: Include/cpython/object.h, pyerrors.h, unicodeobject.h, tupleobject.h.
A build without the global interpreter lock has other objects, and nothing is found there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from coresnap.snapshot.contents import Contents
from coresnap.snapshot.frames import Named

_PRINTS = re.compile(r"_?PyErr_Print(Ex)?(\.[\w.]+)?")
_FRAMES_MAX, _WORDS_MAX, _TEXT_MAX = 64, 512, 4096
#: PyTypeObject: tp_name, tp_basicsize, tp_flags; its flags for what derives from type, BaseException, str and tuple.
_NAME_AT, _SIZE_AT, _FLAGS_AT = 24, 32, 168
_IS_TYPE, _IS_EXCEPTION, _IS_TEXT, _IS_TUPLE = 1 << 31, 1 << 30, 1 << 28, 1 << 26
#: Of any object its type; of one of variable size, and of a str, the length; of BaseException the arguments.
_TYPE_AT, _LENGTH_AT, _ARGUMENTS_AT = 8, 16, 24
#: By the size of the type: where the items of a tuple begin, and where the characters of a str that is plain ASCII.
_ITEMS_AT = {24: 24, 32: 32}
_CHARACTERS_AT = {80: 48, 64: 40}
#: The state of a str that is compact and ASCII: of kind 1, both flags set, behind 2 bits of interning, or 16 since CPython 3.14.
_STATE_AT, _STATE_SHIFTS, _PLAIN = 32, (2, 16), 0b11001


def find(contents: Contents, frames: Sequence[Named]) -> tuple[str, str]:
    """Return type and text of the exception by the faulting thread's frames, innermost first; empty where none is found."""
    for index, named in enumerate(frames[:_FRAMES_MAX]):
        if not _PRINTS.fullmatch(named.symbol):
            continue
        found = {
            address for address in _candidates(frames, index, contents) if _flags(contents, address) & _IS_EXCEPTION
        }
        if len(found) == 1:
            (address,) = found
            return _type_name(contents, address), _text(contents, address)
    return "", ""


def _candidates(frames: Sequence[Named], index: int, contents: Contents) -> Iterator[int]:
    """Yield what may be pointers to objects: the registers of a frame, and its words on the stack."""
    registers = frames[index].frame.registers
    yield from (value for name, value in registers.items() if name not in ("rip", "rsp", "pc", "sp"))
    if index + 1 < len(frames):
        above = frames[index + 1].frame.registers
        start, end = (one.get("rsp", one.get("sp", 0)) for one in (registers, above))
        yield from contents.words(start, min(max(0, end - start) // 8, _WORDS_MAX))


def _flags(contents: Contents, address: int) -> int:
    """Return the flags of an object's type; 0 where it is no object, or its type no type."""
    kind = contents.word(address + _TYPE_AT) if address and not address % 8 else None
    if not kind or kind % 8:
        return 0
    of_kind = contents.word(kind + _TYPE_AT)
    if not of_kind or of_kind % 8 or not (contents.word(of_kind + _FLAGS_AT) or 0) & _IS_TYPE:
        return 0
    return contents.word(kind + _FLAGS_AT) or 0


def _type_name(contents: Contents, address: int) -> str:
    kind = contents.word(address + _TYPE_AT) or 0
    name = contents.text(contents.word(kind + _NAME_AT) or 0, 256) or b""
    return name.decode("utf-8", "replace")


def _text(contents: Contents, address: int) -> str:
    """Return the first argument, where it is a str of plain ASCII; that is what str() of most exceptions is."""
    arguments = contents.word(address + _ARGUMENTS_AT) or 0
    if not _flags(contents, arguments) & _IS_TUPLE or not contents.word(arguments + _LENGTH_AT):
        return ""
    items_at = _ITEMS_AT.get(_size(contents, arguments))
    first = contents.word(arguments + items_at) if items_at else None
    if not first or not _flags(contents, first) & _IS_TEXT:
        return ""
    characters_at = _CHARACTERS_AT.get(_size(contents, first))
    state, length = contents.word(first + _STATE_AT) or 0, contents.word(first + _LENGTH_AT) or 0
    if not characters_at or all(state >> shift & 0b11111 != _PLAIN for shift in _STATE_SHIFTS):
        return ""
    return contents.read(first + characters_at, min(length, _TEXT_MAX)).decode("ascii", "replace")


def _size(contents: Contents, address: int) -> int:
    return contents.word((contents.word(address + _TYPE_AT) or 0) + _SIZE_AT) or 0
