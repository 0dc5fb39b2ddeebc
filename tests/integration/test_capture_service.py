# SPDX-License-Identifier: Apache-2.0
"""The capture service: what archive hands over is captured; what is taken back, refused or killed is not lost."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from coresnap.capture import handover
from coresnap.spool import record
from tests.crash import build, crash
from tests.support.site import REPOSITORY, Site

_WAIT_MSEC = 30_000
#: Starts the service as a service manager does: with its sockets from descriptor 3 on, by name.
_ACTIVATE = """
import os, sys
names, fds = sys.argv[1], [int(fd) for fd in sys.argv[2].split(",")]
for at, fd in enumerate(fds):
    os.dup2(fd, 20 + at)
for at in range(len(fds)):
    os.dup2(20 + at, 3 + at)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names, LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def _service(
    site: Site, directory: Path, name: str = "handover", *, status: int = 0
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield the running service and the path of its socket; it is to end with `status`."""
    path = str(directory / name)
    Path(path).unlink(missing_ok=True)
    kind = socket.SOCK_SEQPACKET if name == "handover" else socket.SOCK_STREAM
    notify = str(directory / "notify")
    Path(notify).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(notify)
        manager.settimeout(30)
        listener.bind(path)
        listener.listen(64)
        argv = [sys.executable, "-c", _ACTIVATE, name, str(listener.fileno()), sys.executable]
        argv += ["-m", "coresnap.capture_service", "--settings", str(site.compiled)]
        with subprocess.Popen(
            argv,
            cwd=REPOSITORY,
            env=os.environ | {"NOTIFY_SOCKET": notify, "RUNTIME_DIRECTORY": str(directory)},
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert manager.recv(64) == b"READY=1"
                yield process, path
            finally:
                process.terminate()
                assert process.wait(30) == status
                assert process.stderr is not None
                sys.stderr.write(process.stderr.read())


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _kill_whole(process: subprocess.Popen[str]) -> None:
    """Kill a service with all its children; none of them sees another one die."""
    whole = [process.pid, *_children(process.pid)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in whole:
            os.kill(pid, number)


def _holds(pid: int, pipe_fd: int) -> bool:
    """Say whether the process has an end of the pipe open."""
    pipe = os.fstat(pipe_fd)
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if entry.stat().st_ino == pipe.st_ino:
                return True
        except FileNotFoundError:
            continue  # it has been closed meanwhile
    return False


def test_what_is_handed_over_is_captured(tmp_path: Path, site: Site) -> None:
    with _service(site, tmp_path) as (_process, path), crash([build("crash"), "segv", "3"]) as crashed:
        arguments = crashed.core_pattern()
        proc_fd = os.open(f"/proc/{arguments[0]}", os.O_RDONLY | os.O_DIRECTORY)
        with crashed.core.open("rb") as core:
            assert handover.offer(path, time.monotonic_ns(), arguments, [core.fileno(), proc_fd], _WAIT_MSEC)
        os.close(proc_fd)
        site.wait_for("pending", 1)
        ((_stage, dump),) = site.dumps()
        document = record.parse((dump / "dump.json").read_bytes())
        assert (dump / "core").read_bytes() == crashed.core.read_bytes()
    assert document["captured"]["transport"] == "handover"
    assert document["captured"]["held_usec"] > 0
    assert str(document["victim"]["pid"]) == arguments[0]
    assert document["assets"]["missing"] == []


def test_what_the_settings_forbid_is_refused_over_the_hand_over_as_elsewhere(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", **{"limit.exe": "1/1h"})
    with _service(site, tmp_path) as (_process, path), crash([build("crash"), "segv", "3"]) as crashed:
        proc_fd = os.open(f"/proc/{crashed.pid}", os.O_RDONLY | os.O_DIRECTORY)
        for _crash in range(3):
            with crashed.core.open("rb") as core:
                fds = [core.fileno(), proc_fd]
                assert handover.offer(path, time.monotonic_ns(), crashed.core_pattern(), fds, _WAIT_MSEC)
        os.close(proc_fd)
        site.wait_for("pending", 1)
    assert site.stages() == ["pending"]
    # Captures run side by side: which of the two is written down first is nobody's to say.
    assert sorted((loss["reason"], loss["count"], loss["pid"]) for loss in site.ledger()) == [
        ("rate", count, crashed.pid) for count in (1, 2)
    ]


def test_a_note_that_is_handed_over_says_that_its_crash_was_taken(tmp_path: Path, site: Site, real_core: Path) -> None:
    """Who has left it learns from it, where who has handed it over is gone."""
    note = tmp_path / "note"
    with _service(site, tmp_path) as (_process, path), note.open("wb") as file, real_core.open("rb") as core:
        proc_fd, pidfd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY), os.pidfd_open(os.getpid())
        fds = [core.fileno(), proc_fd, pidfd, file.fileno()]
        assert handover.offer(path, time.monotonic_ns(), [str(os.getpid())], fds, _WAIT_MSEC)
        site.wait_for("pending", 1)
        assert note.read_bytes() == handover.TAKEN
        os.close(proc_fd)
        os.close(pidfd)


def test_an_archive_that_is_killed_while_it_waits_takes_no_worker_with_it(
    tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """What that one has let go and not finished yet would be lost with it."""
    with _service(site, tmp_path) as (_process, path):
        for _archive in range(4):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.connect(path)
                assert select.select([connection], [], [], 30)[0]  # it is closed unread
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(path)
            assert connection.recv(1) == handover.READY
    assert "could not be taken" not in capsys.readouterr().err


def test_a_crash_that_is_taken_back_is_neither_captured_twice_nor_recorded(
    tmp_path: Path, site: Site, real_core: Path
) -> None:
    """The service is stuck; archive's patience ends, it takes the crash back, and the service finds out later."""
    with _service(site, tmp_path) as (process, path), real_core.open("rb") as core:
        proc_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
        whole = [process.pid, *_children(process.pid)]
        for pid in whole:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert not handover.offer(path, time.monotonic_ns(), [str(os.getpid())], [core.fileno(), proc_fd], 200)
        finally:
            for pid in whole:
                os.kill(pid, signal.SIGCONT)
        assert site.archive(core).returncode == 0, "not one byte of it has been read by the service"
        os.close(proc_fd)
    assert site.stages() == ["pending"]
    assert site.ledger() == []


def test_what_waits_for_a_stuck_service_is_not_held_by_it(tmp_path: Path, site: Site) -> None:
    read_fd, write_fd = os.pipe()
    proc_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    with _service(site, tmp_path) as (process, path):
        whole = [process.pid, *_children(process.pid)]
        for pid in whole:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert not handover.offer(path, time.monotonic_ns(), [str(os.getpid())], [read_fd, proc_fd], 200)
            os.close(read_fd)
            with pytest.raises(BrokenPipeError):
                os.write(write_fd, b"\x7fELF")
        finally:
            for pid in whole:
                os.kill(pid, signal.SIGCONT)
    os.close(write_fd)
    os.close(proc_fd)
    assert site.stages() == []
    assert site.ledger() == []


def test_no_service_is_no_error(tmp_path: Path) -> None:
    assert not handover.offer(str(tmp_path / "none"), 1, ["1"], [0], _WAIT_MSEC)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as full:
        path = str(tmp_path / "full")
        full.bind(path)
        full.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
            first.connect(path)
            assert not handover.offer(path, 1, ["1"], [0], _WAIT_MSEC), "its queue is full, and nobody waits for that"


def test_a_capture_that_is_killed_is_kept_as_far_as_it_came(tmp_path: Path, site: Site, real_core: Path) -> None:
    core = real_core.read_bytes()
    read_fd, write_fd = os.pipe()
    proc_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    with _service(site, tmp_path) as (process, path):
        offered = threading.Thread(
            target=handover.offer, args=(path, time.monotonic_ns(), [], [read_fd, proc_fd], _WAIT_MSEC)
        )
        offered.start()
        offered.join()
        os.close(read_fd)
        for at in range(0, len(core) - 8192, 8192):
            os.write(write_fd, core[at : at + 8192])
        (worker,) = [pid for pid in _children(process.pid) if _holds(pid, write_fd)]
        os.kill(worker, signal.SIGKILL)
    os.close(write_fd)
    os.close(proc_fd)
    if site.stages():  # its notes had reached the file
        ((stage, dump),) = site.dumps()
        assert stage == "pending"
        assert record.parse((dump / "dump.json").read_bytes())["core"]["truncated"]["reason"] == "interrupted"
    else:
        assert [entry["reason"] for entry in site.ledger()] == ["interrupted"]


def test_a_service_that_is_killed_with_its_workers_leaves_whose_crash_it_had(
    tmp_path: Path, site: Site, real_core: Path
) -> None:
    """The next one keeps, or puts on record, what has come, and names the process; or the one after that."""
    read_fd, write_fd = os.pipe()
    proc_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    with _service(site, tmp_path, status=-signal.SIGKILL) as (process, path):
        arguments = ["4711", "4711", "12", "34", "11"]
        assert handover.offer(path, time.monotonic_ns(), arguments, [read_fd, proc_fd], _WAIT_MSEC)
        os.close(read_fd)
        os.write(write_fd, real_core.read_bytes()[:4096])
        _kill_whole(process)
    os.close(write_fd)
    os.close(proc_fd)
    staging_fd = os.open(site.root / "staging", os.O_RDONLY)
    fcntl.flock(staging_fd, fcntl.LOCK_SH)
    with _service(site, tmp_path, status=-signal.SIGKILL) as (process, _path):
        _kill_whole(process)  # and it has not swept: that waits for the lock
    os.close(staging_fd)
    assert site.ledger() == []
    with _service(site, tmp_path):
        pass  # it sweeps before it ends
    assert [path.name for path in tmp_path.glob("board*")] == ["board"]
    assert site.stages() == []
    (loss,) = site.ledger()
    assert (loss["reason"], loss["pid"], loss["uid"], loss["signal"]) == ("interrupted", 4711, 12, 11)


def test_a_process_that_has_not_crashed_is_refused_at_the_kernels_socket(tmp_path: Path, site: Site) -> None:
    with _service(site, tmp_path, "kernel") as (_process, path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        with suppress(BrokenPipeError):  # it may have been refused by now
            client.sendall(struct.pack("=IIQ", 16, 16, 15))
        client.settimeout(30)
        with suppress(ConnectionResetError):  # as it ends where the service left what was sent unread
            assert client.recv(16) == b""
    assert site.stages() == []
    assert site.ledger() == []


def test_without_sockets_it_says_so(site: Site) -> None:
    done = site.run("capture_service", settings=False)
    assert done.returncode == 69
    assert "coresnap-archive.socket" in done.stderr


@pytest.mark.parametrize(
    "message",
    [b"", b"x", handover.HEADER, handover.HEADER + b"\0x\0", b"\0" * 4096],
    ids=["empty", "x", "header", "time", "nul"],
)
def test_what_is_no_handover_is_refused(tmp_path: Path, site: Site, message: bytes) -> None:
    with (
        _service(site, tmp_path) as (_process, path),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client,
    ):
        client.connect(path)
        client.settimeout(30)
        assert client.recv(1) == handover.READY
        client.send(message)
        assert client.recv(1) == b""
    assert json.dumps(site.ledger()) == "[]"
