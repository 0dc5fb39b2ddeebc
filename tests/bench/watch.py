# SPDX-License-Identifier: Apache-2.0
"""inotify(7): to be told when something has happened to a file, without looking again and again."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from pathlib import Path
from typing import Self

from tests.bench.programs import Unmeasurable

IN_ACCESS, IN_CLOSE_NOWRITE, IN_MOVED_TO, IN_CREATE, IN_ONESHOT = 0x1, 0x10, 0x80, 0x100, 0x80000000
_LIMIT_SEC = 60
#: struct inotify_event: wd, mask, cookie, the length of the name that follows.
_EVENT = struct.Struct("iIII")


class Watch:
    """Files under watch, and what happens to them."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._library.inotify_init1(os.O_CLOEXEC)
        if self._fd < 0:
            raise Unmeasurable(f"inotify: {os.strerror(ctypes.get_errno())}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def add(self, path: Path, mask: int) -> None:
        """Watch a file, or a directory's entries, from now on and wherever it is moved. Raises OSError."""
        if self._library.inotify_add_watch(self._fd, bytes(path), mask) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))

    def wait(self) -> tuple[int, list[str]]:
        """Wait for events; return the monotonic clock then, in nanoseconds, and the entries that they name.

        Raises Unmeasurable where nothing happens.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(_LIMIT_SEC * 1000):
            raise Unmeasurable(f"what was waited for has not happened within {_LIMIT_SEC} s")
        now_nsec = time.monotonic_ns()
        data, at, names = os.read(self._fd, 1 << 16), 0, []
        while at < len(data):
            *_, name_bytes = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            names.append(data[at : at + name_bytes].rstrip(b"\0").decode())
            at += name_bytes
        return now_nsec, names
