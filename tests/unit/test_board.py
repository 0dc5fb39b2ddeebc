# SPDX-License-Identifier: Apache-2.0
"""The board of the capture service: whose crashes a service that was killed had taken, the next one reads there."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from coresnap.capture import handover
from coresnap.capture.aftermath import settle
from coresnap.capture.board import (
    CAPTURES,
    CRASHES,
    FREE,
    LEFT,
    WAITS,
    Board,
    find,
    former_boards,
    open_board,
    open_former,
)
from coresnap.capture.handed_over import from_archive
from coresnap.capture.handover import HandedOver
from coresnap.capture.source import Withdrawn
from coresnap.capture.victim import Victim
from coresnap.ground import durable, settings
from coresnap.ground.log import Log
from coresnap.spool import ledger, stages
from tests.support import spools
from tests.support.spools import Made

_UUID, _OTHER = "e104a754-73a1-4df8-954b-92608f6fad40", "1f9deac9-6f90-435b-a0e8-8cf13489832e"


def _victim(pid: int) -> Victim:
    victim = Victim()
    victim.pid, victim.signal, victim.comm = pid, 11, "a name that is longer than sixteen"
    return victim


def _settle(made: Made, board: Board, place: int = 0) -> None:
    archive_settings = settings.archive_settings(settings.load(str(made.configuration)))
    settle(Log([]), archive_settings, "", board.crashes(place), lambda uuid: find([board], uuid))


def _losses(made: Made) -> list[tuple[str, int, str]]:
    with made.open() as spool:
        return [(loss["reason"], loss["pid"], loss["uuid"]) for loss in ledger.read(spool.root_fd)]


def test_what_was_taken_outlives_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every service after it, until it is settled: the next one may be killed, too."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    warnings: list[str] = []
    board = open_board(4, warnings.append)
    assert former_boards() == []
    for place, state in enumerate((WAITS, CAPTURES, CAPTURES, CAPTURES)):
        board.put(place, state)
    board.crash(1).put(_victim(7), "")
    board.crash(2).put(_victim(8), _UUID, is_offered=True)
    board.crash(2).put(_victim(9), _UUID)
    assert (board.count(CAPTURES), board.count(WAITS), board.count(FREE)) == (3, 1, 0)
    for _service in range(2):
        assert open_board(2, warnings.append).everything() == []
    (tmp_path / "board.of another").mkdir()
    (tmp_path / f"board.{_OTHER}").write_bytes(b"none")
    (former,) = open_former(former_boards(), warnings.append).values()
    assert len(former_boards()) == 1, "what is none has gone"
    found = [crash.taken() for crash in former.everything()]
    assert [(taken.victim.pid, taken.victim.uid, taken.uuid, taken.is_offered) for taken in found] == [
        (7, None, "", False),
        (8, None, _UUID, True),
        (9, None, _UUID, False),
    ]
    assert found[0].victim.comm == "a name that is l"
    assert warnings == []


def test_a_worker_has_many_crashes_and_each_is_forgotten_by_itself() -> None:
    board = Board.new(2)
    crashes = []
    for pid in range(CRASHES):
        crashes.append(board.crash(1))
        crashes[-1].put(_victim(pid), _UUID)
    with pytest.raises(StopIteration):
        board.crash(1)
    crashes[3].clear()
    assert board.crash(1).is_free()
    assert [crash.taken().victim.pid for crash in board.crashes(1)] == [pid for pid in range(CRASHES) if pid != 3]
    assert board.crashes(0) == []
    board.put(1, LEFT)
    assert board.left() == [1]


def test_until_archive_is_told_it_has_the_crash_still() -> None:
    board = Board.new(1)
    for _crash in range(2):
        board.crash(0).put(_victim(7), _UUID, is_offered=True)
    board.crashes(0)[0].take(True)
    assert [crash.taken().is_offered for crash in board.crashes(0)] == [False, True]
    assert {crash.taken().uuid for crash in board.crashes(0)} == {_UUID}


def test_a_crash_that_is_claimed_stands_there_whatever_is_learnt_later() -> None:
    """The kernel has nobody else to ask: no moment may show the board without it."""
    board = Board.new(1)
    crash = board.crash(0)
    crash.put(_victim(6), _OTHER)
    crash.clear()
    crash.prepare(_UUID)
    assert crash.is_free()
    crash.claim(7, 12, 34)
    assert not crash.is_free()
    taken = crash.taken()
    assert not taken.is_offered
    assert (taken.victim.pid, taken.victim.uid, taken.victim.gid, taken.victim.signal) == (7, 12, 34, None)
    assert (taken.uuid, taken.core_bytes, taken.victim.comm) == (_UUID, -1, None)
    crash.put(_victim(7), _UUID)
    assert not crash.is_free()
    assert crash.taken().victim.signal == 11


def test_a_place_is_not_given_again_at_once() -> None:
    board = Board.new(3)
    places = []
    for _worker in range(5):
        places.append(board.place())
        board.put(places[-1], WAITS)
        if len(places) == 3:
            for place in places:
                board.put(place, FREE)
            board.put(1, WAITS)
    assert places[:3] == [0, 1, 2]
    assert places[3:5] == [0, 2]
    with pytest.raises(ValueError, match="."):
        board.place()


def test_what_archive_takes_back_it_has_again() -> None:
    crash = Board.new(1).crash(0)
    crash.put(_victim(7), _UUID, is_offered=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        taken = HandedOver(0, ours, on_take=crash.take)
        taken.begin()
        assert not crash.taken().is_offered
        assert theirs.recv(1) == handover.TAKEN
        theirs.shutdown(socket.SHUT_RD)
        taken.refuse()
        assert not crash.taken().is_offered, "an error later on: archive has gone"
        withdrawn = HandedOver(0, ours, on_take=crash.take)
        with pytest.raises(Withdrawn):
            withdrawn.begin()
        withdrawn.refuse()
        assert crash.taken().is_offered


@pytest.mark.parametrize("is_taken", [True, False, None])
def test_where_the_worker_dies_unanswered_archive_and_the_sweep_see_the_same(
    tmp_path: Path, *, is_taken: bool | None
) -> None:
    """It was killed before or after that byte, or before it had read whose crash it is, and sent no answer."""
    made = spools.make(tmp_path)
    board = Board.new(1)
    crash = board.crash(0)
    crash.prepare(_UUID)
    path = str(tmp_path / "handover")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, open("/dev/null", "rb") as null:
        listener.bind(path)
        listener.listen(1)
        said: list[bool] = []
        archive = threading.Thread(
            target=lambda: said.append(handover.offer(path, 1, ["7"], [null.fileno(), null.fileno()], 30_000))
        )
        archive.start()
        connection, _address = listener.accept()
        with connection:
            fds: list[int] = []
            if is_taken is None:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, crash.board_fd.to_bytes(4, sys.byteorder))]
                connection.sendmsg([handover.ready_for(crash.at, _UUID)], rights)
                _message, fds, _flags, _address = socket.recv_fds(connection, handover.LIMIT_BYTES, handover.FDS_MAX)
            else:
                from_archive(connection, fds, crash, _UUID)
                crash.take(is_taken)
        archive.join()
        for fd in fds:
            os.close(fd)
    assert said == [is_taken is True]
    _settle(made, board)
    assert _losses(made) == ([("interrupted", 7, _UUID)] if is_taken else [])


@pytest.mark.parametrize("is_offered", [True, False])
@pytest.mark.parametrize("core", ["no dump", None, b""])
def test_what_archive_has_still_is_no_loss(tmp_path: Path, core: bytes | str | None, *, is_offered: bool) -> None:
    """Its capture was killed before the first byte: archive captures the crash by itself, in another dump."""
    made = spools.make(tmp_path)
    if core != "no dump":
        with made.open() as spool, spool.new(_UUID) as dump:
            if core is not None:
                os.close(durable.create(dump.fd, "core", 0o600))
    board = Board.new(1)
    board.crash(0).put(_victim(7), _UUID, is_offered=is_offered)
    _settle(made, board)
    assert board.crashes(0) == []
    with made.open() as spool:
        assert spool.listing(stages.STAGING) == []
    assert _losses(made) == ([] if is_offered else [("interrupted", 7, _UUID)])


@pytest.mark.parametrize("stage", stages.STAGES[1:])
def test_what_was_kept_is_no_loss(tmp_path: Path, stage: str) -> None:
    """Its worker was killed after the dump's last rename, and it may have gone on since."""
    made = spools.make(tmp_path)
    spools.add(made, stage, _UUID)
    board = Board.new(1)
    board.crash(0).put(_victim(7), _UUID)
    _settle(made, board)
    assert _losses(made) == []
    with made.open() as spool:
        assert spool.uuids(stage) == [_UUID]


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_core_whose_last_byte_had_come_is_whole(tmp_path: Path, real_core: Path, *, is_copied: bool) -> None:
    """Its worker was killed before it could finish the dump; of another nobody knows whether it is."""
    made = spools.make(tmp_path)
    core = real_core.read_bytes()
    with made.open() as spool, spool.new(_UUID) as dump:
        fd = durable.create(dump.fd, "core", 0o600)
        durable.write(fd, core.rstrip(b"\0"))  # its end is a hole that has not been made yet
        os.close(fd)
    board = Board.new(1)
    crash = board.crash(0)
    crash.put(_victim(7), _UUID)
    if is_copied:
        crash.copied(len(core))
    _settle(made, board)
    document = made.record("pending", _UUID)
    assert (document["core"]["truncated"] is None) == is_copied
    if is_copied:
        assert (made.path("pending", _UUID) / "core").read_bytes() == core
    else:
        assert document["core"]["truncated"]["reason"] == "interrupted"
    assert crash.is_free()


@pytest.mark.parametrize("is_dump_left", [True, False])
def test_a_loss_is_told_once(tmp_path: Path, *, is_dump_left: bool) -> None:
    """Its worker, or a sweep, was killed after it had been put on record, and before the dump had gone."""
    made = spools.make(tmp_path)
    with made.open() as spool:
        ledger.append(spool.root_fd, "not-a-core", "it begins with zeros", _UUID, {"pid": 7})
        if is_dump_left:
            with spool.new(_UUID) as dump:
                fd = durable.create(dump.fd, "core", 0o600)
                os.write(fd, bytes(100))
                os.close(fd)
    board = Board.new(1)
    board.crash(0).put(_victim(7), _UUID)
    _settle(made, board)
    assert _losses(made) == [("not-a-core", 7, _UUID)]
    with made.open() as spool:
        assert spool.listing(stages.STAGING) == []


def test_whose_worker_dies_while_it_is_swept_is_known_too(tmp_path: Path) -> None:
    """Its place is none of those that are settled; archive has it still, or its last byte had come."""
    made = spools.make(tmp_path)
    with made.open() as spool:
        spool.new(_UUID).close()
    board = Board.new(2)
    board.crash(1).put(_victim(7), _UUID, is_offered=True)
    _settle(made, board)
    with made.open() as spool:
        assert spool.listing(stages.STAGING) == []
    assert _losses(made) == []
    assert len(board.crashes(1)) == 1
    _settle(made, board, 1)
    assert _losses(made) == []
    assert board.everything() == []


def test_without_a_spool_it_stays_on_the_board(tmp_path: Path) -> None:
    """It may be mounted later, and have a dump of it."""
    made = spools.make(tmp_path)
    board = Board.new(1)
    board.crash(0).put(_victim(7), _UUID)
    made.root.rename(tmp_path / "elsewhere")
    _settle(made, board)
    assert len(board.everything()) == 1
    (tmp_path / "elsewhere").rename(made.root)
    _settle(made, board)
    assert board.everything() == []
    assert _losses(made) == [("interrupted", 7, _UUID)]


def test_a_dump_that_cannot_be_swept_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of it stays for the next sweep; the dump is not locked for that."""
    made = spools.make(tmp_path)
    board = Board.new(1)
    with made.open() as spool:
        for pid, uuid in ((7, _UUID), (8, _OTHER)):
            spool.new(uuid).close()
            board.crash(0).put(_victim(pid), uuid)

    def fault(operation: str, name: str) -> None:
        if operation == "rename" and _UUID in name:
            raise ZeroDivisionError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "fault", fault)
        _settle(made, board)
    assert [crash.taken().uuid for crash in board.everything()] == [_UUID]
    assert sorted(_losses(made)) == [("interrupted", 7, _UUID), ("interrupted", 8, _OTHER)]
    _settle(made, board)
    assert board.everything() == []
    assert len(_losses(made)) == 2, "each once"
    with made.open() as spool:
        assert spool.listing(stages.STAGING) == []


def test_another_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "board"
    for content in (
        b"",
        b"x" * 4096,
        b"coresnap-board 3".ljust(24, b"\0") + (1).to_bytes(8, "little"),
        b"coresnap-board 4".ljust(24, b"\0") + (9).to_bytes(8, "little"),
        b"coresnap-board 4".ljust(24, b"\0") + (1 << 63).to_bytes(8, "little"),
    ):
        path.write_bytes(content)
        assert Board.former(str(path)) is None
