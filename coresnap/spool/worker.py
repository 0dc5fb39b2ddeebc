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
#: How many dumps have to wait for each worker that takes one after the other before there is another.
_WORTH = 10


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


class Workers:
    """A stage's workers: as many as there are dumps for, up to a limit."""

    def __init__(self, argv: list[str], path: str | None, most: int, *, reuse: bool) -> None:
        """Children are started by `argv`; where there is a `path` a supervisor starts them for a connection to it.

        With `reuse` a worker takes one dump after the other, and another one is worth it for many dumps only.
        """
        self.all: list[Worker] = []
        self.whence = path or argv[0]
        self._argv = argv
        self._path = path
        self._most = most
        self._reuse = reuse

    def working(self) -> set[str]:
        """Return the dumps that are being worked on."""
        return {worker.dump.uuid for worker in self.all if worker.dump}

    def has_free(self, waiting: int) -> bool:
        """Say whether there is a worker for one more dump, or can be, when so many wait."""
        worth = not self._reuse or waiting >= _WORTH * len(self.all)
        return any(worker.dump is None for worker in self.all) or (worth and len(self.all) < self._most)

    def free(self) -> Worker:
        """Return a worker with nothing to do. Raises OSError where none can be had now."""
        for worker in self.all:
            if worker.dump is None:
                return worker
        return self._new()

    def keep_one_ready(self, waiting: int) -> None:
        """Have a child started before the dump comes that it is for. Raises OSError."""
        if self._path is None and all(worker.dump for worker in self.all) and self.has_free(waiting):
            self._new()

    def _new(self) -> Worker:
        new = spawn(self._argv) if self._path is None else connect(self._path)
        self.all.append(new)
        return new

    def end(self, worker: Worker) -> None:
        """End a worker."""
        worker.end()
        if worker in self.all:
            self.all.remove(worker)


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
