# SPDX-License-Identifier: Apache-2.0
"""Run a program until it dumps core, and hold it there: hold.py auto|kernel|gdb SECONDS DIRECTORY PROGRAM [ARGUMENT ...]

The program runs in DIRECTORY with its standard output in the file `output` there. One line of JSON tells of its death; the
process is held until standard input ends, then killed and reaped.

ptrace(2): a thread of a dying process stops at PTRACE_EVENT_EXIT after the core has been written and before its memory is
given back, so /proc/PID tells everything. All threads are seized as they are made, so all of them stop there.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

CONT, GETEVENTMSG, SEIZE, LISTEN = 7, 0x4201, 0x4206, 0x4208
OPTIONS = 0x8 | 0x40 | 0x100000  # TRACECLONE, TRACEEXIT, EXITKILL
EVENT_EXIT, EVENT_STOP = 6, 128
WALL = 0x40000000
CORE_FLAG, SIGNAL_MASK = 0x80, 0x7F
STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class NoCrash(Exception):
    """The program did not dump core, or could not be run or traced."""


def ptrace(request: int, tid: int, data: Any = 0) -> None:
    """Call ptrace; a thread that is gone meanwhile is no error."""
    if _libc.ptrace(request, tid, None, data) < 0 and ctypes.get_errno() != errno.ESRCH:
        raise NoCrash(f"the program cannot be traced: ptrace: {os.strerror(ctypes.get_errno())}")


def kernel_writes_files() -> bool:
    """Say whether the kernel would write a child's core to a file in the child's directory: core(5)."""
    with open("/proc/sys/kernel/core_pattern", encoding="utf-8", errors="surrogateescape") as file:
        pattern = file.read().strip()
    allowed = resource.getrlimit(resource.RLIMIT_CORE)[1] != 0 or os.geteuid() == 0
    return allowed and bool(pattern) and not set("|@/") & set(pattern)


def raise_core_limit() -> None:
    """Have the kernel dump this process and its children as far as it may."""
    unlimited, hard = resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_CORE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (unlimited, unlimited))
    except ValueError:  # an ordinary user's hard limit
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def start(directory: str, argv: list[str]) -> int:
    """Start the program, traced, in a process group of its own; return its pid."""
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go_write)
            if os.read(go_read, 1):
                _become(directory, argv)
        except OSError as error:
            print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)
    os.close(go_read)
    try:
        os.setpgid(pid, pid)
        ptrace(SEIZE, pid, OPTIONS)
        os.write(go_write, b"g")
    finally:
        os.close(go_write)  # a child that cannot be traced is not to run
    return pid


def _become(directory: str, argv: list[str]) -> None:
    os.chdir(directory)
    os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT, 0o600), 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored is inherited
        signal.signal(number, signal.SIG_DFL)
    os.execv(argv[0], argv)


class Tracer:
    """Follows the threads of one process to its death."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.held: dict[int, int] = {}  # thread → wait status it dies with
        self._ended: set[int] = set()
        self._reaped = False

    def follow(self) -> None:
        """Go on until all threads are held in their death by a signal. Raises NoCrash where the process just ends."""
        while True:
            tid, status = self._wait(os.WNOHANG)
            if not tid:
                # Nothing is left to be told: what /proc lists is what there is.
                if self.held and self._tasks() - self._ended == self.held.keys():
                    return
                tid, status = self._wait()
            if os.WIFSTOPPED(status):
                self._ended.discard(tid)
                self._stopped(tid, os.WSTOPSIG(status), status >> 16)
                continue
            self._ended.add(tid)
            if tid == self.pid:
                self._reaped = True
                how = f"with {os.WEXITSTATUS(status)}" if os.WIFEXITED(status) else f"by signal {os.WTERMSIG(status)}"
                raise NoCrash(f"the program ended {how}")

    def _wait(self, flags: int = 0) -> tuple[int, int]:
        try:
            return os.waitpid(-self.pid, WALL | flags)
        except ChildProcessError as error:
            raise NoCrash("the program is gone") from error

    def _tasks(self) -> set[int]:
        """Return its threads; one that ended before the others stays here until they do, if it was the first."""
        return {int(name) for name in os.listdir(f"/proc/{self.pid}/task")}

    def _stopped(self, tid: int, number: int, event: int) -> None:
        if event == EVENT_EXIT:
            message = ctypes.c_ulong()
            ptrace(GETEVENTMSG, tid, ctypes.byref(message))
            if message.value & SIGNAL_MASK:
                self.held[tid] = message.value
                return
            self._ended.add(tid)
        if event == EVENT_STOP and number in STOPS:
            ptrace(LISTEN, tid)
        else:
            ptrace(CONT, tid, 0 if event else number)

    def dumper(self) -> tuple[int, int]:
        """Return the thread that dumped core, which alone has the core flag, and its signal. Raises NoCrash."""
        for tid, status in self.held.items():
            if status & CORE_FLAG:
                return tid, status & SIGNAL_MASK
        number = next(iter(self.held.values())) & SIGNAL_MASK
        raise NoCrash(f"the program died of {signal.Signals(number).name}, and the kernel wrote no core")

    def end(self) -> None:
        """Kill the process wherever it is, and reap all of it."""
        if self._reaped:
            return  # its number may be another's by now
        os.kill(self.pid, signal.SIGKILL)
        for tid in self._tasks():
            ptrace(CONT, tid)
        while True:
            try:
                tid, status = os.waitpid(-self.pid, WALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                ptrace(CONT, tid)


@contextmanager
def by_kernel(directory: str, argv: list[str]) -> Iterator[dict[str, Any]]:
    """Have the kernel write the core."""
    tracer = Tracer(start(directory, argv))
    try:
        tracer.follow()
        tid, number = tracer.dumper()
        cores = [name for name in os.listdir(directory) if name != "output"]
        if len(cores) != 1:
            raise NoCrash(f"the kernel wrote a core, but not alone into {directory}: {cores}")
        yield describe(tracer.pid, tid, number, os.path.join(directory, cores[0]), "kernel")
    finally:
        tracer.end()


@contextmanager
def by_gdb(directory: str, argv: list[str]) -> Iterator[dict[str, Any]]:
    """Have gdb run the program to its death, write the core, and hold it (in_gdb.py)."""
    core = os.path.join(directory, "core")
    redirected = f"{shlex.join(argv[1:])} > {shlex.quote(directory)}/output < /dev/null"
    commands = ["set auto-load off", "set disable-randomization off", f"cd {directory}", f"set args {redirected}"]
    words = [word for command in commands for word in ("-ex", command)]
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "in_gdb.py")
    environment = {**os.environ, "CORESNAP_CORE": core, "SHELL": "/bin/sh"}
    environment.pop("DEBUGINFOD_URLS", None)  # nothing is fetched for this
    gdb = ["gdb", "-nx", "-q", "-batch", *words, "-x", script, argv[0]]
    with subprocess.Popen(
        gdb, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as process:
        try:
            assert process.stdout is not None
            told = next((line.split() for line in process.stdout if line.startswith("HELD ")), None)
            if told is None:
                raise NoCrash("the program did not dump core under gdb")
            pid, tid, number = map(int, told[1:])
            yield describe(pid, tid, number, core, "gdb")
            process.communicate()  # closes its input: gdb kills and reaps what it holds
        finally:
            process.kill()  # and the kernel kills what gdb has traced from its start


def describe(pid: int, tid: int, number: int, core: str, origin: str) -> dict[str, Any]:
    """Return what a kernel would tell of the crash: core(5). The first thread may have ended, and then has no exe."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="surrogateescape") as file:
        status = dict(line.split(":", 1) for line in file)
    real = {name.lower(): int(status[name].split()[0]) for name in ("Uid", "Gid")}
    # prlimit(2) of another user's process takes a capability that root need not have in a container.
    with open(f"/proc/{pid}/limits", encoding="utf-8") as file:
        soft = next(line.split()[4] for line in file if line.startswith("Max core file size"))
    limit = 2**64 - 1 if soft == "unlimited" else int(soft)
    return {
        **{"pid": pid, "tid": tid, **real, "signal": number, "rlimit_core": limit},
        **{"time": int(time.time()), "exe": os.readlink(f"/proc/{pid}/task/{tid}/exe"), "core": core, "origin": origin},
    }


def _too_late(_number: int, _frame: FrameType | None) -> None:
    raise NoCrash("the program did not die in time")


def main() -> int:
    """Run, tell, hold."""
    origin, seconds, directory, *argv = sys.argv[1:]
    if origin == "auto":
        origin = "kernel" if kernel_writes_files() else "gdb"
    by: Callable[[str, list[str]], AbstractContextManager[dict[str, Any]]] = by_kernel if origin == "kernel" else by_gdb
    raise_core_limit()
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
    try:
        with by(directory, argv) as told:
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(json.dumps(told), flush=True)
            while os.read(0, 4096):
                pass
    except (NoCrash, OSError) as error:
        print(json.dumps({"error": f"{argv[0]}: {error}"}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
