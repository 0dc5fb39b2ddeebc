# SPDX-License-Identifier: Apache-2.0
"""A worker of the capture service that ends by a mistake: that is told, and what it had taken is put on record."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from coresnap import capture_service
from coresnap.capture.board import CAPTURES
from coresnap.capture.victim import Victim
from coresnap.capture.worker import Worker
from coresnap.ground import flat
from coresnap.ground.log import Log
from coresnap.spool import ledger, stages
from coresnap.spool.stages import Spool


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "spool"
    stages.prepare(str(root), -1, -1)
    with Spool(str(root)) as spool:
        ledger.prepare(spool.root_fd, -1, -1)
    return root


def test_a_mistake_is_told_and_the_crash_put_on_record(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    victim = Victim()
    victim.pid, victim.comm = 4711, "victim"
    settings = tmp_path / "settings"
    settings.write_text(f"{flat.HEADER}\nroot\t{root}\nquota_percent\t0\n")

    def take_one(worker: Worker, *_arguments: object) -> None:
        worker.board.put(worker.place, CAPTURES)
        worker.board.crash(worker.place).put(victim, stages.new_uuid())
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Worker, "run", take_one)
    service = capture_service.Service({}, flat.Compiled(str(settings)), 1, Log.open())
    service._fork_workers()
    while service.workers or service.sweeper:
        _wait_for_a_child(service.sweeper or next(iter(service.workers)))
        service._reap()
        service._sweep()
    assert service.board.left() == [], "its place is another's now"
    assert "ZeroDivisionError('a mistake')" in capfd.readouterr().err
    with Spool(str(root)) as spool:
        assert [(entry["reason"], entry["comm"]) for entry in ledger.read(spool.root_fd)] == [("interrupted", "victim")]


def test_what_cannot_be_settled_keeps_no_crash_from_being_captured(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a spool it waits on the board, as long as there is room for it; that is told."""
    settings = tmp_path / "settings"
    settings.write_text(f"{flat.HEADER}\nroot\t{root}/none\nquota_percent\t0\n")
    service = capture_service.Service({}, flat.Compiled(str(settings)), 1, Log.open())
    uuids = [stages.new_uuid() for _ in range(2)]
    for place, uuid in enumerate(uuids):
        service.board.crash(place).put(Victim(), uuid)
        service._free(place)
    service.sweeps = True
    service._sweep()
    _wait_for_a_child(service.sweeper)
    service._reap()
    assert service.board.left() == [0, 1]
    assert service._place() == 0
    assert [crash.taken().uuid for crash in service.board.everything()] == uuids[1:]
    assert f"{uuids[0]}: its capture was killed" in capfd.readouterr().err


def _wait_for_a_child(pid: int) -> None:
    """Wait until it has ended, and leave it to be reaped."""
    fd = os.pidfd_open(pid)
    select.select([fd], [], [])
    os.close(fd)
