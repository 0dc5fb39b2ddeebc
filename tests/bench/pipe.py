# SPDX-License-Identifier: Apache-2.0
"""A pipe whose reader is watched from outside, without a part in it: a FIFO under inotify(7).

An anonymous pipe cannot tell its writer when the first byte was taken out, nor when the reader closed it, without the
writer polling it and so taking a processor from what is measured (and archive widens its pipe, which makes it writable
before a byte is read). A FIFO is the same pipe with a name, and the kernel reports what happens to files with names:
IN_ACCESS when a reader has read, IN_CLOSE_NOWRITE when its last descriptor is closed.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from pathlib import Path

from programs import Program, Unmeasurable, start

IN_ACCESS, IN_CLOSE_NOWRITE = 0x1, 0x10
_IN_ONESHOT = 0x80000000
_LIMIT_SEC = 300


class WatchedPipe:
    """A FIFO, fed by cat, whose reader's first `event` is timed. Use it once."""

    def __init__(self, directory: Path, event: int) -> None:
        self.path = directory / "pipe"
        os.mkfifo(self.path)
        self.read_fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO without a writer cannot be opened else
        os.set_blocking(self.read_fd, True)
        self._write_fd = os.open(self.path, os.O_WRONLY)
        library = ctypes.CDLL(None, use_errno=True)
        self._watch_fd: int = library.inotify_init1(os.O_CLOEXEC)
        if self._watch_fd < 0 or library.inotify_add_watch(self._watch_fd, bytes(self.path), event | _IN_ONESHOT) < 0:
            raise Unmeasurable(f"inotify: {os.strerror(ctypes.get_errno())}")

    def __enter__(self) -> WatchedPipe:
        return self

    def __exit__(self, *exception: object) -> None:
        for fd in (self.read_fd, self._write_fd, self._watch_fd):
            if fd >= 0:
                os.close(fd)
        self.path.unlink()

    def feed(self, source: Path) -> Program:
        """Start `cat source` into the pipe; what does not fit waits there, as the kernel does with a core."""
        feeder = start(["/bin/cat", str(source)], stdout=self._write_fd)
        os.close(self._write_fd)
        self._write_fd = -1
        return feeder

    def let_go(self) -> None:
        """Close our own end for reading, once the reader has been started: its descriptor is then the only one."""
        os.close(self.read_fd)
        self.read_fd = -1

    def event_nsec(self) -> int:
        """Wait for the event; return the monotonic clock then. Raises Unmeasurable where it does not come."""
        poll = select.poll()
        poll.register(self._watch_fd, select.POLLIN)
        if not poll.poll(_LIMIT_SEC * 1000):
            raise Unmeasurable(f"nothing has been read from the pipe for {_LIMIT_SEC} s")
        return time.monotonic_ns()
