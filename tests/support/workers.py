# SPDX-License-Identifier: Apache-2.0
"""The sender's worker, as a process of its own with a real socket on its standard input."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import Any

from coresnap.ground import program, wire


class Worker:
    """A worker and the owner's end of its connection."""

    def __init__(self, *, packages: bool = True, **environment: str) -> None:
        """Start a worker, with these variables more; without `packages` it has the standard library alone."""
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process: subprocess.Popen[str] = subprocess.Popen(
                program.argv_of("send_worker", packages=packages),
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | environment,
            )

    def ask(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Send a request; return the answer, None where the worker has ended instead."""
        wire.send(self.connection, request, fds)
        received = wire.receive(self.connection, max_fds=0)
        return received[0] if received else None

    def end(self) -> tuple[int, str]:
        """Close the connection; return the worker's exit status and all that it said."""
        self.connection.close()
        said = self.process.communicate(timeout=30)[0]
        return self.process.returncode, said

    def memory_kb(self, which: str = "VmRSS") -> int:
        """Return how much memory the worker has; VmHWM: has ever had."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(f"{which}:"))
