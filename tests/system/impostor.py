# SPDX-License-Identifier: Apache-2.0
"""Crash a process, and put another one in its place, under the same number, before anybody has looked into /proc.

    impostor.py archive|service killed|left

Runs as root in a guest. With `archive`, core_pattern has `gate`, which lets nobody pass before it is told to, in archive's
place; with `service`, the capture service is stopped (SIGSTOP), and has a connection waiting. The process is killed as it
waits for its core to be read, or has left a small one in the pipe and is gone by itself. What is left running is the other
process; its number is printed.
"""

import ctypes
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

GATE, HELD = Path("/root/gate.fifo"), Path("/root/gate.held")
_SYS_CLONE3 = 435
_SERVICE = "coresnap-archive.service"


def crash(small: bool) -> int:
    """Start a program that crashes at once; return its number."""
    pid = os.fork()
    if not pid:
        Path("/proc/self/coredump_filter").write_text("0" if small else "33", encoding="ascii")
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.execv("/usr/local/bin/crash", ["crash", "segv", "1"])
    return pid


def is_offered(where: str) -> bool:
    """Say whether the kernel has started `gate`, or somebody has connected to the capture service."""
    if where == "archive":
        return HELD.exists()
    lines = Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()
    return any(sum(line.endswith(f" /run/coresnap/{name}") for line in lines) > 1 for name in ("kernel", "handover"))


def clone(pid: int) -> int:
    """Fork a child with the number `pid`; return 0 in the child. clone3(2), set_tid."""
    tids = ctypes.c_int(pid)
    arguments = ctypes.create_string_buffer(
        struct.pack("=11Q", *[0] * 4, signal.SIGCHLD, *[0] * 3, ctypes.addressof(tids), 1, 0)
    )
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(_SYS_CLONE3, arguments, 88)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def main(where: str, how: str) -> int:
    """Do it."""
    HELD.unlink(missing_ok=True)
    if where == "service":
        subprocess.run(["systemctl", "kill", "-s", "STOP", _SERVICE], check=True)
    pid = crash(small=how == "left")
    while not is_offered(where):
        time.sleep(0.01)
    if how == "killed":
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not clone(pid):
        null_fd = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null_fd, fd)
        os.setgid(4321)
        os.setuid(4321)
        os.chdir("/var/tmp")
        os.execve("/usr/bin/sleep", ["impostor", "600"], {"LANG": "impostor"})
    while Path(f"/proc/{pid}/comm").read_text(encoding="utf-8") != "sleep\n":
        time.sleep(0.01)
    print(pid, flush=True)
    if where == "service":
        subprocess.run(["systemctl", "kill", "-s", "CONT", _SERVICE], check=True)
    else:
        GATE.write_text("go\n", encoding="ascii")
    os._exit(0)  # the child stays


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
