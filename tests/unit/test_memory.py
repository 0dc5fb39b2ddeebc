# SPDX-License-Identifier: Apache-2.0
"""The memory of a process in place of what the kernel sends of it. The process lives here; in guests it dumps core."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.capture import memory as reading
from coresnap.capture.copy import Copied, copy
from coresnap.capture.memory import Memory, Unreadable
from coresnap.spool import stages
from coresnap.spool.quota import Reservation
from coresnap.spool.stages import Spool

_MIB = 1 << 20
_PAGE_BYTES = 4096
_AREA_BYTES = 24 * _MIB
_GAP_BYTES = 64 * _MIB


class _Process:
    """A child with an area of memory that its parent has, too: its address, and what is in it."""

    def __init__(self) -> None:
        chance = random.Random(3)
        self._area = mmap.mmap(-1, _AREA_BYTES + _GAP_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, _AREA_BYTES, _PAGE_BYTES):
            if chance.random() < 0.4:
                self._area[at : at + 8] = chance.randbytes(8)
        self._area[-_PAGE_BYTES:] = b"e" * _PAGE_BYTES
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._area))
        self.pid = os.fork()
        if self.pid == 0:
            signal.pause()
            os._exit(0)
        self.contents = bytes(self._area)  # which brings the gap into being here, and not there
        self.proc = f"/proc/{self.pid}"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0

    def core(self) -> bytes:
        """Return a core of it, of two segments, as the kernel writes one."""
        note = struct.pack("<III8sQQ", 5, 16, 0x46494C45, b"CORE", 0, _PAGE_BYTES)
        sizes, at = (8 * _MIB, len(self.contents) - 8 * _MIB), 0
        headers = [struct.pack("<IIQQQQQQ", 4, 0, 64 + 3 * 56, 0, 0, len(note), 0, 4)]
        for size in sizes:
            place = (_PAGE_BYTES + at, self.address + at, 0, size, size, _PAGE_BYTES)
            headers.append(struct.pack("<IIQQQQQQ", 1, 6, *place))
            at += size
        head = (
            b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
        )
        return (head + b"".join(headers) + note).ljust(_PAGE_BYTES, b"\0") + self.contents


@pytest.fixture(scope="module")
def process() -> Iterator[_Process]:
    started = _Process()
    yield started
    if started.pid:
        started.kill()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stages.prepare(str(tmp_path / "spool"), -1, -1)
    with Spool(str(tmp_path / "spool")) as opened:
        yield opened


@pytest.fixture
def dumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a process that lives for one that dumps core."""
    monkeypatch.setattr(Memory, "is_whole", lambda self: True)


def _copy(spool: Spool, sent: bytes, path: Path, proc: str) -> tuple[Copied, int]:
    """Copy what is sent through a pipe; return how that ended, and how many bytes nobody has read."""
    read_fd, write_fd = os.pipe()
    written = 0

    def feed() -> None:
        nonlocal written
        try:
            while written < len(sent):
                written += os.write(write_fd, sent[written : written + 65536])
        except BrokenPipeError:
            pass
        os.close(write_fd)

    core_fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    reservation = Reservation(spool, 0, 0, 0)
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        copied = copy(read_fd, core_fd, reservation, proc=proc)
        os.ftruncate(core_fd, copied.size_bytes)
    finally:
        os.close(read_fd)
        os.close(core_fd)
        feeder.join()
        reservation.close()
    return copied, len(sent) - written


@pytest.mark.usefixtures("dumping")
def test_the_rest_is_read_from_the_process(spool: Spool, tmp_path: Path, process: _Process) -> None:
    core = process.core()
    wrong = core[: 2 * _MIB].ljust(len(core), b"w")  # what the kernel would send; nobody is to read it
    copied, unread_bytes = _copy(spool, wrong, tmp_path / "core", process.proc)
    assert (copied.reason, copied.size_bytes) == ("", len(core))
    assert unread_bytes > _AREA_BYTES
    assert (tmp_path / "core").read_bytes() == core
    assert (tmp_path / "core").stat().st_blocks * 512 < _AREA_BYTES


def test_a_process_that_lives_is_not_read(spool: Spool, tmp_path: Path, process: _Process) -> None:
    core = process.core()
    changed = core[:-4] + b"sent"
    copied, unread_bytes = _copy(spool, changed, tmp_path / "core", process.proc)
    assert (copied.reason, copied.size_bytes, unread_bytes) == ("", len(core), 0)
    assert (tmp_path / "core").read_bytes() == changed


@pytest.mark.usefixtures("dumping")
@pytest.mark.parametrize("what", ["another process", "no process"])
def test_what_the_kernel_sends_is_taken_otherwise(spool: Spool, tmp_path: Path, process: _Process, what: str) -> None:
    core, proc = process.core(), process.proc
    if what == "another process":
        core = core[: _MIB - 8] + b"another!" + core[_MIB:]
    else:
        proc = "/proc/4194305"
    copied, unread_bytes = _copy(spool, core, tmp_path / "core", proc)
    assert (copied.reason, unread_bytes) == ("", 0)
    assert (tmp_path / "core").read_bytes() == core


@pytest.mark.usefixtures("dumping")
def test_memory_that_cannot_be_read_has_the_kernel_s_dump_taken(
    spool: Spool, tmp_path: Path, process: _Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fails(*arguments: object, **keywords: object) -> bool:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Unreadable("it is gone")
        return whole(*arguments, **keywords)  # type: ignore[arg-type]  # as it is called

    whole = Memory.fill
    monkeypatch.setattr(Memory, "fill", fails)
    core = process.core()
    copied, unread_bytes = _copy(spool, core, tmp_path / "core", process.proc)
    assert (copied.reason, unread_bytes) == ("", 0)
    assert (tmp_path / "core").read_bytes() == core


def test_one_that_is_killed_meanwhile_is_said_to_be_cut(
    spool: Spool, tmp_path: Path, process: _Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False] * 2)
    monkeypatch.setattr(Memory, "is_whole", lambda self: next(answers))
    core = process.core()
    copied, _unread = _copy(spool, core, tmp_path / "core", process.proc)
    assert (copied.reason, copied.size_bytes) == ("cut-short", len(core))
    assert "killed" in copied.detail

    whole, left = Memory.fill, iter([True] * 10)

    def goes(*arguments: object, **keywords: object) -> bool:
        if not next(left, False):
            raise Unreadable("it is gone")
        return whole(*arguments, **keywords)  # type: ignore[arg-type]  # as it is called

    monkeypatch.setattr(Memory, "fill", goes)
    copied, _unread = _copy(spool, core, tmp_path / "other", process.proc)
    assert copied.reason == "cut-short"
    kept = (tmp_path / "other").read_bytes()
    assert 9 * _MIB < len(kept) < 12 * _MIB, "what had been read by then is kept"
    assert core.startswith(kept)


@pytest.mark.usefixtures("dumping")
def test_what_is_not_there_is_not_read(process: _Process) -> None:
    """Nor is it brought into being: the gap in the area has no page before, and none after."""
    with Memory(process.proc) as memory:
        view = memoryview(bytearray(_MIB))
        assert not memory.fill(view, process.address + _AREA_BYTES + _MIB, anonymous=True, readable=True)
        assert memory.fill(view, process.address + len(process.contents) - _MIB, anonymous=True, readable=True)
        assert bytes(view[-_PAGE_BYTES:]) == b"e" * _PAGE_BYTES
        with pytest.raises(Unreadable):
            memory.fill(view, (1 << 47) + _PAGE_BYTES, anonymous=True, readable=False)


@pytest.mark.parametrize(
    ("status", "whole"),
    [
        ("Name:\tx\nSigPnd:\t0000000000000000\nCoreDumping:\t1\nX:\t1\n", True),
        ("Name:\tx\nSigPnd:\t0000000000000100\nCoreDumping:\t1\nX:\t1\n", False),
        ("Name:\tx\nSigPnd:\t0000000000000000\nCoreDumping:\t0\nX:\t1\n", False),
        ("Name:\tCoreDumping:\t1\nSigPnd:\t0000000000000000\nCoreDumping:\t0\n", False),
        ("Name:\tx\nCoreDumping:\t1\n", False),
    ],
)
def test_the_signs_of_a_process_that_dumps_core(tmp_path: Path, status: str, whole: bool) -> None:
    """proc_pid_status(5): SIGKILL, once it has come, is pending; a name has no line break in it there."""
    for name, text in (("status", status), ("mem", ""), ("pagemap", "")):
        (tmp_path / name).write_text(text)
    if whole:
        Memory(str(tmp_path)).close()
    else:
        with pytest.raises(Unreadable):
            Memory(str(tmp_path))
    assert reading.PAGE_BYTES == mmap.PAGESIZE
