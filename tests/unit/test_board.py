# SPDX-License-Identifier: Apache-2.0
"""The board of the capture service: whose crashes a service that was killed had taken, the next one reads there."""

from __future__ import annotations

from pathlib import Path

from coresnap.capture.board import CAPTURES, FREE, WAITS, Board
from coresnap.capture.victim import Victim

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


def test_another_file_is_none(tmp_path: Path) -> None:
    for content in (b"", b"x" * 4096, b"coresnap-board 1".ljust(24, b"\0") + (9).to_bytes(8, "little")):
        (tmp_path / "board").write_bytes(content)
        assert Board(3, str(tmp_path / "board")).left == []
