# SPDX-License-Identifier: Apache-2.0
"""Where a core comes from, and what has to be said there before its first byte. Imported while a process is held."""

import os

from coresnap.ground.errors import CoresnapError

_PIPE_LIMIT = "/proc/sys/kernel/core_pipe_limit"


class Withdrawn(CoresnapError):
    """Whoever offered the crash has taken it back, and captures it: nothing is lost, and there is nothing to record."""


class Gone(CoresnapError):
    """The process was killed before its core was asked for: there will be none."""


class Source:
    """A pipe or a file, which is read as it is. `transport` is pipe, hand or import; handover and socket are its heirs'."""

    def __init__(self, fd: int, transport: str) -> None:
        self.fd = fd
        self.transport = transport

    def fds(self) -> "tuple[int, ...]":
        """Return all descriptors that keep the crashed process held."""
        return (self.fd,)

    def keeps_process(self) -> bool:
        """Say whether the process stays, with its /proc, when its core has been read, until we let go; see core(5)."""
        if self.transport not in ("pipe", "handover"):
            return False
        try:
            fd = os.open(_PIPE_LIMIT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.read(fd, 16) != b"0\n"
        finally:
            os.close(fd)

    def begin(self) -> None:
        """Ask for the core. Raises Withdrawn, Gone, or BadInput where it will not come."""

    def refuse(self) -> None:
        """Say that the core is not taken, as far as anybody waits to hear that. Raises nothing."""
