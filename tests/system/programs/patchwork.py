#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A process with memory of every kind that a core has, which then crashes: patchwork.py SCRATCH-FILE [hidden]"""

import ctypes
import mmap
import os
import random
import signal
import sys
import threading

_MIB = 1 << 20
_PAGE = mmap.PAGESIZE
_PROT_NONE, _MADV_HUGEPAGE = 0, 14
_LIBC = ctypes.CDLL(None, use_errno=True)


def _address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def _call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    """Put it together, and crash."""
    chance = random.Random(7)
    with open(f"/proc/{os.getpid()}/coredump_filter", "w", encoding="ascii") as control:
        control.write("0x7f")
    some = mmap.mmap(-1, 24 * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(some), _PAGE):
        if chance.random() < 0.5:
            some[at : at + 64] = chance.randbytes(64)
        elif chance.random() < 0.2:
            some[at] = 0  # there, and zero
    sparse = mmap.mmap(-1, 1024 * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in (0, 500 * _MIB, len(sparse) - _PAGE):
        sparse[at : at + 8] = b"touched!"
    hidden = mmap.mmap(-1, 2 * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    hidden[:] = chance.randbytes(len(hidden))
    if sys.argv[2:] == ["hidden"]:
        _call(_LIBC.mprotect(ctypes.c_void_p(_address(hidden)), ctypes.c_size_t(_MIB), _PROT_NONE))
    huge = mmap.mmap(-1, 8 * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    huge.madvise(_MADV_HUGEPAGE)
    huge[3 * _MIB : 5 * _MIB] = chance.randbytes(2 * _MIB)
    shared = mmap.mmap(-1, 4 * _MIB)
    shared[_MIB : 2 * _MIB] = chance.randbytes(_MIB)
    with open(sys.argv[1], "w+b") as file:
        file.write(chance.randbytes(6 * _MIB))
        file.flush()
        private = mmap.mmap(file.fileno(), 6 * _MIB, flags=mmap.MAP_PRIVATE)
        private[_MIB : _MIB + 5] = b"wrote"
        mapped = mmap.mmap(file.fileno(), 6 * _MIB)
        os.truncate(sys.argv[1], 4 * _MIB + 100)
    barrier = threading.Barrier(5)

    def wait() -> None:
        barrier.wait()
        signal.pause()

    for _ in range(4):
        threading.Thread(target=wait, daemon=True).start()
    barrier.wait()
    print(len(private) + len(mapped), flush=True)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)
    signal.pause()


if __name__ == "__main__":
    main()
