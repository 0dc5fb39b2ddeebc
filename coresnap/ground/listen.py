# SPDX-License-Identifier: Apache-2.0
"""The sockets that a service manager passes: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES of sd_listen_fds(3)."""

from __future__ import annotations

import os

_FIRST_FD = 3
_MOST = 64


def listen_fds() -> list[tuple[str, int]]:
    """Return (name, descriptor) of each passed socket, made close-on-exec; take the variables out of the environment.

    What does not follow the protocol, or is meant for another process, counts as none.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit() or int(count) > _MOST:
        return []
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    for fd in fds:
        try:
            os.set_inheritable(fd, False)
        except OSError:
            return []
    names += ["unknown"] * (len(fds) - len(names))
    return [(name or "unknown", fd) for name, fd in zip(names, fds, strict=False)]
