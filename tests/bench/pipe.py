# SPDX-License-Identifier: Apache-2.0
"""A pipe whose reader is watched from outside, without a part in it: a FIFO under inotify(7).

An anonymous pipe cannot tell its writer when the first byte was taken out, nor when the reader closed it, without the
writer polling it and so taking a processor from what is measured (and archive widens its pipe, which makes it writable
before a byte is read). A FIFO is the same pipe with a name, and the kernel reports what happens to files with names:
IN_ACCESS when a reader has read, IN_CLOSE_NOWRITE when its last descriptor is closed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from tests.bench.programs import Program, start
from tests.bench.watch import IN_ONESHOT, Watch


class WatchedPipe:
    """A FIFO, fed by cat, whose reader's first `event` is timed. Use it once."""

    def __init__(self, directory: Path, event: int) -> None:
        self._path = directory / "pipe"
        os.mkfifo(self._path)
        self.read_fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)  # to block would be to wait for the writer
        os.set_blocking(self.read_fd, True)
        self._write_fd = os.open(self._path, os.O_WRONLY)
        self._watch = Watch()
        self._watch.add(self._path, event | IN_ONESHOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for fd in (self.read_fd, self._write_fd):
            if fd >= 0:
                os.close(fd)
        self._watch.__exit__()
        self._path.unlink()

    def feed(self, source: Path) -> Program:
        """Start `cat source` into the pipe; it waits there with what does not fit, as the kernel does with a core."""
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
        return self._watch.wait()[0]
