# SPDX-License-Identifier: Apache-2.0
"""The index costs time where it is wrong, never truth: whatever is done to it, or behind its back, the directories are told."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any, Self

import pytest

from coresnap.ground import durable
from coresnap.spool import index, inventory, stages
from coresnap.spool.stages import Spool
from tests.support import spools

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from coresnap.spool.inventory import Inventory, Row
    from tests.support.spools import Made

_DUMPS = 6


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an index of few dumps, and one that vouches for what changed just now: no test waits for time to pass."""
    monkeypatch.setattr(inventory, "_INDEX_LEAST", 1)
    monkeypatch.setattr(inventory, "_CHANGES_LEAST", 1)
    monkeypatch.setattr(index, "_SETTLED_NSEC", 0)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Make a spool with some dumps in each stage."""
    spool = spools.make(tmp_path)
    who: dict[str, Any]
    for number in range(_DUMPS):
        for stage in index.INDEXED:
            who = {"exe": f"/opt/app{number}", "pid": number, "fingerprint": f"{number % 2:02}"}
            spools.add(spool, stage, time_usec=10**15 + number, report=b"{}", **who)
    spools.add(spool, "staging")
    return spool


def _rows(found: Inventory) -> list[Row]:
    return [found.row(number) for number in found.oldest_first()]


def _truth(made: Made, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Return what is there, without an index."""
    with made.open() as spool, monkeypatch.context() as patch:
        patch.setattr(index, "load", lambda *_arguments: None)
        patch.setattr(index, "save", lambda *_arguments: False)
        return _rows(inventory.take(spool))


def _take(made: Made, *, each: bool = False) -> Inventory:
    with made.open() as spool:
        return inventory.take(spool, each=each)


def _first(made: Made, stage: str = "committed") -> Path:
    return min((made.root / stage).iterdir())


def test_what_has_not_changed_is_not_read_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _take(made).reread == 4 * _DUMPS
    again = _take(made)
    assert again.reread == 0
    assert _rows(again) == _truth(made, monkeypatch)
    assert len(again) == 4 * _DUMPS


def _edit_in_place(made: Made) -> None:
    path = _first(made) / "dump.json"
    document = json.loads(path.read_bytes())
    document["victim"]["exe"] = "/opt/other"
    path.write_text(json.dumps(document))


def _damage_in_place(made: Made) -> None:
    (_first(made) / "dump.json").write_text("{")


def _edit_by_rename(made: Made) -> None:
    path = _first(made) / "dump.json"
    document = json.loads(path.read_bytes())
    document["victim"]["pid"] = 4242
    path.with_name("new").write_text(json.dumps(document))
    path.with_name("new").rename(path)


def _remove_core(made: Made) -> None:
    (_first(made) / "core").unlink()


def _remove_record(made: Made) -> None:
    (_first(made) / "dump.json").unlink()


def _mv(made: Made) -> None:
    path = _first(made)
    path.rename(made.root / "failed" / path.name)


def _rm(made: Made) -> None:
    shutil.rmtree(_first(made))


def _add(made: Made) -> None:
    spools.add(made, "pending", exe="/opt/new")


def _same_name(made: Made) -> None:
    path = _first(made)
    shutil.rmtree(path)
    spools.add(made, "committed", path.name, exe="/opt/same-name", time_usec=5)


def _swap(made: Made) -> None:
    one, two = sorted((made.root / "committed").iterdir())[:2]
    one.rename(made.root / "x")
    two.rename(one)
    (made.root / "x").rename(two)


def _no_dump(made: Made) -> None:
    (made.root / "committed" / stages.new_uuid()).write_text("a file")
    (made.root / "committed" / "lost+found").mkdir()


@pytest.mark.parametrize(
    "change",
    [
        _edit_in_place,
        _damage_in_place,
        _edit_by_rename,
        _remove_core,
        _remove_record,
        _mv,
        _rm,
        _add,
        _same_name,
        _swap,
        _no_dump,
    ],
)
def test_what_changes_is_seen(made: Made, monkeypatch: pytest.MonkeyPatch, change: Callable[[Made], None]) -> None:
    _take(made)
    before = _rows(_take(made))
    change(made)
    found = _take(made)
    assert _rows(found) == _truth(made, monkeypatch)
    assert (_rows(found) != before) == (change is not _no_dump)
    assert found.reread <= 2
    again = _take(made)
    assert _rows(again) == _rows(found)


def test_of_many_dumps_a_record_written_over_in_place_is_seen_by_who_asks_for_each(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "EACH_MOST", 0)
    _take(made)
    _edit_in_place(made)
    assert _take(made).reread == 0
    assert _rows(_take(made, each=True)) == _truth(made, monkeypatch)
    assert _rows(_take(made)) == _truth(made, monkeypatch), "the index has been written anew"


def test_what_changed_just_before_is_read_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have changed once more within the same tick of the clock that change times are taken from."""
    monkeypatch.setattr(index, "_SETTLED_NSEC", 3600 * 10**9)
    _take(made)
    assert _take(made).reread == 4 * _DUMPS
    assert not (made.root / index.NAME).exists(), "it would be of no use"


def test_a_clock_that_was_set_back_costs_time(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    now_nsec = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_nsec - 10**15)
    _take(made)
    assert _take(made).reread == 4 * _DUMPS
    assert _rows(_take(made)) == _truth(made, monkeypatch)


def test_a_damaged_index_costs_time(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = _truth(made, monkeypatch)
    _take(made)
    path = made.root / index.NAME
    whole = path.read_bytes()
    for at in [*range(0, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        assert _rows(_take(made)) == truth, at
    for damaged in (b"", b"\n", whole[:-1], whole + b"x", b"[" * 400, b"{}\n" + whole, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with made.open() as spool:
            assert index.load(spool) is None
        assert _rows(_take(made)) == truth
        assert path.read_bytes()[:20] == whole[:20], "it has been written anew"


def test_a_forged_index_is_no_index(made: Made) -> None:
    """Its checksum is right, and what it says is not."""
    _take(made)

    def forged(change: Callable[[inventory.Inventory], None]) -> bool:
        found = _take(made)
        change(found)
        with made.open() as spool:
            assert index.save(spool, found, time.time_ns())
            return index.load(spool) is None

    def name(found: Inventory) -> None:
        found.uuids[0] = "\x1b[2J" + found.uuids[0][4:]

    def number(found: Inventory) -> None:
        found["exe"][3] = 1 << 30

    def order(found: Inventory) -> None:
        found.order[0] = 4 * _DUMPS

    def nothing(_found: Inventory) -> None:
        pass

    assert forged(name)
    assert forged(number)
    assert forged(order)
    assert not forged(nothing)


def test_another_spools_index_is_of_no_use(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    other = spools.make(tmp_path / "other")
    for _ in range(3):
        spools.add(other, "committed", exe="/opt/elsewhere")
    _take(other)
    _take(made)
    shutil.copy(made.root / index.NAME, other.root / index.NAME)
    found = _take(other)
    assert _rows(found) == _truth(other, monkeypatch)
    assert {row.exe for row in _rows(found)} == {"/opt/elsewhere"}


def test_a_copied_spool_is_read_anew(made: Made, tmp_path: Path) -> None:
    _take(made)
    shutil.copytree(made.root, tmp_path / "copy")
    with Spool(str(tmp_path / "copy")) as spool:
        assert inventory.take(spool).reread == 4 * _DUMPS


def test_an_index_that_cannot_be_written_is_no_matter(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = _truth(made, monkeypatch)
    (made.root / f".{index.NAME}.new").mkdir()
    assert _rows(_take(made)) == truth
    assert not (made.root / index.NAME).exists()


def test_who_owns_the_spool_cannot_have_another_file_written(made: Made, tmp_path: Path) -> None:
    """Root writes the index, too: a second name of another file is no place for it, nor is a link."""
    other = tmp_path / "other"
    other.write_text("precious")
    os.link(other, made.root / f".{index.NAME}.new")
    _take(made)
    assert other.read_text() == "precious"
    (made.root / f".{index.NAME}.new").unlink()
    (made.root / f".{index.NAME}.new").symlink_to(other)
    _take(made)
    os.mkfifo(made.root / "fifo")
    (made.root / "fifo").rename(made.root / f".{index.NAME}.new")
    _take(made)
    assert other.read_text() == "precious"
    assert not (made.root / index.NAME).exists()


def test_two_do_not_write_it_at_once(made: Made) -> None:
    fd = os.open(made.root / f".{index.NAME}.new", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert _take(made).reread == 4 * _DUMPS
    assert not (made.root / index.NAME).exists()
    os.close(fd)
    _take(made)
    assert _take(made).reread == 0


def test_two_look_and_see_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = _truth(made, monkeypatch)
    monkeypatch.setattr(inventory, "_ALONE_MOST", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    _take(made)
    found = _take(made)
    assert (found.reread, _rows(found)) == (0, truth)
    _edit_in_place(made)
    assert _rows(_take(made)) == _truth(made, monkeypatch) != truth


def test_one_of_two_may_be_killed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = _truth(made, monkeypatch)
    _take(made)
    mine = os.getpid()
    monkeypatch.setattr(inventory, "_ALONE_MOST", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})

    def write(*_arguments: object) -> None:
        if os.getpid() != mine:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(durable, "write", write)
    found = _take(made)
    assert (found.reread, _rows(found)) == (0, truth)


class _Eventful(Spool):
    """A spool in which something happens after a stage has been listed."""

    event: tuple[str, Callable[[Spool], None]] | None = None

    def __enter__(self) -> Self:
        return self

    def listing(self, stage: str) -> list[str]:
        found = super().listing(stage)
        if self.event and self.event[0] == stage:
            self.event[1](self)
        return found


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(
    ("source", "target", "after"),
    [
        ("pending", "sending", "pending"),
        ("pending", "sending", "sending"),
        ("pending", "sending", "failed"),
        ("failed", "pending", "failed"),
        ("committed", "", "committed"),
        ("committed", "", "pending"),
    ],
)
def test_what_moves_meanwhile_is_found_once(made: Made, source: str, target: str, after: str, indexed: bool) -> None:
    uuid = _first(made, source).name
    if indexed:
        _take(made)

    def happen(spool: Spool) -> None:
        if dump := spool.take(source, uuid):
            with dump:
                spool.move(dump, target) if target else spool.remove(dump)

    with _Eventful(str(made.root)) as spool:
        spool.event = (after, happen)
        found = _rows(inventory.take(spool))
    assert [row.stage for row in found if row.uuid == uuid] == ([target] if target else [])
    assert len(found) == 4 * _DUMPS - (not target)


def test_a_string_that_is_too_long_is_read_each_time(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "/" + "x" * 5000
    spools.add(made, "committed", exe=long)
    _take(made)
    found = _take(made)
    assert found.reread == 1
    assert long in {row.exe for row in _rows(found)}
    assert _rows(found) == _truth(made, monkeypatch)


def test_numbers_out_of_the_ordinary(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2**64 - 1
    spools.add(made, "committed", pid=most - 1, uid=None, signal=None, time_usec=most, exe=None, comm=None)
    _take(made)
    row = _rows(_take(made))[-1]
    assert (row.pid, row.uid, row.signal, row.time_usec, row.exe, row.comm) == (most - 1, None, None, most, "", "")
    assert _rows(_take(made)) == _truth(made, monkeypatch)


def test_strings_of_dumps_that_have_gone_go_too(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        spools.add(made, "committed", exe=f"/opt/passing{number}")
    _take(made)
    for row in _rows(_take(made)):
        if "passing" in row.exe:
            shutil.rmtree(made.path("committed", row.uuid))
    _take(made)
    assert b"passing" not in (made.root / index.NAME).read_bytes()
    assert _rows(_take(made)) == _truth(made, monkeypatch)


def test_some_stages_are_looked_at_by_themselves(made: Made) -> None:
    _take(made)
    with made.open() as spool:
        found = inventory.take(spool, ["failed", "staging"])
    assert found.reread == 0
    assert sorted({row.stage for row in _rows(found)}) == ["failed", "staging"]
    assert len(found) == _DUMPS + 1
    assert _take(made).reread == 0, "the index has the other stages still"
