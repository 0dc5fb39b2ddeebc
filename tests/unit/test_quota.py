# SPDX-License-Identifier: Apache-2.0
"""Reservations: taken before the first byte, seen by every other capture, gone with their owner."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.capture.capture import OVERHEAD_BYTES, Capture
from coresnap.capture.finish import finish
from coresnap.capture.source import Source
from coresnap.capture.victim import Victim
from coresnap.ground import durable, settings
from coresnap.spool import quota, removal, stages
from coresnap.spool.quota import QuotaExceeded, Reservation
from coresnap.spool.stages import Spool
from tests.support import spools

MIB = 1 << 20
_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stages.prepare(str(tmp_path / "spool"), -1, -1)
    with Spool(str(tmp_path / "spool")) as opened:
        yield opened


@pytest.fixture
def elsewhere(spool: Spool) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds a reservation of 10 MiB."""
    program = (
        "import sys; from coresnap.spool.quota import Reservation; from coresnap.spool.stages import Spool;"
        f"reservation = Reservation(Spool({spool.path!r}), 0, 100 << 20, 10 << 20); print(flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_REPOSITORY) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def _reserved(spool: Spool) -> list[int]:
    fd = quota.open_table(spool)
    try:
        return [left_bytes for left_bytes, _written_bytes in quota.read_table(fd)]
    finally:
        os.close(fd)


def test_the_ceiling_counts_what_others_have_reserved(spool: Spool, elsewhere: subprocess.Popen[bytes]) -> None:
    with pytest.raises(QuotaExceeded, match="dump.ceiling"):
        Reservation(spool, 0, 12 * MIB, 3 * MIB)
    Reservation(spool, 0, 12 * MIB, 2 * MIB).close()


def test_a_killed_owner_leaves_no_reservation(spool: Spool, elsewhere: subprocess.Popen[bytes]) -> None:
    elsewhere.send_signal(signal.SIGKILL)
    elsewhere.wait()
    assert 10 * MIB in _reserved(spool)
    Reservation(spool, 0, 10 * MIB, 10 * MIB).close()
    assert 10 * MIB not in _reserved(spool)


def test_each_capture_of_one_process_has_its_own(spool: Spool) -> None:
    """A worker has several captures in hand whose processes have been let go: what they have written counts, too."""
    one = Reservation(spool, 0, 40 * MIB, 10 * MIB)
    one.spend(10 * MIB)
    other = Reservation(spool, 0, 40 * MIB, 10 * MIB)
    other.spend(10 * MIB)
    with pytest.raises(QuotaExceeded, match="dump.ceiling"):
        Reservation(spool, 0, 40 * MIB, 21 * MIB)
    one.close(10 * MIB)
    with pytest.raises(QuotaExceeded, match="dump.ceiling"):
        Reservation(spool, 0, 40 * MIB, 21 * MIB)
    other.close(10 * MIB)
    Reservation(spool, 0, 40 * MIB, 20 * MIB).close()


def test_a_reservation_ends_although_a_child_has_its_descriptor(spool: Spool) -> None:
    one = Reservation(spool, 0, 0, MIB)
    ended_fd, end_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end_fd)
        os.read(ended_fd, 1)
        os._exit(0)
    try:
        one.close()
        other = Reservation(spool, 0, 0, MIB)
        assert _reserved(spool) == [0, MIB], "it has the first entry again"
        other.close()
    finally:
        os.close(end_fd)
        os.close(ended_fd)
        os.waitpid(child, 0)


def test_spending_grows_the_reservation_up_to_the_ceiling(spool: Spool) -> None:
    reservation = Reservation(spool, 0, 10 * MIB, 1 * MIB)
    reservation.ensure(MIB)
    reservation.spend(MIB)
    reservation.ensure(4 * MIB)
    assert reservation.left_bytes == 5 * MIB, "raised by a step"
    reservation.spend(5 * MIB)
    reservation.ensure(4 * MIB)
    assert reservation.left_bytes == 4 * MIB, "a step would not fit, so it is raised by what is needed"
    with pytest.raises(QuotaExceeded, match="ceiling"):
        reservation.ensure(5 * MIB)
    reservation.close()


def test_small_captures_keep_no_room_from_each_other(spool: Spool) -> None:
    """A storm of small processes whose cores take a little more than was foreseen: each takes about that, and no step."""
    storm = [
        Reservation(spool, 0, 105 * MIB, MIB) for _crash in range(40)
    ]  # none has room for 64 MiB beside the others
    for reservation in storm:
        reservation.ensure(MIB + MIB // 4)
        reservation.spend(MIB // 4)
    for reservation in storm:
        reservation.close(MIB // 4)


def test_a_large_capture_is_raised_in_few_steps(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    grow = Reservation.grow

    def counted(reservation: Reservation, more_bytes: int) -> None:
        steps.append(more_bytes)
        grow(reservation, more_bytes)

    monkeypatch.setattr(Reservation, "grow", counted)
    reservation = Reservation(spool, 0, 0, MIB)
    for _block in range(1024):
        reservation.ensure(MIB)
        reservation.spend(MIB)
    assert len(steps) < 30
    assert max(steps) <= quota.STEP_MOST_BYTES + MIB
    reservation.close()


def test_what_a_core_has_not_taken_is_given_back(spool: Spool) -> None:
    reservation = Reservation(spool, 0, 0, 10 * MIB)
    reservation.trim(MIB)
    assert _reserved(spool) == [0, MIB]
    reservation.trim(2 * MIB)
    assert reservation.left_bytes == MIB
    reservation.close()


def test_a_table_that_cannot_be_written_ends_no_capture(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where blocks are never written in place a full disk forbids that, too: the core is cut short then, and kept."""
    reservation = Reservation(spool, 0, 0, 10 * MIB)

    def full(operation: str, _name: str) -> None:
        if operation == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "fault", full)
    reservation.trim(MIB)
    reservation.close(MIB)
    assert not reservation.exact
    monkeypatch.undo()
    Reservation(spool, 0, 10 * MIB, 9 * MIB).close()


def test_what_a_core_did_not_need_is_given_back_before_the_dump_is_finished(tmp_path: Path) -> None:
    made = spools.make(tmp_path)
    core = tmp_path / "core"
    core.write_bytes(b"\x7fELF\2\1\1" + bytes(9) + b"\4\0" + bytes(20 * MIB))
    capture = Capture(settings.archive_settings(settings.load(str(made.configuration))), Victim(), "import", 0)
    with core.open("rb") as file:
        capture.hold(Source(file.fileno(), "import"), None)
    reservation = capture.reservation
    assert reservation is not None
    assert reservation.left_bytes > 20 * MIB
    capture.wait_for_host()
    assert reservation.left_bytes == OVERHEAD_BYTES
    finish(capture)


def test_what_is_kept_counts_and_what_goes_does_not(spool: Spool) -> None:
    Reservation(spool, 0, 10 * MIB, MIB).close(kept_bytes=8 * MIB)
    with pytest.raises(QuotaExceeded, match="the spool holds 8388608 bytes"):
        Reservation(spool, 0, 10 * MIB, 3 * MIB)
    assert removal.recount(spool) == 0
    Reservation(spool, 0, 10 * MIB, 3 * MIB).close()


def test_who_is_stopped_while_counting_holds_nobody(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of the table is not to be had; the wait for it is paid once by each capture."""
    monkeypatch.setattr(quota, "_LOCK_SECONDS", 0.3)
    table_fd = quota.open_table(spool)
    quota._set_lock(table_fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, quota._MUTEX)
    began = time.monotonic()
    one = Reservation(spool, 0, 10 * MIB, MIB)
    assert time.monotonic() - began >= 0.3
    assert not one.exact
    monkeypatch.setattr(quota, "_LOCK_SECONDS", 1000)
    one.grow(MIB)
    with pytest.raises(QuotaExceeded, match="dump.ceiling"):
        one.grow(20 * MIB)
    assert _reserved(spool) == [0, 2 * MIB]
    one.spend(2 * MIB)
    one.close(2 * MIB)
    os.close(table_fd)
    other = Reservation(spool, 0, 10 * MIB, 8 * MIB)
    assert other.exact
    with pytest.raises(QuotaExceeded, match="the spool holds 2097152 bytes"):
        other.grow(MIB)
    other.close()


def test_the_share_of_free_blocks_is_kept(spool: Spool) -> None:
    disk = os.statvfs(spool.path)
    free_bytes = disk.f_bavail * disk.f_frsize
    with pytest.raises(OSError, match="No space left"):
        Reservation(spool, 0, 0, free_bytes + 64 * MIB)
    with pytest.raises(QuotaExceeded, match=r"\(100%\) have to stay free"):
        Reservation(spool, 100, 0, 0)
    Reservation(spool, 0, 0, MIB).close()
