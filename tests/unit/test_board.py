# SPDX-License-Identifier: Apache-2.0
"""The board of the capture service: whose crashes a service that was killed had taken, the next one reads there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coresnap.capture.aftermath import sweep_after
from coresnap.capture.board import CAPTURES, FREE, WAITS, Board, Taken
from coresnap.capture.victim import Victim
from coresnap.ground import durable, settings
from coresnap.ground.log import Log
from coresnap.spool import ledger, stages
from tests.support import spools

_UUID = "e104a754-73a1-4df8-954b-92608f6fad40"


def _victim(pid: int) -> Victim:
    victim = Victim()
    victim.pid, victim.signal, victim.comm = pid, 11, "a name that is longer than sixteen"
    return victim


def test_what_was_taken_outlives_the_service(tmp_path: Path) -> None:
    path = str(tmp_path / "board")
    board = Board(4, path)
    assert board.left == []
    for place, state in enumerate((WAITS, CAPTURES, CAPTURES, CAPTURES)):
        board.put(place, state)
    board.name(1, _victim(7))
    board.name(2, _victim(8), _UUID)
    assert (board.count(CAPTURES), board.count(WAITS), board.count(FREE)) == (3, 1, 0)
    left = Board(2, path).left
    assert [(crash.victim.pid, crash.victim.uid, crash.uuid) for crash in left] == [
        (7, None, ""),
        (8, None, _UUID),
        (None, None, ""),
    ]
    assert left[0].victim.comm == "a name that is l"
    assert Board(4, path).left == [], "it is told once"


def test_what_has_ended_is_forgotten(tmp_path: Path) -> None:
    board = Board(1, str(tmp_path / "board"))
    board.put(0, CAPTURES)
    board.name(0, _victim(7), _UUID)
    board.put(0, CAPTURES)
    assert board.taken(0).victim.pid is None
    assert board.taken(0).uuid == ""


def test_until_archive_is_told_it_has_the_crash_still(tmp_path: Path) -> None:
    board = Board(2, str(tmp_path / "board"))
    for place in range(2):
        board.put(place, CAPTURES)
        board.name(place, _victim(7), _UUID, is_offered=True)
    board.take(0)
    assert [board.taken(place).is_offered for place in range(2)] == [False, True]
    assert board.taken(0).uuid == board.taken(1).uuid == _UUID


@pytest.mark.parametrize("is_offered", [True, False])
@pytest.mark.parametrize("core", [None, b""])
def test_what_archive_has_still_is_no_loss(tmp_path: Path, core: bytes | None, *, is_offered: bool) -> None:
    """Its capture was killed before the first byte: archive captures the crash by itself, in another dump."""
    made = spools.make(tmp_path)
    archive_settings = settings.archive_settings(settings.load(str(made.configuration)))
    with made.open() as spool:
        with spool.new() as dump:
            if core is not None:
                os.close(durable.create(dump.fd, "core", 0o600))
        sweep_after(Log([]), archive_settings, spool, [Taken(_victim(7), dump.uuid, is_offered)])
        assert spool.listing(stages.STAGING) == []
        losses = [(loss["reason"], loss["pid"]) for loss in ledger.read(spool.root_fd)]
    assert losses == ([] if is_offered else [("interrupted", 7)])


def test_another_file_is_none(tmp_path: Path) -> None:
    for content in (b"", b"x" * 4096, b"coresnap-board 1".ljust(24, b"\0") + (9).to_bytes(8, "little")):
        (tmp_path / "board").write_bytes(content)
        assert Board(3, str(tmp_path / "board")).left == []
