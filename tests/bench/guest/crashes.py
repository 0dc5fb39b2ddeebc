#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""crashes.py - in a guest: crash processes under one core_pattern and another, in turns, and time what their parent waits

SYNOPSIS
    crashes.py single|big|storm RUNS NAME=FILE...

DESCRIPTION
    Each FILE holds the settings of one collector, lines of sysctl.d(5); they are put in force before its turn and read
    back after it. A turn begins when the machine is at rest; there is one more, to warm up. After a
    turn of large processes or of many `/root/clear.py NAME CRASHES` says what the collector has of them, and clears that
    away: nobody waits until a small machine has processed the dumps. On standard output comes JSON: for each NAME a
    list of turns, each with the microseconds from the signal to what waitpid(2) tells, how many cores there were by its
    word (cores), and how many the collector has kept and has on record alone (kept, on_record).

    single  `sleep` gets SIGSEGV
    big     a process of 1 GB, 44% of whose pages are not zero, gets SIGSEGV
    storm   200 `sleep` get SIGSEGV, as fast as one process can send it
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

_STORM = 200
_BIG_BYTES = 1 << 30
_PAGE_BYTES = 4096
_NON_ZERO_OF_25 = 11
_REST_SECONDS = 600.0
_SLICE = "/sys/fs/cgroup/coresnap.slice"
#: A look at a storm's processes takes a good part of a second of a processor, which those then lack.
_LOOK_SECONDS = 1.0
_STACK_KIB = 16


def main() -> int:
    """Measure; return the exit status."""
    kind, runs, *collectors = sys.argv[1:]
    settings = dict(collector.split("=", 1) for collector in collectors)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in settings}
    warm_up = 1
    for turn in range(int(runs) + warm_up):
        for name, path in settings.items():
            with InForce(path):
                _rest()
                result = {"single": single, "big": big, "storm": storm}[kind]()
            if kind != "single":
                clear = ["/root/clear.py", name, str(len(result["held_usec"]))]
                kept, on_record = map(int, subprocess.check_output(clear).split())
                result |= {"kept": kept, "on_record": on_record}
            if turn >= warm_up:
                turns[name].append(result)
    _rest()
    print(json.dumps(turns))
    return 0


class InForce:
    """Settings of the kernel's, in force for a turn; an error where they were not, from its beginning to its end."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="ascii") as file:
            self._values = dict(line.strip().split("=", 1) for line in file if "=" in line)

    def __enter__(self) -> None:
        for name, value in self._values.items():
            with open(_path(name), "w", encoding="ascii") as file:
                file.write(value)

    def __exit__(self, *error: object) -> None:
        for name, value in self._values.items():
            with open(_path(name), encoding="ascii") as file:
                found = file.read().strip()
            if found != value:
                raise SystemExit(f"{name} is {found}, not {value}")


def _path(name: str) -> str:
    return f"/proc/sys/{name.replace('.', '/')}"


def single() -> dict[str, Any]:
    """Crash one small process."""
    pid = _start(["/usr/bin/sleep", "1000"])
    return _end_of({pid: _kill(pid)})


def storm() -> dict[str, Any]:
    """Crash many small processes at once; tell as well what memory coresnap has at most meanwhile."""
    pids = [_start(["/usr/bin/sleep", "1000"]) for _ in range(_STORM)]
    read_fd, write_fd = os.pipe()
    stop_fd, stopped_fd = os.pipe()
    sampler = os.fork()
    if sampler == 0:
        os.close(stopped_fd)
        os.write(write_fd, json.dumps(_most_memory(stop_fd)).encode())
        os._exit(0)
    os.close(write_fd)
    result = _end_of({pid: _kill(pid) for pid in pids})
    os.close(stopped_fd)
    with os.fdopen(read_fd) as file:
        result["memory"] = json.load(file)
    os.waitpid(sampler, 0)
    return result


def _most_memory(stop_fd: int) -> dict[str, int]:
    """Return the most bytes at any look: of the slice with its page cache, without, of the helpers, of both without; helpers."""
    most = {"slice": 0, "slice_anonymous": 0, "helpers": 0, "together": 0, "live": 0}
    while not select.select([stop_fd], [], [], _LOOK_SECONDS)[0]:
        with suppress(OSError):
            with open(f"{_SLICE}/memory.current", encoding="ascii") as file:
                current = int(file.read())
            with open(f"{_SLICE}/memory.stat", encoding="ascii") as file:
                stat = dict(line.split() for line in file)
            helpers = _helpers()
            anonymous = current - int(stat["file"])
            now = {"slice": current, "slice_anonymous": anonymous, "helpers": sum(helpers), "live": len(helpers)}
            now["together"] = anonymous + sum(helpers)
            most = {name: max(value, now[name]) for name, value in most.items()}
    return most


def _helpers() -> list[int]:
    """Return what each live helper has for itself: its anonymous memory, its page tables, its kernel stack."""
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if not name.isdigit():
                continue
            with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                if file.read() not in ("archive\n", "flock\n", "python3\n"):
                    continue
            with open(f"/proc/{name}/cmdline", encoding="utf-8", errors="replace") as file:
                cmdline = file.read()
                if not any(word in cmdline for word in ("coresnap/archive", "coresnap.archive", "flock")):
                    continue
            with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as file:
                status = dict(line.split(":", 1) for line in file if ":" in line)
            kib = sum(int(status[field].split()[0]) for field in ("RssAnon", "VmPTE") if field in status)
            found.append((kib + _STACK_KIB) << 10)
    return found


def big() -> dict[str, Any]:
    """Crash one large process."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        _grow()
        os.write(write_fd, b"+")
        signal.pause()
    os.close(write_fd)
    os.read(read_fd, 1)
    os.close(read_fd)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    return _end_of({pid: _kill(pid)})


_memory: list[bytearray] = []


def _grow() -> None:
    text = b"".join(b"%d: what a program keeps in its memory\n" % number for number in range(100000))
    run_bytes = 16 * _PAGE_BYTES
    block = text[: _NON_ZERO_OF_25 * run_bytes].ljust(25 * run_bytes, b"\0")
    _memory.append(bytearray(block * (_BIG_BYTES // len(block))))


def _start(argv: list[str]) -> int:
    """Start a program; return its pid once it sleeps."""
    pid = os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin"}, setsigdef=[signal.SIGSEGV])
    while True:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read()
        if f"({os.path.basename(argv[0])}) S" in fields:
            return pid
        time.sleep(0.01)


def _kill(pid: int) -> int:
    now_nsec = time.monotonic_ns()
    os.kill(pid, signal.SIGSEGV)
    return now_nsec


def _end_of(killed_nsec: dict[int, int]) -> dict[str, Any]:
    """Wait for all of them; return what their parent hears, and when."""
    held_usec, cores = [], 0
    while killed_nsec:
        pid, status = os.wait()
        started_nsec = killed_nsec.pop(pid)
        held_usec.append((time.monotonic_ns() - started_nsec) // 1000)
        if os.WTERMSIG(status) != signal.SIGSEGV:
            raise SystemExit(f"a process ended by {status}, not by the signal that it was sent")
        cores += os.WCOREDUMP(status)
    return {"held_usec": held_usec, "cores": cores}


def _rest() -> None:
    """Wait until the processors have been idle for most of a second."""
    deadline = time.monotonic() + _REST_SECONDS
    while time.monotonic() < deadline:
        before = _idle_ticks()
        time.sleep(0.5)
        if _idle_ticks() - before >= 0.45 * os.sysconf("SC_CLK_TCK") * len(os.sched_getaffinity(0)):
            return
    raise SystemExit("the machine does not come to rest")


def _idle_ticks() -> int:
    with open("/proc/stat", encoding="ascii") as file:
        fields = file.readline().split()
    return int(fields[4]) + int(fields[5])


if __name__ == "__main__":
    sys.exit(main())
