# SPDX-License-Identifier: Apache-2.0
"""The fingerprint: one text for one bug, wherever it was loaded and whichever build of the same functions it was.

It is made of the signal, of the type of an exception that nobody caught, and of the innermost functions of the program
itself. These do not count, since they vary where the bug is the same:

* addresses, build-ids, and offsets where there is a name; of a frame without a name its offset in its file is all there is;
* the C, C++ and Rust runtimes, which raise what the program brought about, and by different ways in different versions;
* the handler of a signal that raises another one: what counts is where the first came;
* how deep a recursion was, and the endings that compilers put to names;
* by which of CPython's functions Python code was called: from its evaluator on outwards its frames do not count, and before
  it only those that have a name and do not just call. Python's own functions count in their place, where they are known;
* frames that were found by scanning the stack: they are no more than likely. Only where there is no other of the program
  itself, as in a C library without unwind tables, the innermost of them counts; and where there is none of these either, the
  program's name, lest the bugs of different programs be one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from coresnap.snapshot.frames import Named, Place
from coresnap.snapshot.runtimes import PYTHON
from coresnap.snapshot.stacks import Found

FUNCTIONS_MAX = 6
_RECURSION_FRAMES = 400
_RECURSION_LEAST = 8
_SYMBOL_MAX, _FUNCTION_MAX = 4096, 512

#: Files of the runtimes, by their names.
_RUNTIME_FILES = re.compile(
    r"(lib(c|m|pthread|rt|dl|stdc\+\+|gcc_s|c\+\+|c\+\+abi|unwind|asan|ubsan|tsan)|ld-linux[-\w]*|ld-musl[-\w]*|ld)"
    r"(-[\d.]+)?\.so[.\d]*|libstd-[0-9a-f]+\.so|\[vdso\]"
)
#: Their functions, where they are linked into the program: those of C, of C++, of Rust as it mangled of old, and of Rust.
_RUNTIME_FUNCTIONS = re.compile(
    r"_*(raise|abort|gsignal|kill|tgkill|pthread_kill\w*|GI_\w+|assert_fail\w*|assert_perror_fail|assert|libc_message\w*"
    r"|malloc_printerr\w*|malloc_consolidate|int_(free|malloc|realloc|memalign)\w*|libc_\w+|unlink_chunk|munmap_chunk|tcache_\w+"
    r"|c?free|malloc|calloc|realloc|fortify_fail\w*|stack_chk_fail\w*|chk_fail|restore_rt"
    r"|cxa_\w+|clang_call_terminate|gxx_personality\w*|rust_\w+|start|start_thread|clone3?)"
    r"|_*(mem|str|wmem|wcs|stp)(p?cpy|move|set|cmp|chr|rchr|len|nlen|cat|ncat|ncpy|ncmp|str|casecmp)\w*"
    r"|_Unwind_\w+|runtime\.\w+.*|_rt0_\w+"
    r"|_ZN?K?S[tabsiod]\w*|_ZN(9__gnu_cxx|10__cxxabiv1)\w*|_Zn[wa]m\w*|_Zd[la]Pv\w*"
    r"|_ZN(3std|4core|5alloc|\d+_\$LT\$(std|core|alloc)\.\.).*"
    r"|_R(N[A-Za-z]|[MXYI]|s[0-9A-Za-z]{0,6}_)*C(4core|3std|5alloc|7___rustc).*"
)
#: CPython's functions that run Python code, and those that call whatever is to be called.
_PYTHON_EVALUATES = re.compile(r"_?PyEval_(Eval|Vector)\w*")
_PYTHON_CALLS = re.compile(
    r"_?Py(Object|Vectorcall|CFunction|Function|MethodDef)_(Raw)?(Fast)?(Call|Vectorcall|MakeTpCall)\w*"
    r"|(cfunction|method|function|classmethoddescr|slot_tp|type|wrapper|instancemethod)_(vector)?call\w*"
    r"|object_vacall|call_(function|method|unbound)\w*|vectorcall_\w+"
)
_ENDINGS = re.compile(r"(\.(isra|constprop|part|cold|lto_priv|llvm|localalias|clone|specialized|\d+)\b|@)[\w.@]*$")
#: What differs between builds of one function of Rust's: the hash at its end, the number of each crate in it.
_RUST_HASH = re.compile(r"17h[0-9a-f]{16}E$")
_RUST_CRATE = re.compile(r"Cs[0-9A-Za-z]{0,12}_(?=\d)")


class Fingerprint(NamedTuple):
    """The fingerprint, 64 hex digits, and what it was made of."""

    digest: str
    made_of: tuple[str, ...]


def fingerprint(
    signal: str,
    frames: Sequence[Named],
    *,
    python: Sequence[Place] = (),
    program: str = "",
    exception: str = "",
    raised: bool,
    overflow: bool,
) -> Fingerprint:
    """Return the fingerprint of a crash by the faulting thread's frames, innermost first; `python` are those of Python.

    `program` is the executable's name, as far as it is known. `raised` says that the signal was sent by a call, as abort does;
    `overflow` that the stack was full.
    """
    counted = _below_handler(frames) if raised else list(frames)
    sure = _sure(counted)
    own = _counting(sure, python) or _counting(counted)[:1]
    if not own:
        own = [*([f"program {program}"] if program else ()), *(name for name in map(_name, sure) if name)]
    functions = (_recursion(own) or _recursion([name for name in map(_own, sure) if name])) if overflow else []
    functions = functions or list(dict.fromkeys(own))[:FUNCTIONS_MAX]
    made_of = (signal, *((f"exception {exception}",) if exception else ()), *functions)
    return Fingerprint(hashlib.sha256("\n".join(made_of).encode("utf-8", "replace")).hexdigest(), made_of)


def is_of_a_runtime(path: str) -> bool:
    """Say whether a file is one of those of the C, C++ or Rust runtime."""
    return _RUNTIME_FILES.fullmatch(os.path.basename(path)) is not None


def _below_handler(frames: Sequence[Named]) -> list[Named]:
    """Return the frames from where the first signal came on: its handler raised another, which is what killed."""
    for index, named in enumerate(frames):
        if named.frame.found == Found.SIGNAL:
            return list(frames[index:])
    return list(frames)


def _sure(frames: list[Named]) -> list[Named]:
    """Return the frames before the first that scanning found, or all where there is nothing before it."""
    for index, named in enumerate(frames):
        if index and named.frame.found == Found.SCAN:
            return frames[:index]
    return frames


def _counting(frames: Sequence[Named], python: Sequence[Place] = ()) -> list[str]:
    """Return what the frames count as that do. Where the program died counts always."""
    known = [_python(place) for place in python if not place.path.startswith("<frozen ")]
    names: list[str] = []
    evaluated = False
    for named in frames:
        name = _own(named)
        if not name:
            continue
        if not _is_of_python(named):
            names.append(name)
        elif not evaluated and _PYTHON_EVALUATES.fullmatch(name):
            evaluated = True
            names = [*names[: FUNCTIONS_MAX // 2], *known] if known else names or [name]
        elif not names or (named.symbol and not evaluated and not _PYTHON_CALLS.fullmatch(name)):
            names.append(name)
    return names


def _is_of_python(named: Named) -> bool:
    """Say whether a frame is one of CPython's own."""
    path = named.module.path if named.module else ""
    return PYTHON.fullmatch(os.path.basename(path.removesuffix(" (deleted)"))) is not None


def _python(place: Place) -> str:
    """Return what a function of Python counts as; one without a name of its own, as a module's, with its file's."""
    file = f"{os.path.basename(place.path)} " if place.function.startswith("<") else ""
    return f"python {file}{place.function}"[:_FUNCTION_MAX]


def _own(named: Named) -> str:
    """Return what a frame counts as; nothing of one of a runtime's, or of no module."""
    if named.module is None or is_of_a_runtime(named.module.path):
        return ""
    name = _name(named)
    return "" if named.symbol and _RUNTIME_FUNCTIONS.fullmatch(name) else name


def _name(named: Named) -> str:
    if named.symbol:
        symbol = _ENDINGS.sub("", named.symbol[:_SYMBOL_MAX])
        symbol = _RUST_CRATE.sub("C", symbol) if symbol.startswith("_R") else _RUST_HASH.sub("E", symbol)
        return symbol[:_FUNCTION_MAX]
    if named.module is None:
        return ""
    file = os.path.basename(named.module.path.removesuffix(" (deleted)"))
    return f"{file}+{named.frame.lookup - named.module.bias:#x}"


def _recursion(names: list[str]) -> list[str]:
    """Return the functions that a stack overflow went through again and again; where in the round it came is chance."""
    counts = Counter(names[:_RECURSION_FRAMES])
    return sorted(name for name, count in counts.items() if count >= _RECURSION_LEAST)[:FUNCTIONS_MAX]
