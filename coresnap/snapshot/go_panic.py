# SPDX-License-Identifier: Apache-2.0
"""The text that a Go program panics with, where it is a string: the value is in the frame of runtime.gopanic.

Layouts: runtime/runtime2.go (eface: a type and a pointer to the value) and internal/abi/type.go of Go: size at 0, how much of it
has pointers at 8, alignments at 21 and 22, kind at 23 in its low 5 bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from coresnap.snapshot.contents import Contents
from coresnap.snapshot.frames import Named

_PANICS = ("runtime.gopanic", "runtime.gopanic.abi0")
_FRAMES_MAX, _WORDS_MAX, _TEXT_MAX = 64, 512, 4096
_TYPE_BYTES = 24
_STRING, _KINDS = 24, 31


def find(contents: Contents, frames: Sequence[Named]) -> str:
    """Return the text by the faulting thread's frames, innermost first; empty where none is found, or more than one."""
    for index, named in enumerate(frames[:_FRAMES_MAX]):
        if named.symbol in _PANICS and index + 1 < len(frames):
            start, end = (frames[at].frame.registers.get("rsp", 0) for at in (index, index + 1))
            words = contents.words(start, min(max(0, end - start) // 8, _WORDS_MAX))
            pairs = set(itertools.pairwise(words))
            texts = {text for kind, value in pairs if _is_string(contents, kind) and (text := _string(contents, value))}
            return texts.pop() if len(texts) == 1 else ""
    return ""


def _is_string(contents: Contents, kind: int) -> bool:
    data = contents.read(kind, _TYPE_BYTES) if kind and not kind % 8 else b""
    if len(data) < _TYPE_BYTES:
        return False
    size, pointers = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
    return (size, pointers, data[21], data[22], data[23] & _KINDS) == (16, 8, 8, 8, _STRING)


def _string(contents: Contents, address: int) -> str:
    place, length = (*contents.words(address, 2), 0, 0)[:2]
    if not 0 < length < 1 << 20:
        return ""
    text = contents.read(place, min(length, _TEXT_MAX))
    return text.decode("utf-8", "replace") if len(text) == min(length, _TEXT_MAX) else ""
