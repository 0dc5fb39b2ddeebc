# SPDX-License-Identifier: Apache-2.0
"""A stage's worker, as its owner sees it: a connection, and what is being worked on at its other end.

It is a child of the owner's, or an instance that a supervisor starts for the connection and that ends with it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from coresnap.ground import runner
from coresnap.spool.record import Record
from coresnap.spool.stages import Dump

_CONNECT_SECONDS = 5.0


@dataclass
class Worker:
    """A worker; `child` is None where a supervisor started it. `dump` is None while it has nothing to do."""

    socket: socket.socket
    child: runner.Child | None = None
    dump: Dump | None = None
    document: Record = field(default_factory=dict)
    deadline_usec: int = 0
    started_usec: int = 0
    place: tuple[str, str] | None = None  #: the store and the project that its dump goes to

    def end(self) -> None:
        """Hang up, upon which a worker and all that it runs ends; see that a child does."""
        self.socket.close()
        if self.child is not None:
            self.child.end()


def spawn(argv: list[str]) -> Worker:
    """Start a worker as a child, with the connection as its standard input. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        return Worker(ours, runner.spawn(argv, stdin=theirs.fileno()))


def connect(path: str) -> Worker:
    """Connect to where a supervisor starts a worker for each connection (Accept= of systemd.socket(5)). Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(path)
        connection.setblocking(True)
    except OSError:
        connection.close()
        raise
    return Worker(connection)
