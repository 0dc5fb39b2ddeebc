# SPDX-License-Identifier: Apache-2.0
"""Programs started, awaited and accounted for: wall time by the monotonic clock, the rest by wait4(2)."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

#: Nothing here takes a tenth of it; a program that hangs must not hang the benchmark.
_LIMIT_SEC = 300
#: Nothing of ours: a PYTHONUNBUFFERED, say, would slow the one side that prints.
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class Unmeasurable(Exception):
    """A measure cannot be taken here, and why."""


@dataclass(frozen=True)
class Usage:
    """What a whole process took, from its start to its end. Its children count once it has waited for them."""

    status: int
    wall_usec: int
    user_usec: int
    system_usec: int
    maxrss_bytes: int


@dataclass(frozen=True)
class Program:
    """A program that has been started."""

    argv: Sequence[str]
    pid: int
    started_nsec: int
    stderr_fd: int

    def said(self) -> str:
        """Return the last line that it has written to standard error so far."""
        size_bytes = os.fstat(self.stderr_fd).st_size
        lines = os.pread(self.stderr_fd, 4096, max(0, size_bytes - 4096)).decode(errors="replace").splitlines()
        return lines[-1] if lines else "nothing on standard error"

    def wait(self, *expected: int) -> Usage:
        """Wait for its end. Raises Unmeasurable where its exit status is not one of `expected` (none given: 0).

        Linux counts into ru_maxrss what the process had in memory before it executed the program, and posix_spawn(3)
        starts it in our memory: the figure is never below our own size, some 15 MB.
        """
        pidfd = os.pidfd_open(self.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_LIMIT_SEC * 1000):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        _pid, wait_status, usage = os.wait4(self.pid, 0)
        wall_usec = (time.monotonic_ns() - self.started_nsec) // 1000
        status = os.waitstatus_to_exitcode(wait_status)
        said = self.said()
        os.close(self.stderr_fd)
        if status not in (expected or (0,)):
            raise Unmeasurable(f"exit status {status} of {' '.join(self.argv)}: {said}")
        return Usage(status, wall_usec, int(usage.ru_utime * 1e6), int(usage.ru_stime * 1e6), usage.ru_maxrss << 10)


def start(argv: Sequence[str], *, stdin: int | None = None, stdout: int | None = None) -> Program:
    """Start `argv[0]`, an absolute path, with /dev/null for a standard input or output that is not given.

    Standard error is kept in memory, the environment is clean, and SIGPIPE, which Python ignores, ends a program again.
    All other descriptors of ours are closed on exec, as Python makes them.
    """
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    for target, fd in enumerate((stdin, stdout)):
        if fd is None:
            actions.append((os.POSIX_SPAWN_OPEN, target, os.devnull, os.O_RDWR, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, fd, target))
    stderr_fd = os.memfd_create("stderr")
    actions.append((os.POSIX_SPAWN_DUP2, stderr_fd, 2))
    started_nsec = time.monotonic_ns()
    pid = os.posix_spawn(argv[0], list(argv), _ENVIRONMENT, file_actions=actions, setsigdef=[signal.SIGPIPE])
    return Program(argv, pid, started_nsec, stderr_fd)


def run(argv: Sequence[str], *expected: int, stdin: int | None = None, stdout: int | None = None) -> Usage:
    """Start a program and wait for its end. Raises Unmeasurable where it fails: its exit status is none of `expected`, or 0."""
    return start(argv, stdin=stdin, stdout=stdout).wait(*expected)


def python(*arguments: str) -> list[str]:
    """Return the command that runs this interpreter, the one that `make bench` was given."""
    return [sys.executable, *arguments]
