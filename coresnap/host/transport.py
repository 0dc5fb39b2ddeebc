# SPDX-License-Identifier: Apache-2.0
"""How the kernel's cores come: over its coredump socket, where that is found to work, or through a pipe to archive.

That a kernel takes a core_pattern for its socket proves nothing: an older one takes it for a file's name, and reads it
back unchanged. So a child is crashed, and the capture service, which sees by PROBE that it is that child, answers that
the core is taken and has none sent: the kernel tells the parent that there was a core.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import select
import signal
from typing import NoReturn

from coresnap.host.pattern import Host

PROBE = "/run/coresnap/probe"
#: What the child is called: the kernel's log names it where nobody listens, and that is no loss.
PROBE_NAME = "coresnap-probe"
_FIRST_RELEASE = (6, 17)
_PROBE_SECONDS = 60.0
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15


def socket_is_possible(host: Host) -> str:
    """Return why this kernel has no coredump socket to ask for; empty where it may have one."""
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if not numbers or (int(numbers[1]), int(numbers[2])) < _FIRST_RELEASE:
        return f"Linux {release} has no coredump socket"
    try:
        with open(os.path.join(host.sys, "kernel/core_modes"), encoding="ascii", errors="replace") as file:
            modes = file.read(4096).split()
    except OSError:
        modes = []
    return "" if "socket" in modes else "this kernel was built without the coredump socket"


def crash_a_child() -> bool:
    """Crash a child of ours through the core_pattern in force; say whether the capture service took it."""
    pid = os.fork()
    if pid == 0:
        _crash()
    pidfd = os.pidfd_open(pid)
    try:
        ended = select.select([pidfd], [], [], _PROBE_SECONDS)[0]
        if not ended:  # it is held, and nobody answers
            os.kill(pid, signal.SIGKILL)
        _pid, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
        try:
            os.unlink(PROBE)
        except FileNotFoundError:
            pass
    return bool(ended) and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV and os.WCOREDUMP(status)


def _crash() -> NoReturn:
    """Be the child: leave our number where the capture service looks for it, and crash."""
    try:
        fd = os.open(PROBE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        os.write(fd, b"%d" % os.getpid())
        os.close(fd)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_NAME, PROBE_NAME.encode(), 0, 0, 0)
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    finally:
        os._exit(1)


def is_probe(pid: int | None) -> bool:
    """Say whether this is the child that coresnapd crashes to see whether the socket works. Raises nothing."""
    try:
        fd = os.open(PROBE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.fstat(fd).st_uid == 0 and os.read(fd, 32) == b"%d" % (pid or 0)
    finally:
        os.close(fd)
