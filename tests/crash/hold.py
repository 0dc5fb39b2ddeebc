# SPDX-License-Identifier: Apache-2.0
"""Run a program until it dumps core, and hold it there: hold.py auto|kernel|gdb SECONDS DIRECTORY PROGRAM [ARGUMENT ...]

The program runs in DIRECTORY with its standard output in the file `output` there. One line of JSON tells of its death; the
process is held until standard input ends.

ptrace(2): a thread of a dying process stops at PTRACE_EVENT_EXIT after the core has been written and before its memory is
given back, so /proc/PID tells everything. All threads are seized as they are made, so all of them stop there.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

SEIZE, CONT, GETEVENTMSG, LISTEN = 0x4206, 7, 0x4201, 0x4208
OPTIONS = 0x8 | 0x40 | 0x100000  # TRACECLONE, TRACEEXIT, EXITKILL
EVENT_CLONE, EVENT_EXIT, EVENT_STOP = 3, 6, 128
WALL = 0x40000000
CORE_FLAG = 0x80

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, tid: int, data: Any = 0) -> None:
    """Call ptrace; a thread that is gone meanwhile is no error."""
    if _libc.ptrace(request, tid, None, data) < 0 and ctypes.get_errno() != 3:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")


def kernel_writes_files() -> bool:
    """Say whether the kernel writes cores to files in the process's directory."""
    with open("/proc/sys/kernel/core_pattern", encoding="ascii") as file:
        return not set("|@/") & set(file.read())


def start(directory: str, argv: list[str]) -> int:
    """Start the program, traced, in a process group of its own; return its pid."""
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.chdir(directory)
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.close(go_write)
        os.read(go_read, 1)
        os.execv(argv[0], argv)
    os.setpgid(pid, pid)
    ptrace(SEIZE, pid, OPTIONS)
    os.close(go_write)
    return pid


class Tracer:
    """Follows the threads of one process to its death."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.alive = {pid}
        self.dying: set[int] = set()
        self.last = (pid, 0)
        self.code = 0

    def follow(self) -> bool:
        """Go on until all threads are held in their death by a signal; false where the process ended otherwise."""
        while not self.dying or self.dying != self.alive:
            try:
                tid, status = os.waitpid(-self.pid, WALL)
            except ChildProcessError:
                return False
            if not os.WIFSTOPPED(status):
                self.alive.discard(tid)
                continue
            self.alive.add(tid)
            self._stopped(tid, os.WSTOPSIG(status), status >> 16)
        return True

    def _stopped(self, tid: int, number: int, event: int) -> None:
        if event == EVENT_EXIT:
            message = ctypes.c_ulong()
            ptrace(GETEVENTMSG, tid, ctypes.byref(message))
            if message.value & 0x7F:
                self.code |= message.value  # only the dumping thread is sure to have the core flag
                self.dying.add(tid)
                return
            ptrace(CONT, tid)
        elif event == EVENT_STOP and number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            ptrace(LISTEN, tid)
        elif event:
            if event == EVENT_CLONE:
                message = ctypes.c_ulong()
                ptrace(GETEVENTMSG, tid, ctypes.byref(message))
                self.alive.add(message.value)
            ptrace(CONT, tid)
        else:
            self.last = (tid, number)
            ptrace(CONT, tid, number)


def let_go(pid: int) -> None:
    """Let the held threads end, and reap them."""
    for tid in os.listdir(f"/proc/{pid}/task"):
        ptrace(CONT, int(tid))
    while True:
        try:
            os.waitpid(-pid, WALL)
        except ChildProcessError:
            return


def by_kernel(directory: str, argv: list[str]) -> dict[str, Any]:
    """Have the kernel write the core."""
    pid = start(directory, argv)
    tracer = Tracer(pid)
    if not tracer.follow():
        return {"error": f"{argv[0]} did not die of a signal"}
    cores = [name for name in os.listdir(directory) if name.startswith("core")]
    if not tracer.code & CORE_FLAG or not cores:
        return {
            "error": f"{argv[0]} died of signal {tracer.code & 0x7F}, and the kernel wrote no core ({tracer.code:#x}, {cores})"
        }
    return describe(pid, tracer.last[0], tracer.code & 0x7F, os.path.join(directory, cores[0]), "kernel")


def by_gdb(directory: str, argv: list[str]) -> dict[str, Any]:
    """Have gdb run the program to its death, write the core, and hold it."""
    core = os.path.join(directory, "core")
    tell = (
        "python import gdb; p = gdb.selected_thread().ptid;"
        " print('HELD', p[0], p[1], int(gdb.parse_and_eval('$_siginfo.si_signo')), flush=True)"
    )
    redirected = f"{shlex.join(argv[1:])} > {directory}/output < /dev/null"
    commands = ["set auto-load off", f"cd {directory}", f"set args {redirected}", "run"]
    commands += [f"generate-core-file {core}", tell, "shell cat > /dev/null"]
    gdb = ["gdb", "-nx", "-q", "-batch", *[word for command in commands for word in ("-ex", command)], argv[0]]
    with open(os.path.join(directory, "gdb"), "wb") as errors:
        process = subprocess.Popen(gdb, stdin=0, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("HELD "):
            pid, tid, number = map(int, line.split()[1:])
            return describe(pid, tid, number, core, "gdb")
    return {"error": f"{argv[0]} did not die under gdb"}


def describe(pid: int, tid: int, number: int, core: str, origin: str) -> dict[str, Any]:
    """Return what a kernel would tell of the crash."""
    status = os.stat(f"/proc/{pid}")
    return {
        **{"pid": pid, "tid": tid, "uid": status.st_uid, "gid": status.st_gid, "signal": number},
        **{"time": int(time.time()), "exe": os.readlink(f"/proc/{pid}/exe"), "core": core, "origin": origin},
    }


def main() -> int:
    """Run, tell, hold."""
    origin, seconds, directory, *argv = sys.argv[1:]
    if origin == "auto":
        origin = "kernel" if kernel_writes_files() else "gdb"
    signal.signal(signal.SIGALRM, lambda *_: (print(json.dumps({"error": "it did not die in time"})), os._exit(1)))
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
    told = (by_kernel if origin == "kernel" else by_gdb)(directory, argv)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(told), flush=True)
    if "error" in told:
        return 1
    while select.select([0], [], [])[0] and os.read(0, 4096):
        pass
    if origin == "kernel":
        let_go(told["pid"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
