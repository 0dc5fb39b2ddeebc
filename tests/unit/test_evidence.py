# SPDX-License-Identifier: Apache-2.0
"""Evidence: read in order of worth, within its time, filtered, and never at the cost of the core."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.capture import members as reading_half
from coresnap.capture import modules
from coresnap.capture.evidence import Evidence, Reader
from coresnap.capture.members import Wish, filter_environ
from coresnap.capture.resident import ResidentReader
from coresnap.capture.victim import CORE_PATTERN, from_core_pattern

SECOND_USEC = 1_000_000


@pytest.fixture
def source_fd() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A live process with a thread of a hostile name, a secret in its environment and an open file."""
    program = """
import ctypes, sys, threading
def run():
    ctypes.CDLL(None).prctl(15, b"evil\\n\\x1bname", 0, 0, 0)
    print(flush=True)
    sys.stdin.read()
threading.Thread(target=run).start()
"""
    environment = {"PATH": "/usr/bin", "LC_ALL": "C", "SECRET_TOKEN": "hunter2"}
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_everything_of_a_live_process_is_there(victim: subprocess.Popen[bytes], source_fd: int) -> None:
    reading = Evidence(f"/proc/{victim.pid}", Wish(("PATH", "LC_*")), Reader((source_fd,)))
    reading.wait_for_victim(10 * SECOND_USEC)
    reading.wait_for_host(10 * SECOND_USEC)
    members = reading.members
    assert set(reading.missing()) <= {"proc/smaps_rollup"}
    assert next(iter(members)) == "proc/status"
    assert f"Pid:\t{victim.pid}\n".encode() in members["proc/status"]
    assert members["proc/environ"] == b"PATH=/usr/bin\0LC_ALL=C\0"
    assert os.fsencode(os.path.realpath(sys.executable)) == members["proc/exe"]
    assert b"0\tpipe:[" in members["proc/fd"]
    tasks = members["proc/task"].splitlines()
    assert len(tasks) == 2
    assert tasks[1].endswith(b"\tevil\\n\\x1bname")
    assert b"MemTotal" in members["host/meminfo"]


def test_a_directory_that_is_not_there_costs_only_the_victims_part(source_fd: int) -> None:
    reading = Evidence("/proc/4194304000", Wish(), Reader((source_fd,)))
    reading.wait_for_victim(10 * SECOND_USEC)
    assert reading.victim_read
    reading.wait_for_host(10 * SECOND_USEC)
    assert "host/meminfo" in reading.members
    assert "proc/status" in reading.missing()


def test_a_read_that_blocks_is_abandoned_at_the_deadline(
    tmp_path: Path, source_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block is real: a comm that is a FIFO would be refused, so the child's read waits on a lock that never opens."""
    (tmp_path / "status").write_bytes(b"Name:\tx\n")
    (tmp_path / "comm").write_bytes(b"x\n")
    never = threading.Lock()
    never.acquire()
    real_read = reading_half.read

    def blocking_read(path: str, limit_bytes: int, dir_fd: int | None = None) -> bytes | None:
        if path == "cmdline":
            never.acquire()
        return real_read(path, limit_bytes, dir_fd)

    monkeypatch.setattr(reading_half, "read", blocking_read)
    reading = Evidence(str(tmp_path), Wish(), Reader((source_fd,)))
    before = time.monotonic()
    reading.wait_for_victim(SECOND_USEC // 10)
    assert time.monotonic() - before < 5
    assert not reading.victim_read
    assert reading.members["proc/comm"] == b"x\n"
    reading.wait_for_host(SECOND_USEC // 10)
    assert "proc/cmdline" in reading.missing()


@pytest.fixture
def deleted(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A live process whose program has been deleted."""
    program = shutil.copy(shutil.which("cat") or "", tmp_path / "program")
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        process.stdout.read(1)
        os.unlink(program)
        yield process
        process.stdin.close()


_ROOT_ALONE = pytest.mark.skipif(os.geteuid() != 0, reason="/proc/PID/map_files is followed by root alone")


def _reading(process: subprocess.Popen[bytes], fd: int) -> Evidence:
    reading = Evidence(f"/proc/{process.pid}", Wish((), 32 << 20), Reader((fd,)))
    reading.wait_for_victim(10 * SECOND_USEC)
    assert reading.victim_read
    return reading


@_ROOT_ALONE
def test_files_are_read_once_their_process_is_gone(deleted: subprocess.Popen[bytes], source_fd: int) -> None:
    reading = _reading(deleted, source_fd)
    deleted.kill()
    deleted.wait()
    pieces: dict[str, bytes] = {}

    def take(name: str, data: bytes) -> None:
        assert "host/meminfo" in reading.members, "it is all there before the first piece"
        pieces[name] = data

    reading.wait_for_host(10 * SECOND_USEC, take)
    starts = {name.split("/")[1] for name in pieces}
    assert len(starts) == 1
    assert pieces[f"modules/{starts.pop()}/0"].startswith(b"\x7fELF")
    assert not [name for name in (*reading.members, *reading.missing()) if name.startswith("modules/")]


@_ROOT_ALONE
@pytest.mark.parametrize("how", ["nobody takes them", "another process"])
def test_files_that_nobody_wants_are_not_read(
    deleted: subprocess.Popen[bytes], source_fd: int, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(modules, "keep", lambda *_arguments: os._exit(1))  # in the child: it would not come to its end
    reading = _reading(deleted, source_fd)
    pieces: list[str] = []
    if how == "another process":
        reading.forget_victim()
    reading.wait_for_host(
        10 * SECOND_USEC, (lambda name, _data: pieces.append(name)) if how == "another process" else None
    )
    assert "host/cpuinfo" in reading.members
    assert reading.read_whole
    assert pieces == []


@_ROOT_ALONE
def test_a_file_whose_read_blocks_is_given_up(
    deleted: subprocess.Popen[bytes], source_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a file server that does not answer: its headers came, and nothing more. All else is there."""
    never = threading.Lock()
    never.acquire()
    real_pread = modules._pread

    def blocking_pread(fd: int, count: int, offset: int) -> bytes:
        if count > 4096:
            never.acquire()
        return real_pread(fd, count, offset)

    monkeypatch.setattr(modules, "_pread", blocking_pread)
    reading = _reading(deleted, source_fd)
    pieces: dict[str, bytes] = {}
    before = time.monotonic()
    reading.wait_for_host(SECOND_USEC // 2, pieces.__setitem__)
    assert time.monotonic() - before < 5
    assert not reading.read_whole
    assert sum(map(len, pieces.values())) < 64 << 10
    assert {name.rpartition("/")[0] for name in pieces} == {
        name for name in reading.missing() if name.startswith("modules/")
    }
    assert "host/cpuinfo" in reading.members


def test_what_comes_late_of_another_process_is_forgotten_too(victim: subprocess.Popen[bytes], source_fd: int) -> None:
    """The budget has ended before the child has read: what it sends afterwards is the other process's as well."""
    reading = Evidence(f"/proc/{victim.pid}", Wish(), Reader((source_fd,)))
    reading.forget_victim()
    reading.wait_for_host(10 * SECOND_USEC)
    assert "host/meminfo" in reading.members
    assert not [name for name in reading.members if name.startswith("proc/")]
    assert "proc/status" in reading.missing()


def test_what_is_not_a_regular_file_is_not_read(tmp_path: Path, source_fd: int) -> None:
    os.mkfifo(tmp_path / "status")
    (tmp_path / "environ").symlink_to("/dev/zero")
    reading = Evidence(str(tmp_path), Wish(("*",)), Reader((source_fd,)))
    reading.wait_for_victim(10 * SECOND_USEC)
    assert reading.victim_read
    assert not {"proc/status", "proc/environ"} & set(reading.members)
    reading.wait_for_host(10 * SECOND_USEC)


def test_members_are_bounded(tmp_path: Path, source_fd: int) -> None:
    (tmp_path / "status").write_bytes(b"x" * (1 << 20))
    reading = Evidence(str(tmp_path), Wish(), Reader((source_fd,)))
    reading.wait_for_victim(10 * SECOND_USEC)
    reading.wait_for_host(10 * SECOND_USEC)
    assert len(reading.members["proc/status"]) == 16 << 10


def test_the_child_does_not_hold_the_source() -> None:
    """The kernel lets the process go when the last reader of the pipe closes it: that must not wait for the child."""
    read_fd, write_fd = os.pipe()
    never_fd, keep_fd = os.pipe()
    os.set_blocking(write_fd, False)
    reading = Evidence(None, Wish(), Reader((read_fd,)))
    reading.wait_for_host(10 * SECOND_USEC)
    os.close(read_fd)
    with pytest.raises(BrokenPipeError):
        os.write(write_fd, b"x")
    for fd in (write_fd, never_fd, keep_fd):
        os.close(fd)


def test_the_environment_is_filtered_by_name() -> None:
    data = b"PATH=/bin\0LC_ALL=C\0LCX=1\0PATHX=2\0=odd\0NOVALUE\0TOKEN=PATH=x\0"
    assert filter_environ(data, ("PATH", "LC_*", "NOVALUE")) == b"PATH=/bin\0LC_ALL=C\0NOVALUE\0"
    assert filter_environ(data, ()) == b""
    assert filter_environ(b"", ("*",)) == b""


def test_core_patterns_arguments() -> None:
    assert len(CORE_PATTERN.split()) == 10
    victim = from_core_pattern(["12", "13", "1000", "1000", "11", "1700000000", "0", "1", "", "!usr!bin!x y"])
    assert (victim.pid, victim.tid, victim.signal, victim.pidfd, victim.exe) == (12, 13, 11, None, "/usr/bin/x y")
    assert (victim.rlimit_core, victim.dumpable) == (0, 1)
    undecodable = os.fsdecode(b"!tmp!\xff\xf0")
    assert from_core_pattern([*["1"] * 9, undecodable]).exe == "/tmp/\ufffd\ufffd", "as /proc/PID/exe is read"
    hostile = from_core_pattern(["-1", "x", "", "1e3", "٣", "9" * 30])
    assert [getattr(hostile, name) for name in ("pid", "tid", "uid", "gid", "signal", "time")] == [None] * 6
    assert from_core_pattern(["1", "2", "3", "4", "5", "6", "18446744073709551615"]).rlimit_core == 2**64 - 1


def test_a_resident_reader_that_has_died_unseen_costs_evidence_and_nothing_else() -> None:
    """It is found out as the next crash asks it; the one after that has another."""
    reader = ResidentReader(lambda: None)
    reader.make_ready()
    os.kill(reader._pid, signal.SIGKILL)
    os.waitid(os.P_PID, reader._pid, os.WEXITED | os.WNOWAIT)
    evidence = Evidence("/proc/self", Wish([], 0, os.getuid()), reader)
    evidence.wait_for_victim(SECOND_USEC)
    evidence.wait_for_host(SECOND_USEC)
    assert "proc/status" in evidence.members, "what is read without it"
    reader.make_ready()
    evidence = Evidence("/proc/self", Wish([], 0, os.getuid()), reader)
    evidence.wait_for_victim(30 * SECOND_USEC)
    evidence.wait_for_host(30 * SECOND_USEC)
    assert "proc/maps" in evidence.members
    reader.end(whole=False)
