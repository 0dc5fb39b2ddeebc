#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A command that tries to get out of its sandbox, and says on standard output what it could do.

Run as `intruder SNAPSHOT` in the processor's worker, as `intruder - SNAPSHOT` in the sender's, as `intruder query` in place of
the query service, as `intruder hook` as a hook. Each attempt has a child of its own, since some are answered by death.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from collections.abc import Callable

_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000
_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_MEMORY_BYTES = 1536 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


def _called(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def network() -> None:
    """Reach a server of the machine's."""
    with socket.create_connection(("127.0.0.1", 8099), timeout=10):
        pass


def another_dump() -> None:
    """Read a core that was not handed over."""
    with open("/var/lib/coresnap/committed/victim/core", encoding="ascii") as core:
        core.read()


def change_a_dump() -> None:
    """Write to a dump of the user's own."""
    with open("/var/lib/coresnap/committed/victim/core", "a", encoding="ascii") as core:
        core.write("more")


def write_elsewhere() -> None:
    """Leave a file behind where every user can."""
    path = f"/var/tmp/intruder-{os.getpid()}"
    with open(path, "w", encoding="ascii") as file:
        file.write("here")
    os.unlink(path)


def mount() -> None:
    """Mount something, as root of a user namespace."""
    _called(_LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    _called(_LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, None))


def ptrace() -> None:
    """Look into another process of the same user."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with open(f"/proc/{name}/cmdline", "rb") as file:
            line = file.read()
        if b"sleep" in line and b"424242" in line:
            _called(_LIBC.ptrace(_PTRACE_ATTACH, int(name), 0, 0))
            _LIBC.waitpid(int(name), 0, 0x40000000)
            _called(_LIBC.ptrace(_PTRACE_DETACH, int(name), 0, 0))
            return
    raise ProcessLookupError("no process of the user's to be seen")


def memory() -> None:
    """Take more memory than the worker is to have."""
    block = bytearray(_MEMORY_BYTES)
    for at in range(0, len(block), 4096):
        block[at] = 1


_ATTEMPTS: dict[str, Callable[[], None]] = {
    "network": network,
    "another dump": another_dump,
    "write elsewhere": write_elsewhere,
    "mount": mount,
    "ptrace": ptrace,
    "memory": memory,
}


_OF_THE_QUERY = {
    "network": network,
    "change a dump": change_a_dump,
    "write elsewhere": write_elsewhere,
    "mount": mount,
    "ptrace": ptrace,
}


_OF_A_HOOK = {"another dump": another_dump, "mount": mount}


def attempt(body: Callable[[], None]) -> str:
    """Try one in a child; return done, or what stopped it."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os.write(write_fd, b"done")
        except (OSError, MemoryError) as error:  # what stops it is the answer
            os.write(write_fd, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write_fd)
    said = os.read(read_fd, 1000).decode()
    os.close(read_fd)
    _pid, status = os.waitpid(pid, 0)
    return said or f"killed by signal {os.WTERMSIG(status)}"


def main() -> int:
    """Try; leave something that looks like a snapshot, or fail as a delivery, so that what was said is in the log."""
    if sys.argv[1] == "-":
        print("INTRUDER send", json.dumps({"another dump": attempt(another_dump)}), flush=True)
        return 1
    if sys.argv[1] == "query":
        print("INTRUDER query", json.dumps({what: attempt(body) for what, body in _OF_THE_QUERY.items()}), flush=True)
        return 0
    if sys.argv[1] == "hook":
        print("INTRUDER hook", json.dumps({what: attempt(body) for what, body in _OF_A_HOOK.items()}), flush=True)
        return 0
    print("INTRUDER snapshot", json.dumps({what: attempt(body) for what, body in _ATTEMPTS.items()}), flush=True)
    with open(sys.argv[1], "w", encoding="ascii") as file:
        json.dump({"uuid": "", "threads": {}}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
