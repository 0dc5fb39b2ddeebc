# SPDX-License-Identifier: Apache-2.0
"""Limits: counted exactly by many at once, kept across restarts, bounded, and never the end of a capture."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground import durable
from coresnap.spool import limits
from coresnap.spool.limits import EXE, UNIT, USER, Limit

_HOUR = 3_600_000_000
_NOW = 1_800_000_000_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = durable.open_directory(str(tmp_path))
    yield fd
    os.close(fd)


def _exe(most: int = 3, name: str = "/usr/bin/loop") -> Limit:
    return Limit(EXE, most, _HOUR, name)


def _is_kept(directory: int, now_usec: int, *wanted: Limit) -> bool:
    return limits.admit(directory, wanted or [_exe()], now_usec).over is None


def _rows(directory: int) -> dict[str, tuple[int, int, int]]:
    return {row.name: (row.kept, row.lost, row.lost_total) for row in limits.rows(directory)}


def test_the_first_are_kept_the_rest_are_counted(directory: int) -> None:
    assert [_is_kept(directory, _NOW + second * 10**6) for second in range(10)] == [True] * 3 + [False] * 7
    assert _rows(directory) == {"/usr/bin/loop": (3, 7, 7)}
    assert _is_kept(directory, _NOW, _exe(name="/usr/bin/other"))


def test_after_a_quiet_time_the_first_is_kept_and_told_how_many_were_not(directory: int) -> None:
    for _crash in range(10):
        limits.admit(directory, [_exe()], _NOW)
    assert not _is_kept(directory, _NOW + _HOUR - 1)
    admission = limits.admit(directory, [_exe()], _NOW + _HOUR)
    assert (admission.over, admission.lost_before) == (None, 8)
    assert _rows(directory) == {"/usr/bin/loop": (1, 0, 8)}


def test_what_was_not_kept_after_all_is_given_back(directory: int) -> None:
    admissions = [limits.admit(directory, [_exe(), Limit(USER, 9, _HOUR, "7")], _NOW) for _crash in range(3)]
    assert not _is_kept(directory, _NOW)
    admissions[1].give_back(directory)
    assert _rows(directory) == {"/usr/bin/loop": (2, 1, 1), "7": (2, 0, 0)}
    assert _is_kept(directory, _NOW)
    assert not _is_kept(directory, _NOW)


def test_what_is_given_back_in_another_window_takes_nothing_from_that(directory: int) -> None:
    old = limits.admit(directory, [_exe()], _NOW)
    limits.admit(directory, [_exe()], _NOW + 2 * _HOUR)
    old.give_back(directory)
    assert _rows(directory) == {"/usr/bin/loop": (1, 0, 0)}


@pytest.mark.parametrize("step_usec", [-(10**15), -1, 10**15])
def test_a_clock_that_is_set_neither_ends_nor_wedges_a_limit(directory: int, step_usec: int) -> None:
    for _crash in range(5):
        limits.admit(directory, [_exe()], _NOW)
    now_usec = _NOW + step_usec
    kept = [_is_kept(directory, now_usec + second) for second in range(5)]
    assert kept == ([False] * 5 if step_usec < 0 else [True] * 3 + [False] * 2)
    assert _is_kept(directory, now_usec + _HOUR + 5), "within one window it counts as before"


def test_each_of_several_limits_holds_and_none_is_used_up_by_what_another_forbids(directory: int) -> None:
    user = Limit(USER, 4, _HOUR, "1000")
    unit = Limit(UNIT, 2, _HOUR, "a.service")
    assert [_is_kept(directory, _NOW, _exe(), unit, user) for _crash in range(5)] == [True, True, False, False, False]
    assert _rows(directory) == {"/usr/bin/loop": (2, 0, 0), "a.service": (2, 3, 3), "1000": (2, 0, 0)}


def test_who_crashes_under_ever_new_names_pushes_nobody_out(directory: int) -> None:
    user = Limit(USER, 20, _HOUR, "1000")
    for _crash in range(4):
        limits.admit(directory, [_exe(), Limit(USER, 20, _HOUR, "0")], _NOW)
    for number in range(20_000):
        limits.admit(directory, [_exe(name=f"/tmp/{number}"), user], _NOW + number)
    assert not _is_kept(directory, _NOW + 20_000)
    assert len(_rows(directory)) == 23


def test_it_never_grows_and_the_stalest_give_way(directory: int, tmp_path: Path) -> None:
    limits.prepare(directory)
    before = (tmp_path / "limits").stat()
    room = limits.BUCKETS * limits.WAYS
    for number in range(3 * room):
        limits.admit(directory, [_exe(name=f"/opt/{number}")], _NOW + number)
    after = (tmp_path / "limits").stat()
    assert (before.st_size, before.st_blocks) == (after.st_size, after.st_blocks)
    numbers = sorted(int(name.rpartition("/")[2]) for name in _rows(directory))
    assert len(numbers) > room * 0.9
    assert numbers[-1] == 3 * room - 1
    assert numbers[len(numbers) // 20] > room, "nineteen in twenty of the first third are gone"


def _storm(path: str, count: int, queue: multiprocessing.Queue[int]) -> None:
    fd = durable.open_directory(path)
    queue.put(sum(_is_kept(fd, _NOW, _exe(5)) for _crash in range(count)))


def test_many_at_once_are_counted_one_by_one(directory: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=_storm, args=(str(tmp_path), 50, queue)) for _number in range(8)]
    for process in processes:
        process.start()
    assert sum(queue.get(timeout=60) for _process in processes) == 5
    for process in processes:
        process.join()
    assert _rows(directory) == {"/usr/bin/loop": (5, 395, 395)}


@pytest.mark.parametrize("damage", ["torn", "noise", "empty", "short"])
def test_a_damaged_table_wedges_nothing(directory: int, tmp_path: Path, damage: str) -> None:
    for _crash in range(9):
        limits.admit(directory, [_exe()], _NOW)
    table = tmp_path / "limits"
    data = table.read_bytes()
    noise = os.urandom(len(data) - 4096)
    damaged = {"torn": data[:4096] + noise, "noise": os.urandom(len(data)), "empty": b"", "short": data[:20]}
    table.write_bytes(damaged[damage])
    list(limits.rows(directory))
    assert [_is_kept(directory, _NOW + second) for second in range(5)] == [True] * 3 + [False] * 2


def test_a_table_that_is_no_file_of_ours_is_an_error_and_is_not_written_through(directory: int, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"untouched")
    (tmp_path / "limits").symlink_to("other")
    with pytest.raises(OSError, match="symbolic"):
        limits.admit(directory, [_exe()], _NOW)
    assert (tmp_path / "other").read_bytes() == b"untouched"


def test_names_may_be_any_text(directory: int) -> None:
    name = "/tmp/\udce9\n\x1b" + "é" * 300
    for _crash in range(4):
        admission = limits.admit(directory, [_exe(name=name)], _NOW)
    assert admission.over is not None
    assert not _is_kept(directory, _NOW, _exe(name=name)), "it is known by all of its name, not by what is shown of it"
    assert _is_kept(directory, _NOW, _exe(name=name + "é"))


def test_no_table_has_no_rows_and_a_forgotten_one_neither(directory: int) -> None:
    assert list(limits.rows(directory)) == []
    for _crash in range(4):
        limits.admit(directory, [_exe()], _NOW)
    limits.forget(directory)
    assert list(limits.rows(directory)) == []
    assert _is_kept(directory, _NOW)


def test_who_is_stopped_while_counting_holds_nobody(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits.admit(directory, [_exe()], _NOW)
    monkeypatch.setattr(limits, "_LOCK_SECONDS", 0.05)
    ended_fd, end_fd = os.pipe()
    locked_fd, lock_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end_fd)
        fcntl.lockf(os.open("limits", os.O_RDWR, dir_fd=directory), fcntl.LOCK_EX, 1, 0)
        os.write(lock_fd, b"+")
        os.read(ended_fd, 1)
        os._exit(0)
    signal.alarm(20)  # where it waits for ever
    try:
        os.read(locked_fd, 1)
        with pytest.raises(OSError, match="unavailable"):
            limits.admit(directory, [_exe()], _NOW)
    finally:
        for fd in (end_fd, ended_fd, locked_fd, lock_fd):
            os.close(fd)
        os.waitpid(child, 0)
        signal.alarm(0)
    assert _is_kept(directory, _NOW)


def test_two_new_ones_of_a_bucket_have_a_place_each(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUCKETS", 1)
    limits.admit(directory, [_exe(), Limit(UNIT, 9, _HOUR, "a.service"), Limit(USER, 9, _HOUR, "7")], _NOW)
    assert _rows(directory) == {"/usr/bin/loop": (1, 0, 0), "a.service": (1, 0, 0), "7": (1, 0, 0)}
