# SPDX-License-Identifier: Apache-2.0
"""Where a core comes from, and what has to be said there before its first byte. Imported while a process is held."""

from coresnap.ground.errors import CoresnapError


class Withdrawn(CoresnapError):
    """Whoever offered the crash has taken it back, and captures it: nothing is lost, and there is nothing to record."""


class Source:
    """A pipe or a file, which is read as it is. `transport` is pipe, hand or import; handover and socket are its heirs'."""

    def __init__(self, fd: int, transport: str) -> None:
        self.fd = fd
        self.transport = transport

    def fds(self) -> "tuple[int, ...]":
        """Return all descriptors that keep the crashed process held."""
        return (self.fd,)

    def begin(self) -> None:
        """Ask for the core. Raises Withdrawn, or BadInput where it will not come."""

    def refuse(self) -> None:
        """Say that the core is not taken, as far as anybody waits to hear that. Raises nothing."""
