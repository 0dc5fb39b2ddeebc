# SPDX-License-Identifier: Apache-2.0
"""Names of C++ and Rust out of symbols. docs/adr/0009-libstdcxx-demangles-in-a-child.md says why it is done so.

C++ has its names from libstdc++'s __cxa_demangle() (the Itanium C++ ABI, 5.1), in a child: 230 bytes of a symbol can ask for
gigabytes and hours. What a symbol may take is bounded there, and the child's end costs one name.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
import time
from collections.abc import Collection, Iterator

from coresnap.snapshot import rust

_LIBRARY = "libstdc++.so.6"
#: The longest symbol that is tried, and the longest name that is taken.
SYMBOL_MAX_BYTES = 16 << 10
NAME_MAX_BYTES = 16 << 10
_NAME_SECONDS = 0.2
_ALL_SECONDS = 3.0
_RUST_SECONDS = 2.0
_MORE_MEMORY_BYTES = 64 << 20
_LOSSES_MAX = 3
_LENGTH = struct.Struct("<i")
_NONE = -1
_NO_LIBRARY = 3
_PR_SET_DUMPABLE = 4


def demangle(symbols: Collection[str], missing: list[str]) -> dict[str, str]:
    """Return the names of those that are mangled and can be demangled. A line in `missing` says why others could not be."""
    result = {}
    cxx = []
    mangled = [one for one in sorted(symbols) if one.startswith(("_Z", "_R")) and len(one) <= SYMBOL_MAX_BYTES]
    deadline = time.monotonic() + _RUST_SECONDS
    for count, symbol in enumerate(mangled):
        if time.monotonic() > deadline:
            missing.append(f"names of Rust: {len(mangled) - count} symbols were not tried any more")
            cxx += [symbol for symbol in mangled[count:] if symbol.startswith("_Z")]
            break
        name = rust.demangle(symbol)
        if name is not None:
            result[symbol] = name
        elif symbol.startswith("_Z"):
            cxx.append(symbol)
    return result | _cxx(cxx, missing)


def demangle_type(name: str) -> str:
    """Return a type of C++ from the name that its type_info has; as it stands where it is none."""
    symbol = f"_ZTS{name}"
    return demangle([symbol], []).get(symbol, name).removeprefix("typeinfo name for ")


def _cxx(symbols: list[str], missing: list[str]) -> dict[str, str]:
    """Demangle symbols of C++ in a child; where one ends it, the next child goes on behind that one."""
    result: dict[str, str] = {}
    deadline = time.monotonic() + _ALL_SECONDS
    at = losses = 0
    while at < len(symbols) and losses < _LOSSES_MAX and time.monotonic() < deadline:
        names, status = _child(symbols[at:], deadline)
        result |= {symbol: name for symbol, name in zip(symbols[at:], names, strict=False) if name}
        if os.waitstatus_to_exitcode(status) == _NO_LIBRARY:
            missing.append(f"names of C++ stay mangled: {_LIBRARY} is not there")
            return result
        at += len(names)
        if at < len(symbols):
            at, losses = at + 1, losses + 1
    if losses:
        missing.append(f"names of C++: {losses} took too long or too much to be demangled")
    if at < len(symbols):
        missing.append(f"names of C++: {len(symbols) - at} were not tried any more")
    return result


def _child(symbols: list[str], deadline: float) -> tuple[list[str], int]:
    """Return the names, empty where there is none, of as many symbols as a child came to; and its wait status."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(read_fd)
            status = _work(symbols, write_fd)
        finally:
            os._exit(status)
    os.close(write_fd)
    try:
        data = b"".join(_blocks(read_fd, deadline))
    finally:
        os.close(read_fd)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    return list(_names(data)), status


def _blocks(fd: int, deadline: float) -> Iterator[bytes]:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll(max(0, deadline - time.monotonic()) * 1000 + 1):
        block = os.read(fd, 1 << 16)
        if not block or time.monotonic() > deadline:
            return
        yield block


def _names(data: bytes) -> Iterator[str]:
    at = 0
    while at + _LENGTH.size <= len(data):
        (size_bytes,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        name = data[at : at + max(size_bytes, 0)]
        if len(name) < size_bytes:
            return
        at += len(name)
        yield name.decode("utf-8", "backslashreplace")


def _work(symbols: list[str], fd: int) -> int:
    """Demangle, in the child: each name is written when it is there, so that what ends the child is known."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # its crash is none that anybody wants a core of
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return _NO_LIBRARY
    function = library["__cxa_demangle"]
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    free = library["free"]
    free.argtypes = [ctypes.c_void_p]
    _limit_memory()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for symbol in symbols:
        signal.setitimer(signal.ITIMER_PROF, _NAME_SECONDS)
        found = function(symbol.encode("utf-8", "backslashreplace"), None, None, None)
        name = ctypes.string_at(found) if found else b""
        free(found)
        if 0 < len(name) <= NAME_MAX_BYTES:
            os.write(fd, _LENGTH.pack(len(name)) + name)
        else:
            os.write(fd, _LENGTH.pack(_NONE))
    return 0


def _limit_memory() -> None:
    """Allow no more than a bit above the address space that is taken already. proc(5): statm, in pages."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size_bytes = int(file.read().split()[0]) * resource.getpagesize() + _MORE_MEMORY_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most_bytes = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))
